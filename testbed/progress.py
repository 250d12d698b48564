"""How a run shows that it moves: a bar with metric and bytes on a terminal, one line a round elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from fedpruneshare.metrics import METRICS, MetricName
from testbed.ledger import CoordinatorRound
from testbed.report.page import size


class Progress:
    """Shows one run after the other. Draws only when told something: no thread beside the one that runs the fleet."""

    def __init__(self, console: Console | None = None, echo: Callable[[str], None] = click.echo) -> None:
        self._console = console or Console()
        self._echo = echo
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._count = 0
        self._accuracy: float | None = None
        self._metric = METRICS["accuracy"]

    def say(self, text: str) -> None:
        """A line of text, above the bar where there is one."""
        if self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        else:
            self._echo(text)

    def begin(self, rounds: int, metric: MetricName = "accuracy") -> None:
        """A run of so many rounds begins, whose models are measured by `metric`."""
        self._count, self._accuracy, self._metric = rounds, None, METRICS[metric]
        if self._console.is_terminal:
            columns = (
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
            )
            self._bars = Bars(*columns, console=self._console, auto_refresh=False)
            self._task = self._bars.add_task("rounds", total=rounds, facts="waiting for the devices")
            self._bars.start()

    def round_done(self, line: CoordinatorRound, uplink_bytes: int) -> None:
        """A round has finished; `uplink_bytes` is what all devices have sent so far."""
        if line.accuracy is not None:
            self._accuracy = line.accuracy
        failed = line.phase == "FAILED"
        if self._bars is None or failed:
            self.say(self._sentence(line, uplink_bytes))
        if self._bars is not None:
            facts = f"{self._measured(self._accuracy)}  uplink {size(uplink_bytes)}"
            self._bars.update(self._task, advance=1, facts=facts, refresh=True)

    def end(self) -> None:
        """The run is over, whether it came to its end or not. Idempotent."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _sentence(self, line: CoordinatorRound, uplink_bytes: int) -> str:
        outcome = f"{line.phase} ({line.reason})" if line.reason else line.phase
        facts = [
            f"round {line.round} of {self._count}: {outcome}",
            self._measured(line.accuracy),
            f"density {_percent(line.density)}",
            f"{line.contributors} devices",
            f"uplink so far {size(uplink_bytes)}",
        ]
        return ", ".join(facts)

    def _measured(self, score: float | None) -> str:
        return f"{self._metric.name} {self._metric.show(score) or '–'}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
