"""How a run shows that it moves: a view that is drawn over again on a terminal, one line a round elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import click
from rich.console import Console
from rich.live import Live

from fedpruneshare.metrics import METRICS, MetricName
from testbed.ledger.rounds import CoordinatorRound
from testbed.report.markup import size
from testbed.watching.state import RunState
from testbed.watching.view import view


class Progress:
    """Shows one run after the other. Draws only when told something: no thread beside the one that runs the fleet."""

    def __init__(self, console: Console | None = None, echo: Callable[[str], None] = click.echo) -> None:
        self._console = console or Console()
        self._echo = echo
        self._live: Live | None = None
        self._count = 0
        self._metric = METRICS["accuracy"]

    def say(self, text: str) -> None:
        """A line of text, above the view where there is one."""
        if self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        else:
            self._echo(text)

    def begin(self, rounds: int, metric: MetricName = "accuracy") -> None:
        """A run of so many rounds begins, whose models are measured by `metric`."""
        self._count, self._metric = rounds, METRICS[metric]
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()

    def show(self, state: RunState) -> None:
        """How the run stands now; on a terminal only."""
        if self._live is not None:
            self._live.update(view(state), refresh=True)

    def round_done(self, line: CoordinatorRound, uplink_bytes: int) -> None:
        """A round has finished; `uplink_bytes` is what all devices have sent so far."""
        if self._live is None or line.phase == "FAILED":
            self.say(self._sentence(line, uplink_bytes))

    def end(self) -> None:
        """The run is over, whether it came to its end or not; the last view stays. Idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _sentence(self, line: CoordinatorRound, uplink_bytes: int) -> str:
        outcome = f"{line.phase} ({line.reason})" if line.reason else line.phase
        facts = [
            f"round {line.round} of {self._count}: {outcome}",
            f"{self._metric.name} {self._metric.show(line.accuracy) or '–'}",
            f"density {_percent(line.density)}",
            f"{line.contributors} devices",
            f"uplink so far {size(uplink_bytes)}",
        ]
        return ", ".join(facts)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
