"""What the page says of devices, wires, decisions, timelines, events and conditions; and that none of it is markup."""

from __future__ import annotations

import json
import re
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_folders import Made, made_folder

from fedpruneshare.errors import PeerError
from testbed.ledger.device_lines import ABSENT, DeviceLine, read_devices
from testbed.ledger.rounds import BytesUp, RunRound, read_rounds
from testbed.report import comparison, markup, tables
from testbed.report.conditions import emulation
from testbed.report.csv_files import write_csv
from testbed.report.decisions import counts_by_constraint, counts_by_rung, decisions
from testbed.report.devices import device_totals
from testbed.report.drawing import sheet
from testbed.report.page import render_page, write_report
from testbed.report.runs import Report, flat, one_report, read_folder
from testbed.report.timelines import MOST_DEVICES, WINDOW_ROUNDS, bars_of, sample, timelines, window

ONE = Made(("fedpruneshare",), (1, 2), rounds=10, devices=9, cohort=6)
EVIL = "</td><script>alert(1)</script>"


def words(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder(tmp_path_factory.mktemp("run"), ONE)


@pytest.fixture
def report(folder: Path) -> Report:
    return one_report(read_folder(folder))


# --------------------------------------------------------------------------- devices


def test_totals_of_a_device_are_the_sums_of_its_lines(folder: Path) -> None:
    lines = [line for line in read_devices(folder / "devices.jsonl") if line.device == "device-02"]
    (total,) = device_totals(lines)
    assert total.asked == sum(line.status in ("uploaded", "declined", "incomplete") for line in lines)
    assert total.up.payload == sum(line.up.total for line in lines)
    assert total.up.wire == sum(line.wire_up or 0 for line in lines)
    assert total.up.overhead_percent == pytest.approx(100 * (total.up.wire / total.up.payload - 1))
    spent = [(phase == "idle", part.joules or 0) for line in lines for phase, part in line.energy.items()]
    assert total.joules["model"] == pytest.approx(sum(joules for is_idle, joules in spent if not is_idle))
    assert total.idle_joules["model"] == pytest.approx(sum(joules for is_idle, joules in spent if is_idle))
    assert (total.group, total.board, total.link) == (0, "raspberry-pi-zero-2-w", "lte")


def test_interface_bytes_of_some_rounds_alone_have_no_overhead() -> None:
    lines = [
        DeviceLine(device="a", round=1, up=BytesUp(100), wire_up=120),
        DeviceLine(device="a", round=2, up=BytesUp(100), wire_up=None),
    ]
    (total,) = device_totals(lines)
    assert (total.up.wire, total.up.overhead_percent) == (None, None)


def test_groups_say_their_rungs_and_what_bound_them(report: Report) -> None:
    text = words(tables.groups(report))
    assert "raspberry-pi-zero-2-w lte 3" in text
    for rung, constraint in ((0, "deadline"), (1, "the device's own limit"), (2, "all the plan offers")):
        assert f"100 % rung {rung}" in text
        assert f"% {constraint}" in text


def test_the_wire_table_names_every_device(report: Report) -> None:
    text = words(tables.wire(report))
    assert all(f"device-{index:02}" in text for index in range(9))
    assert "Payload and interface bytes of 9 devices" in text


# --------------------------------------------------------------------------- decisions and timelines


def test_decisions_are_counted_by_round(folder: Path, report: Report) -> None:
    lines = read_devices(folder / "devices.jsonl")
    by_rung, by_constraint = counts_by_rung(report.arms[0]), counts_by_constraint(report.arms[0])
    for number in range(1, 11):
        mine = [line for line in lines if line.round == number]
        assert by_rung[number].get("declined", 0) == sum(line.status == "declined" for line in mine) / 2
        assert by_rung[number].get("rung 1", 0) == sum(line.rung == 1 for line in mine) / 2
        assert sum(by_constraint[number].values()) == pytest.approx(6)


def test_without_lines_of_devices_the_contributors_rungs_are_counted(tmp_path: Path) -> None:
    made_folder(tmp_path, ONE)
    (tmp_path / "devices.jsonl").unlink()
    arm = one_report(read_folder(tmp_path)).arms[0]
    assert counts_by_rung(arm)[3] == {"rung 0": 2.0, "rung 1": 2.0, "rung 2": 1.0}
    report = one_report(read_folder(tmp_path))
    assert not list(timelines(report))
    assert [drawing.title for drawing in decisions(report)] == ["Density decisions: fedpruneshare"]


@pytest.mark.parametrize("name", ["rounds.jsonl", "devices.jsonl"])
def test_a_file_that_lacks_lines_is_refused_by_name(tmp_path: Path, name: str) -> None:
    made_folder(tmp_path, ONE)
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    a_round = 1 if name == "rounds.jsonl" else ONE.devices
    for kept in (lines[:-1], [*lines[:-1], lines[-1][:-9]]):  # cut off at a line's end, and within a line
        (tmp_path / name).write_bytes(b"".join(kept))
        said = f"{name} is not whole: found {10 * a_round - 1} lines of fedpruneshare, seed 2, expected {10 * a_round}"
        with pytest.raises(PeerError, match=said):
            read_folder(tmp_path)


def test_a_run_without_its_rounds_is_refused(tmp_path: Path) -> None:
    made_folder(tmp_path, ONE)
    (tmp_path / "rounds.jsonl").unlink()
    with pytest.raises(PeerError, match="found 0 lines of fedpruneshare, seed 1, expected 10"):
        read_folder(tmp_path)


def test_a_run_of_one_arm_does_not_name_it_in_every_row(report: Report) -> None:
    page = tables.wire(report)
    assert ">fedpruneshare<" not in page
    assert "<tr><td>device-00</td><td>lte</td>" in page


def test_joules_stand_in_the_order_of_a_round(report: Report) -> None:
    named = re.findall(r"joules, (\w+)", words(comparison.figures(report)))
    known = ["receive", "prune", "train", "encode", "share", "send", "idle"]
    assert len(named) > 3
    assert named == [phase for phase in known if phase in named] * (len(named) // len(set(named)))


def plain_round(number: int, **more: object) -> RunRound:
    fields: dict[str, object] = {
        "seed": 1, "round": number, "phase": "APPLIED", "reason": "", "accuracy": 0.5, "loss": None, "density": 1.0,
        "contributors": 1, "aggregators": (), "verified": True, "rungs": (), "segments_open": (),
        "devices": {"uploaded": 1}, "up": {}, "down": {}, "uploads": 1, "uploaded_bytes": 1, "uplink_bytes_so_far": 1,
        "seconds": {"total": 2.0}, "model_bytes": 1, "started_at": 100.0 + 3 * number,
    }  # fmt: skip
    return RunRound(**{**fields, **more})  # type: ignore[arg-type]


def test_the_window_is_where_most_went_wrong_else_the_last_rounds() -> None:
    quiet = [plain_round(number) for number in range(1, 21)]
    assert [line.round for line in window(quiet)] == list(range(21 - WINDOW_ROUNDS, 21))
    quiet[4] = plain_round(5, devices={"uploaded": 1, "declined": 3})
    quiet[6] = plain_round(7, events=("reboot device-01",))
    assert {5, 7} <= {line.round for line in window(quiet)}
    assert [line.round for line in window(quiet[:2])] == [1, 2]


def test_of_many_devices_some_of_every_group_are_drawn() -> None:
    lines = [DeviceLine(device=f"device-{index:04}", group=index // 500, round=1) for index in range(1500)]
    drawn = sample(lines)
    assert len(drawn) == len(set(drawn)) == MOST_DEVICES
    assert {int(device[7:]) // 500 for device in drawn} == {0, 1, 2}
    assert len(sample(lines[:40])) == 40


def test_bars_of_a_device_follow_its_spans_and_say_how_it_ended() -> None:
    rounds = [plain_round(1), plain_round(2)]
    spans = (("receive", 103.1, 103.4), ("train", 103.4, 104.0), ("send", 104.0, 104.2), ("idle", 104.2, 105.0))
    lines = [
        DeviceLine(device="a", round=1, status="uploaded", spans=spans),
        DeviceLine(device="b", round=1, status="declined"),
        DeviceLine(device="c", round=1, status="incomplete", seconds={"receive": 0.5, "train": 0.5}),
        DeviceLine(device="d", round=1, status=ABSENT),
        DeviceLine(device="e", round=1, status="not-in-cohort"),
        DeviceLine(device="f", round=2, status="uploaded", seconds={"train": 1.0, "receive": 0.5}),
    ]
    found = {(bar.row, bar.look): (bar.start_s, bar.end_s) for bar in bars_of(rounds, lines, list("abcdef"))}
    assert found[0, "train"] == (103.4, 104.0) and found[0, "upload"] == (104.0, 104.2)
    assert found[0, "wait"] == (104.2, 105.0)
    assert found[1, "declined"][0] == 103.0
    assert found[2, "dropped out"] == (104.0, 105.0)
    assert found[3, "away"] == (103.0, 106.0)  # until the next round
    assert not any(row == 4 for row, _ in found)
    # Lengths alone: in the order of a round.
    assert found[5, "receive"] == (106.0, 106.5) and found[5, "train"] == (106.5, 107.5)


# --------------------------------------------------------------------------- events, conditions


def test_events_and_failures_are_listed(tmp_path: Path) -> None:
    made_folder(tmp_path, Made(("share-only", "fedpruneshare"), (1,), rounds=10, devices=9, cohort=6))
    text = words(tables.events(one_report(read_folder(tmp_path))))
    assert "share-only 1 5 FAILED: contributors 2, expected 6" in text
    assert "fedpruneshare 1 10 reboot device-08" in text


def test_conditions_are_told_as_they_were_recorded(report: Report) -> None:
    text = words(emulation(report))
    assert "Links are emulated in network namespaces of this machine, by tap." in text
    assert "The reason for this choice: outages are asked for. TCP's congestion control: cubic." in text
    assert "lte 3 up 2000 kbit/s 40 ± 5 ms 1 % 1987.4 kbit/s 40.6 ms (40.2 expected) 9 of 1000" in text
    assert "wifi 6 down no limit 2 ± 0 ms 0 % not measured" in text
    assert "Processor speed is emulated (cgroup)" in text
    assert "Joules are modelled, not measured" in text
    assert "links.self_test.lte.up.kbit_s 1987.4" in text
    assert "boards.memory yes" in text


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({}, "The network is not shaped"),
        ({"links": {"backend": "none"}}, "The network is not shaped"),
        ({"links": {"backend": "application"}}, "Links are emulated at the application's links"),
        ({"engine": {"name": "synthetic"}}, "train nothing"),
        ({"engine": "ray"}, "Ray placed"),
        ({"links": {"1": {"backend": "netem"}, "2": {"backend": "netem"}}}, "of this machine, by netem."),
        ({"boards": {"cpu": "cgroup", "thermal": {"ambient_c": 25}}}, "Heat and throttling are emulated"),
        ({"ledger": {"devices": 4, "payload_checked": 3}}, "Ledgers of devices checked: 3 of 4 against"),
    ],
)
def test_what_is_emulated_follows_the_conditions(tmp_path: Path, conditions: dict[str, object], said: str) -> None:
    made_folder(tmp_path, Made(("fedpruneshare",), (1,), 3, 4, 3, conditions=conditions))
    assert said in words(emulation(one_report(read_folder(tmp_path))))


def test_nested_conditions_become_paths() -> None:
    assert flat({"a": {"b": [1, 2], "c": [{"d": 3}, {"d": 4}]}, "e": None}) == {
        "a.b": [1, 2], "a.c.0.d": 3, "a.c.1.d": 4, "e": None,
    }  # fmt: skip


# --------------------------------------------------------------------------- text from outside


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_nothing_that_a_run_says_becomes_markup_or_mathematics(tmp_path: Path) -> None:
    made_folder(tmp_path, Made(("fedpruneshare",), (1,), rounds=4, devices=6, cohort=5, conditions={EVIL: EVIL}))
    plain = len(tags_of(render_page(one_report(read_folder(tmp_path)), [])))
    evil = json.dumps(f"$\\frac{{ {EVIL}")[1:-1]
    for name in ("devices.jsonl", "rounds.jsonl"):
        text = (tmp_path / name).read_text()
        for word in ("aggregator-1", "device-05", "raspberry-pi-5", "wifi", "rung_max", "battery at 4 %", "train"):
            text = text.replace(word, evil)
        (tmp_path / name).write_text(text)
    found = tags_of(write_report(tmp_path).read_text())
    assert "script" not in found
    # Plots are drawn, too: none of it is mathematics, and nothing is left out but the devices that went into one.
    assert abs(len(found) - plain) < 90


def tags_of(page: str) -> list[str]:
    tags = Tags()
    tags.feed(page)
    return tags.tags


def test_a_cell_of_the_csv_is_never_a_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"a": "=1+1", "b": -1.5, "c": "@x", "d": None, "e": ("-1", "2"), "f": True}])
    assert (tmp_path / "x.csv").read_text() == "a,b,c,d,e,f\n'=1+1,-1.5,'@x,,'-1; 2,true\n"


