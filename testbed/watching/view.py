"""A run on a terminal: what `RunState` says, as a few lines that are drawn over again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedpruneshare.metrics import METRICS
from testbed.report.markup import size
from testbed.watching.state import RunState, what_goes_on

_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARKS: Final = 40
_EVENTS: Final = 3
_STYLES: Final = {
    "training": "yellow", "uploading": "cyan", "waiting": "green", "declined": "red", "offline": "red",
    "refused": "red", "cut short": "red", "not asked": "dim", "idle": "dim",
}  # fmt: skip


def view(state: RunState) -> RenderableType:
    """The whole view, about eight lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("round", _rounds(state))
    table.add_row("devices", _devices(state))
    table.add_row("bytes", _bytes(state))
    if state.joules:
        table.add_row("energy", ", ".join(f"{joules:.4g} J ({source})" for source, joules in state.joules.items()))
    table.add_row(METRICS[state.metric].name, _accuracy(state))
    for number, text in enumerate(state.events[-_EVENTS:]):
        table.add_row("" if number else "events", Text(text))
    return Group(_header(state), table)


def _header(state: RunState) -> Text:
    header = Text(state.scenario or "run", style="bold")
    header.append(f"  {state.arm}  seed {state.seed}  {clock(state.seconds)}", style="not bold")
    return header


def _rounds(state: RunState) -> RenderableType:
    doing = what_goes_on(state.devices) if state.round else "waiting for the devices"
    failed = f", {state.rounds_failed} failed" if state.rounds_failed else ""
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, state.rounds), completed=state.closed, width=24)
    row.add_row(bar, f"{state.closed} of {state.rounds} done{failed}", Text(_under_way(state, doing), style="yellow"))
    return row


def _under_way(state: RunState, doing: str) -> str:
    if state.state in ("finished", "failed"):
        return state.state
    if state.closed >= state.rounds:
        return "all rounds done"
    return f"round {state.round}: {doing}" if state.round and doing else doing or f"round {state.round}"


def _devices(state: RunState) -> Text:
    line = Text()
    for name, count in state.devices.items():
        line.append(f"{name} {count}", style=_STYLES.get(name, ""))
        line.append("  ")
    return line


def _bytes(state: RunState) -> str:
    payload = f"up {size(state.uplink_bytes)}, down {size(state.downlink_bytes)}"
    if state.wire_up is None or state.wire_down is None:
        return payload
    return f"{payload}; at the interfaces up {size(state.wire_up)}, down {size(state.wire_down)}"


def _accuracy(state: RunState) -> Text:
    metric = METRICS[state.metric]
    if state.accuracy is None:
        return Text("–")
    best = metric.best(list(state.accuracies))
    line = Text(metric.show(state.accuracy), style="bold")
    line.append(f"  {sparkline(state.accuracies)}", style="green")
    line.append(f"  best {metric.show(best)}", style="not bold")
    return line


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
    """The newest values as a row of bars from the lowest of them to the highest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (value - low) / (high - low)) if high > low else steps // 2] for value in shown)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
