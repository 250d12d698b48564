"""Several runs at once on a terminal: one table, a row a run, from what each writes to its progress.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpruneshare.metrics import METRICS
from testbed.report.markup import size
from testbed.watching.state import RunState, read_progress, what_goes_on
from testbed.watching.view import clock, sparkline

_EVERY_S: Final = 0.5
_SPARKS: Final = 16
_STYLES: Final = {"running": "yellow", "finished": "green", "kept": "green", "waiting": "dim", "failed": "red"}


class Named(Protocol):
    """Which run a job is."""

    @property
    def arm(self) -> str:
        """Arm of the comparison."""

    @property
    def seed(self) -> int:
        """Seed of the run."""


class JobLike(Protocol):
    """A job and how it stands, as `testbed.compare.runner.JobState` says."""

    @property
    def job(self) -> Named:
        """Which run."""

    @property
    def state(self) -> str:
        """`waiting`, `running`, `finished`, or `kept` from before."""

    @property
    def folder(self) -> Path:
        """The run folder."""


@contextmanager
def live_jobs(console: Console) -> Iterator[Callable[[Sequence[JobLike]], None]]:
    """While the block lasts, what is yielded draws the jobs it is given, twice a second at most, over the old table."""
    drawn_at = float("-inf")
    with Live(console=console, auto_refresh=False) as live:
        shown: Sequence[JobLike] = ()

        def watch(jobs: Sequence[JobLike]) -> None:
            nonlocal drawn_at, shown
            shown = jobs
            if time.monotonic() - drawn_at >= _EVERY_S:
                live.update(jobs_table(jobs), refresh=True)
                drawn_at = time.monotonic()

        try:
            yield watch
        finally:
            live.update(jobs_table(shown), refresh=True)


def jobs_table(jobs: Sequence[JobLike]) -> Table:
    """One row a job; what a run does not say yet stays blank."""
    done = sum(one.state in ("finished", "kept") for one in jobs)
    table = Table(title=f"{done} of {len(jobs)} runs done", title_justify="left", box=None, pad_edge=False)
    for name in ("arm", "seed", "state", "round", "score", "", "up", "down", "time"):
        table.add_column(name, justify="left" if name in ("arm", "state", "") else "right", no_wrap=True)
    for one in jobs:
        found = None if one.state == "waiting" else read_progress(one.folder)
        table.add_row(one.job.arm, str(one.job.seed), _standing(one, found), *_facts(found))
    return table


def _standing(one: JobLike, found: RunState | None) -> Text:
    doing = what_goes_on(found.devices) if found is not None and one.state == "running" else ""
    return Text(f"{one.state}, {doing}" if doing else one.state, style=_STYLES.get(one.state, ""))


def _facts(found: RunState | None) -> tuple[str, ...]:
    if found is None:
        return ("",) * 6
    failed = f" ({found.rounds_failed} failed)" if found.rounds_failed else ""
    return (
        f"{found.closed}/{found.rounds}{failed}",
        METRICS[found.metric].show(found.accuracy),
        sparkline(found.accuracies, _SPARKS),
        size(found.uplink_bytes),
        size(found.downlink_bytes),
        clock(found.seconds),
    )