# --------------------------------------------------------------------------- many rows, much time


def test_rows_beyond_the_cap_are_counted() -> None:
    made = markup.table(["a"], [[str(index)] for index in range(1300)], 100, "devices.csv")
    assert made.count("<td>") == 100
    assert "1\u202f200 further rows are in devices.csv." in made


def test_a_large_comparison_takes_less_than_twenty_seconds_of_a_processor(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, Made(seeds=(1, 2, 3), rounds=60, devices=30, cohort=10))
    assert len(read_rounds(folder / "rounds.jsonl")) == 4 * 3 * 61
    before_s = time.process_time()
    page = write_report(folder)
    assert time.process_time() - before_s < 20
    assert page.stat().st_size < 6_000_000


def test_the_same_drawing_is_the_same_bytes() -> None:
    pictures = []
    for _ in range(2):
        with sheet("x", "X") as paper:
            paper.axes().plot([1, 2], [3, 4])
        pictures.append((paper.finished.svg, paper.finished.png))
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("mean", "sd", "said"),
    [
        (1_113_000.0, 37_500.0, "1.11 ± 0.04 MB"),
        (712_300.0, 9_920.0, "712 ± 10 kB"),
        (94.0, None, "94 B"),
        (0.0, 0.0, "0 ± 0 B"),
        (2.5e12, None, "2500 GB"),
    ],
)
def test_a_mean_and_its_spread_stand_in_one_unit(mean: float, sd: float | None, said: str) -> None:
    assert markup.with_spread(mean, sd, markup.BYTE_UNITS) == said


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(98, 1000, "9.8 %"), (3, 1000, "0.3 %"), (1000, 98, "× 10"), (3.2, 1, "× 3.20"), (1, 0, "–"), (1, 1, "100.0 %")],
)
def test_ratios_for_readers(part: float, whole: float, said: str) -> None:
    assert markup.ratio(part, whole) == said


@pytest.mark.parametrize(
    ("length_s", "said"), [(7.46, "7.5 s"), (342, "342 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_durations_for_readers(length_s: float, said: str) -> None:
    assert markup.seconds(length_s) == said
