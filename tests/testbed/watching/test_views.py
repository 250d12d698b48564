"""The views on a terminal, as they are drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from testbed.ledger.rounds import CoordinatorRound
from testbed.watching.jobs import jobs_table, live_jobs
from testbed.watching.progress import Progress
from testbed.watching.state import RunState, write_progress
from testbed.watching.view import clock, sparkline, view

STATE = RunState(
    "fashion-mnist-pi-fleet", "prune-only", 7, "running", 100.0, 3825.0, 5, 20, 3, 1, "accuracy", (0.1, 0.5, 0.784),
    1_500_000, 12_300_000, 1_600_000, 13_000_000, {"model": 12.345, "rapl": 3.0}, {"training": 6, "offline": 1},
    ("device-03 rebooted",),
)  # fmt: skip


def drawn(shown: RenderableType, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(shown)
    return console.export_text()


def test_the_view_says_where_the_run_is_and_what_it_has_cost() -> None:
    text = drawn(view(STATE))
    for part in (
        "fashion-mnist-pi-fleet  prune-only  seed 7  1:02:05",
        "4 of 20 done, 1 failed round 5: training",
        "training 6  offline 1",
        "up 1.5 MB, down 12.3 MB; at the interfaces up 1.6 MB, down 13 MB",
        "12.35 J (model), 3 J (rapl)",
        "78.4 %  ▁▅█  best 78.4 %",
        "device-03 rebooted",
    ):
        assert part in text
    assert len(text.splitlines()) == 7


def test_a_run_that_has_nothing_to_say_yet_says_so() -> None:
    text = drawn(view(RunState("demo", "fedpruneshare", 1, rounds=20)))
    assert "0 of 20 done waiting for the devices" in text
    assert "up 0 B, down 0 B" in text
    assert "interfaces" not in text
    assert "J (" not in text


def test_of_an_error_the_smallest_is_the_best() -> None:
    assert "best 1.5" in drawn(view(RunState(metric="rmse", accuracies=(2.0, 1.5, 1.8))))


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_view_fits_narrow_and_wide_terminals(width: int) -> None:
    assert all(len(line) <= width for line in drawn(view(STATE), width).splitlines())


def test_sparklines_go_from_the_lowest_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5]) == "▄"
    assert sparkline([1, 1, 1]) == "▄▄▄"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([9.0, *range(50)], width=3) == "▁▅█"
    assert (clock(59), clock(3600)) == ("0:59", "1:00:00")


def test_progress_draws_the_view_over_itself_and_failed_rounds_above_it() -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=120), pytest.fail)
    progress.begin(20)
    progress.show(STATE)
    progress.round_done(CoordinatorRound(1, "APPLIED", accuracy=0.5), 1_500_000)
    progress.round_done(CoordinatorRound(2, "FAILED", "too few"), 1_600_000)
    progress.end()
    progress.end()
    shown = screen.getvalue()
    assert "4 of 20 done" in shown
    assert "\x1b[1A" in shown  # it moves up and draws again
    assert "round 2 of 20: FAILED (too few)" in shown
    assert "round 1 of 20" not in shown


def test_without_a_terminal_nothing_is_drawn() -> None:
    lines: list[str] = []
    screen = io.StringIO()
    progress = Progress(Console(file=screen), lines.append)
    progress.begin(20)
    progress.show(STATE)
    progress.end()
    assert (lines, screen.getvalue()) == ([], "")


@dataclass(frozen=True)
class Job:
    arm: str
    seed: int


@dataclass(frozen=True)
class Standing:
    job: Job
    state: str
    folder: Path


def test_jobs_stand_in_one_table(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_progress(tmp_path / "run", STATE)
    jobs = [
        Standing(Job("fedavg", 1), "kept", tmp_path / "none"),
        Standing(Job("prune-only", 7), "running", tmp_path / "run"),
        Standing(Job("fedavg", 2), "waiting", tmp_path / "run"),
    ]
    text = drawn(jobs_table(jobs))
    assert "1 of 3 runs done" in text
    (line,) = (line.split() for line in text.splitlines() if "prune-only" in line)
    assert line == ["prune-only", "7", "running,", "training", "4/20", "(1", "failed)", "78.4", "%", "▁▅█", "1.5", "MB",
                    "12.3", "MB", "1:02:05"]  # fmt: skip
    (blank,) = (line.split() for line in text.splitlines() if "waiting" in line)
    assert blank == ["fedavg", "2", "waiting"]


def test_the_table_of_jobs_is_drawn_over_itself(tmp_path: Path) -> None:
    screen = io.StringIO()
    with live_jobs(Console(file=screen, force_terminal=True, width=100)) as watch:
        watch([Standing(Job("fedavg", 1), "waiting", tmp_path)])
        watch([Standing(Job("fedavg", 1), "finished", tmp_path)])  # too soon to be drawn, but it is what stays
    assert "0 of 1 runs done" in screen.getvalue()
    assert "1 of 1 runs done" in screen.getvalue()
