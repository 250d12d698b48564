"""The report: its plots are inside, it fetches nothing, and no text from a run becomes markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedpruneshare.cli import run as command_line
from fedpruneshare.errors import SettingsError
from fedpruneshare.settings import render_toml
from testbed.ledger.rounds import BytesDown, BytesUp, CoordinatorRound, DeviceRound, merge, write_rounds
from testbed.report.markup import joules, size
from testbed.report.page import render_page, write_report
from testbed.report.runs import one_report, read_folder
from testbed.scenario import Scenario, ScenarioTask
from testbed.summary import ARM, SeedRun, Sharing, Summary, arm_figures, write_summary

EVIL = "</td><script>alert(1)</script>"


def run_folder(
    folder: Path, seeds: tuple[int, ...] = (1,), data: str = "full", text: str = "plain", reveal: str = "sum"
) -> Path:
    runs = []
    for seed in seeds:
        rounds = [
            CoordinatorRound(1, "APPLIED", accuracy=0.4, density=1.0, verified=True, rungs=(1, 1), contributors=2),
            CoordinatorRound(2, "FAILED", text, density=0.5),
            CoordinatorRound(
                3,
                "APPLIED",
                accuracy=0.75,
                density=0.25,
                seconds={"total": 1.5},
                contributors=2,
                left_out_devices=("device-<3>",),
                wrong_aggregators=("aggregator-2",),
            ),
        ]
        lines = [DeviceRound(n, "uploaded", up=BytesUp(30_000, 0, 9), down=BytesDown(7_000)) for n in (1, 3)]
        runs.append(SeedRun(merge(seed, rounds, {"a": lines, "b": lines}), 3.0, Sharing(3, 2, 1, reveal)))  # type: ignore[arg-type]
    summary = Summary(scenario=text, seeds=seeds, task=text, devices=2, emulated=True, arms={ARM: arm_figures(runs)})
    task = ScenarioTask("hapt", data=data)  # type: ignore[arg-type]
    write_summary(folder / "summary.json", summary)
    write_rounds(folder / "rounds.jsonl", [line for run in runs for line in run.rounds])
    (folder / "settings.toml").write_text(render_toml(Scenario(name="x", description=text, seeds=seeds, task=task)))
    return folder


def text_of(folder: Path) -> str:
    """The page without its plots, which take seconds."""
    return render_page(one_report(read_folder(folder)), [])


class Links(HTMLParser):
    """Collects every tag and whatever a page could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


def parsed(page: str) -> Links:
    links = Links()
    links.feed(page)
    return links


def test_the_plots_are_inside_the_page_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    links = parsed(page)
    assert len(links.sources) == 7
    for source in links.sources:
        head, _, body = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        drawing = ElementTree.fromstring(base64.b64decode(body))
        assert sum(1 for _ in drawing.iter("{http://www.w3.org/2000/svg}path")) > 10
    assert "url(" not in page
    assert "@import" not in page
    assert {"script", "link", "iframe"}.isdisjoint(links.tags)


def test_it_says_the_figures_the_rounds_and_their_reasons(tmp_path: Path) -> None:
    page = text_of(run_folder(tmp_path, text="contributors 2, expected 6"))
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("57.5 %", "75.0 %", "25.0 %", "FAILED: contributors 2, expected 6", "60 kB", "2 of 3", "[sharing]"):
        assert words in text, words
    assert 'class="failed"' in page


def test_an_error_is_shown_as_a_number_under_its_name(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    summary = (folder / "summary.json").read_text().replace('"metric": "accuracy"', '"metric": "rmse"')
    (folder / "summary.json").write_text(summary)
    text = re.sub(r"<[^>]+>", " ", text_of(folder))
    for words in ("final rmse", "last rmse", "0.75", "25.0 %"):
        assert words in text, words
    assert "ccuracy" not in text and "75.0 %" not in text


def test_sample_data_is_said_aloud(tmp_path: Path) -> None:
    assert "Sample data." in text_of(run_folder(tmp_path, data="fixture"))
    assert "Sample data." not in text_of(run_folder(tmp_path, data="full"))


def test_that_synthetic_devices_learn_nothing_is_said_aloud(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    settings = (folder / "settings.toml").read_text("utf-8")
    assert "Synthetic devices." not in text_of(folder)
    made = settings.replace('engine = "process"', 'engine = "synthetic"').replace('name = "hapt"', 'name = "synthetic"')
    (folder / "settings.toml").write_text(made, "utf-8")
    assert made != settings
    assert "Synthetic devices." in text_of(folder)


def test_it_says_who_could_see_a_single_update(tmp_path: Path) -> None:
    (tmp_path / "sum").mkdir()
    (tmp_path / "each").mkdir()
    sums = text_of(run_folder(tmp_path / "sum"))
    assert "Up to t = 1 of the 3 aggregators together" in sums
    assert "the coordinator saw only sums" in sums
    assert "Single updates are visible." not in sums
    each = text_of(run_folder(tmp_path / "each", reveal="each"))
    assert "Single updates are visible." in each
    assert each.count("The coordinator saw every single update in this run (reveal = each).") == 2
    assert "saw only sums" not in each


def test_it_names_who_was_found_out(tmp_path: Path) -> None:
    page = text_of(run_folder(tmp_path))
    assert "Round 3: left out device-&lt;3&gt;; answered otherwise than the rest: aggregator-2" in page


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = text_of(run_folder(tmp_path, text=EVIL))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "script" not in parsed(page).tags


def test_several_seeds_are_told_apart(tmp_path: Path) -> None:
    page = text_of(run_folder(tmp_path, seeds=(3, 8)))
    assert ">seed</th>" in page
    assert "fedpruneshare, seed 8" in page


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_the_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path)
    assert command_line(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="holds no summary"):
        write_report(tmp_path / "elsewhere")
    assert command_line(["report", str(tmp_path / "elsewhere")]) == 2


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345, "12.3 kB"),
        (999_000, "999 kB"),
        (4_560_000, "4.56 MB"),
        (3e12, "3000 GB"),
    ],
)
def test_sizes_for_readers(count: float, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("energy_j", "words"),
    [(0.123, "0.123 J"), (99.96, "100 J"), (999.7, "1 kJ"), (2e6, "2 MJ"), (5e9, "5000 MJ")],
)
def test_joules_for_readers(energy_j: float, words: str) -> None:
    assert joules(energy_j) == words
