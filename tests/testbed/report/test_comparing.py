"""Arms and runs beside each other: ratios against the summary, refusals, what differs, files beside the page."""

from __future__ import annotations

import csv
import json
import re
import statistics
from dataclasses import replace
from html import unescape
from pathlib import Path

import msgspec
import pytest
from report_folders import ARMS, CONDITIONS, Made, made_folder

from fedpruneshare.cli import run as command_line
from fedpruneshare.errors import SettingsError
from testbed.report.comparison import comparison, ratios
from testbed.report.curves import curves
from testbed.report.measures import JOULES, ratio_of
from testbed.report.page import REPORT_FILES, render_page, write_comparison, write_report
from testbed.report.runs import Report, compared, differences, folder_names, one_report, read_folder
from testbed.summary import Energy, read_summary

SMALL = Made(rounds=5, devices=6, cohort=4, seeds=(1, 2))


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", markup)))


def cells(markup: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", markup)
    return [[words(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_folder(tmp_path_factory.mktemp("compare"), SMALL)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def report(compared_folder: Path) -> Report:
    return one_report(read_folder(compared_folder))


# --------------------------------------------------------------------------- the headline


def test_the_headline_has_means_spreads_and_ratios_of_the_summary(compared_folder: Path, report: Report) -> None:
    arms = read_summary(compared_folder / "summary.json").arms
    head, *rows = cells(comparison(report).partition("<details")[0])
    assert head == [
        "arm", "final accuracy", "uplink", "uplink a device, last round", "downlink", "wire bytes up",
        "wire bytes down", "joules of work", "time",
    ]  # fmt: skip
    assert [row[0] for row in rows] == list(ARMS)
    mine = dict(zip(head, rows[3], strict=True))
    ups = {name: [seed.uplink_bytes for seed in arm.by_seed] for name, arm in arms.items()}
    mean, sd = statistics.fmean(ups["fedpruneshare"]), statistics.stdev(ups["fedpruneshare"])
    part = mean / statistics.fmean(ups["fedavg"])
    assert mine["uplink"] == f"{mean / 1e3:.0f} ± {sd / 1e3:.0f} kB {100 * part:.1f} %"
    more = 100 * (arms["fedpruneshare"].final_accuracy - arms["fedavg"].final_accuracy)
    assert mine["final accuracy"].endswith(f"{more:+.2f} points".replace("-", "−"))
    assert re.search(r"% modelled idle: [0-9.]+ ± [0-9.]+ J$", mine["joules of work"])
    assert rows[0][2].endswith("MB")  # an arm has no ratio to itself


def test_every_arm_has_its_ratio_to_every_other_one(compared_folder: Path, report: Report) -> None:
    arms = read_summary(compared_folder / "summary.json").arms
    square = next(part for part in ratios(report).split("<div>") if ">uplink<" in part)
    _head, *rows = cells(square)
    for row, one in zip(rows, arms.values(), strict=True):
        for cell, other in zip(row[1:], arms.values(), strict=True):
            found = one.uplink_bytes / other.uplink_bytes
            if one is other:
                assert cell == ""
            elif found < 2:
                assert cell == f"{100 * found:.1f} %"
            else:
                assert cell == (f"× {found:.2f}" if found < 10 else f"× {found:.0f}")


def test_what_devices_idle_while_this_machine_works_is_in_no_ratio(report: Report) -> None:
    """The same run on a machine twice as slow idles twice as long: its joules are compared as before."""
    mine, base = report.subject, report.baseline
    assert mine.figures.energy_j is not None and mine.figures.energy_j["idle"].value > 0
    found = ratio_of(JOULES, mine, base)
    slower = [
        msgspec.structs.replace(one, energy_j={**one.energy_j, "idle": Energy(1e6, "model")})
        for one in mine.figures.by_seed
        if one.energy_j
    ]
    later = replace(mine, figures=msgspec.structs.replace(mine.figures, by_seed=tuple(slower)))
    assert found is not None and ratio_of(JOULES, later, base) == found
    worked = [
        sum(part.value for name, part in one.energy_j.items() if name != "idle")
        for one in mine.figures.by_seed
        if one.energy_j
    ]
    assert found[0] == pytest.approx(statistics.fmean(worked))


def test_joules_of_two_sources_are_not_divided(tmp_path: Path) -> None:
    for name, source in (("modelled", "model"), ("measured", "ina3221")):
        made_folder(tmp_path / name, Made(("fedpruneshare",), (1,), 3, 4, 3, source=source))
    found = compared([read_folder(tmp_path / name) for name in ("modelled", "measured")])
    text = words(comparison(found))
    assert "J – ina3221" in text
    assert "Joules: modelled by the board profiles and measured by ina3221; idling is told apart" in text
    assert "never divided by each other" in text


def test_nothing_is_said_of_joules_or_wires_that_nobody_counted(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, Made(ARMS[:2], (1,), 3, 4, 3, has_wire=False, source=""))
    report = one_report(read_folder(folder))
    page = render_page(report, [])
    head = cells(comparison(report))[0]
    assert head == ["arm", "final accuracy", "uplink", "uplink a device, last round", "downlink", "time"]
    assert ">joules of work<" not in page and "energy of work" not in page and "Wire truth" not in page
    assert "accuracy-by-joules" not in {drawing.name for drawing in curves(report)}
    assert "Energy was not measured." in page


# --------------------------------------------------------------------------- runs of several folders


def test_runs_of_several_folders_are_named_by_folder_and_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_folder(tmp_path / "a", Made(("fedavg", "fedpruneshare"), (1, 2), 4, 4, 3))
    made_folder(tmp_path / "b", Made(("fedpruneshare",), (2, 3), 4, 6, 3))
    out = tmp_path / "out"
    assert command_line(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    page = words((out / "report.html").read_text())
    for name in ("a/fedavg", "a/fedpruneshare", "b/fedpruneshare"):
        assert name in page
    assert "Not like with like." in page
    assert "seeds is [1,2] in a, [2,3] in b: the draws differ." in page
    assert "fleet.devices is 4 in a, 6 in b: the data are split otherwise." in page
    assert [row["arm"] for row in rows_of(out / "report.csv")] == [
        "a/fedavg", "a/fedavg", "a/fedpruneshare", "a/fedpruneshare", "b/fedpruneshare", "b/fedpruneshare",
    ]  # fmt: skip
    # Not into the folder of a run, nor where other things lie; the same folder once more is well.
    assert command_line(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "a")]) == 2
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(SettingsError, match=r"thesis\.tex"):
        write_comparison([tmp_path / "a", tmp_path / "b"], out)
    (out / "thesis.tex").unlink()
    assert command_line(["report", str(tmp_path / "a"), "--out", str(out)]) == 0
    assert "b/fedpruneshare" not in (out / "report.html").read_text()


def test_runs_alike_are_said_to_be_alike(tmp_path: Path) -> None:
    made = Made(("fedpruneshare",), (1,), 3, 4, 3)
    for name in ("a", "b"):
        made_folder(tmp_path / name, made)
    report = compared([read_folder(tmp_path / name) for name in ("a", "b")])
    assert differences(report) == []
    page = words(render_page(report, []))
    assert "Seeds, data and length are the same in all of them." in page
    assert "Not like with like." not in page


def test_other_tasks_and_metrics_are_refused_all_at_once(tmp_path: Path) -> None:
    for name, key, value in (("a", "", ""), ("b", "task", "hapt"), ("c", "metric", "auroc")):
        folder = made_folder(tmp_path / name, Made(("fedpruneshare",), (1,), 3, 4, 3))
        body = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(body | ({key: value} if key else {})))
    with pytest.raises(SettingsError) as found:
        compared([read_folder(tmp_path / name) for name in "abc"])
    assert "b: found task 'hapt', expected 'fashion-mnist' as in a" in str(found.value)
    assert "c: found metric 'auroc', expected 'accuracy' as in a" in str(found.value)
    folders = [str(tmp_path / name) for name in "abc"]
    assert command_line(["report", *folders, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_folders_are_told_apart_by_the_shortest_ends_of_their_paths(tmp_path: Path) -> None:
    assert folder_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert folder_names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
    with pytest.raises(SettingsError, match="given twice"):
        folder_names([tmp_path / "x", tmp_path / "y" / ".." / "x"])


# --------------------------------------------------------------------------- the files beside the page


def test_report_csv_has_a_row_for_each_arm_and_seed_with_its_conditions(compared_folder: Path) -> None:
    rows = rows_of(compared_folder / "report.csv")
    arms = read_summary(compared_folder / "summary.json").arms
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, seed) for arm in ARMS for seed in ("1", "2")]
    last = rows[-1]
    figures = arms["fedpruneshare"].by_seed[1]
    assert float(last["final_accuracy"]) == figures.final_accuracy
    assert int(last["uplink_bytes"]) == figures.uplink_bytes
    assert (last["threshold"], last["wire_source"]) == ("2", "interface")
    assert figures.energy_j is not None
    assert float(last["joules.model.train"]) == figures.energy_j["train"].value
    assert last["conditions.links.backend"] == CONDITIONS["links"]["backend"]
    assert last["conditions.links.self_test.lte.up.kbit_s"] == "1987.4"


def test_rounds_csv_adds_up_to_the_summary(compared_folder: Path) -> None:
    rows = rows_of(compared_folder / "rounds.csv")
    assert len(rows) == len(ARMS) * 2 * (SMALL.rounds + 1)
    arms = read_summary(compared_folder / "summary.json").arms
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        causes = ("up.shares", "up.resent", "up.control")
        assert sum(int(row[cause]) for row in mine for cause in causes) == arms[arm].uplink_bytes
        assert sum(int(row["wire_up"]) for row in mine) == arms[arm].wire_bytes.up
    assert {row["events"] for row in rows} == {"", "reboot device-05"}


def test_devices_csv_adds_up_too(compared_folder: Path) -> None:
    rows = rows_of(compared_folder / "devices.csv")
    assert len(rows) == len(ARMS) * SMALL.devices
    arms = read_summary(compared_folder / "summary.json").arms
    mine = [row for row in rows if row["arm"] == "share-only"]
    assert sum(int(row["payload_up"]) for row in mine) == arms["share-only"].uplink_bytes
    assert sum(int(row["wire_down"]) for row in mine) == arms["share-only"].wire_bytes.down
    for row in mine:
        over = 100 * (int(row["wire_up"]) / int(row["payload_up"]) - 1)
        assert float(row["overhead_up_percent"]) == pytest.approx(over)


def test_each_plot_lies_there_as_svg_and_png(compared_folder: Path) -> None:
    plots = {path.name for path in (compared_folder / "plots").iterdir()}
    for name in (
        "accuracy-by-round", "accuracy-by-uplink", "accuracy-by-joules", "uplink-by-round", "density-by-round",
        "bytes-by-cause", "energy-by-phase", "overhead", "decisions-4", "timeline-1", "timeline-4",
    ):  # fmt: skip
        assert {f"{name}.svg", f"{name}.png"} <= plots, name
        assert (compared_folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert "var(" not in (compared_folder / "plots" / f"{name}.svg").read_text()  # other programs know no variables
    assert {path.name for path in compared_folder.iterdir()} >= set(REPORT_FILES)


def test_plots_of_an_older_report_do_not_stay(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, Made(("fedpruneshare",), (1,), 3, 4, 3))
    write_report(folder)
    made_folder(tmp_path, Made(("fedpruneshare",), (1,), 3, 4, 3, has_wire=False))
    assert (folder / "plots" / "overhead.svg").exists()
    write_report(folder)
    assert not (folder / "plots" / "overhead.svg").exists()


def test_a_report_of_one_folder_may_go_elsewhere(tmp_path: Path) -> None:
    made_folder(tmp_path / "a", Made(("fedpruneshare",), (1,), 3, 4, 3))
    assert command_line(["report", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "a" / "report.html").exists()
