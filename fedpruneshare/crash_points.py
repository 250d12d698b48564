"""Where a process may lose power: the steps of a round that tests stop it at (docs/protocol.md §9).

`reach` does nothing at all unless something has been installed to watch, which no command of the product does: the
fault tests start a service through a script of their own that does. NAME.before and NAME.after lie around what is made
durable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

POINTS: Final[dict[str, tuple[str, ...]]] = {
    "device": (
        "device.plan-verified",
        "device.model-stored",
        "device.training",
        "device.trained",
        "device.encoded",
        "device.upload-persisted.before",
        "device.upload-persisted.after",
        "device.chunk-sent",
        "device.first-receipt",
        "device.last-receipt",
        "device.round-finished.before",
        "device.round-finished.after",
        "device.model-verified",
        "device.model-taken",
        "device.slot-switched.before",
        "device.slot-switched.after",
    ),
    "aggregator": (
        "aggregator.plan-accepted.before",
        "aggregator.plan-accepted.after",
        "aggregator.chunk-received",
        "aggregator.chunk-opened",
        "aggregator.rows-written",
        "aggregator.chunks-committed.before",
        "aggregator.chunks-committed.after",
        "aggregator.receipted",
        "aggregator.attendance-signed.before",
        "aggregator.attendance-signed.after",
        "aggregator.freeze-persisted.before",
        "aggregator.freeze-persisted.after",
        "aggregator.sum-computed",
        "aggregator.sum-persisted.before",
        "aggregator.sum-persisted.after",
        "aggregator.sum-sent",
        "aggregator.round-closed.before",
        "aggregator.round-closed.after",
    ),
    "coordinator": (
        "coordinator.plan-made",
        "coordinator.round-persisted.before",
        "coordinator.round-persisted.after",
        "coordinator.plan-published",
        "coordinator.attendance-gathered",
        "coordinator.freeze-chosen",
        "coordinator.freeze-persisted.before",
        "coordinator.freeze-persisted.after",
        "coordinator.freeze-sent",
        "coordinator.sums-gathered",
        "coordinator.reconstructed",
        "coordinator.model-written.before",
        "coordinator.model-written.after",
        "coordinator.round-closed.before",
        "coordinator.round-closed.after",
        "coordinator.outcome-published",
    ),
}

_observers: list[Callable[[str], None]] = []


def observe(observer: Callable[[str], None] | None) -> None:
    """Install what is told of every point that is reached (None: nobody)."""
    _observers[:] = [] if observer is None else [observer]


def reach(point: str) -> None:
    """A point is reached. `point`: one of `POINTS`."""
    for observer in _observers:
        observer(point)
