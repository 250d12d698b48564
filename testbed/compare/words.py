"""What `testbed compare` says: how its runs stand, and one line an arm at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console

from fedpruneshare.metrics import METRICS
from testbed.arms import FEDAVG
from testbed.compare.runner import JobState, Watch
from testbed.report.markup import size
from testbed.summary import Arm, Summary
from testbed.watching.jobs import live_jobs


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A table of the runs on a terminal; elsewhere one line whenever a run starts or ends."""
    if not console.is_terminal:
        yield plain_watch(click.echo)
        return
    with live_jobs(console) as watch:
        yield watch


def plain_watch(say: Callable[[str], None]) -> Callable[[Sequence[JobState]], None]:
    """A watch that says one line whenever a run starts or ends."""
    said: dict[str, str] = {}

    def watch(states: Sequence[JobState]) -> None:
        done = sum(state.state in ("finished", "kept") for state in states)
        for state in states:
            if state.state != said.get(state.job.name, "waiting"):
                said[state.job.name] = state.state
                say(f"{state.job.arm}, seed {state.job.seed}: {state.state} ({done} of {len(states)} runs done)")

    return watch


def conclusion(summary: Summary) -> list[str]:
    """One line an arm: metric, uplink and downlink, with the ratio to plain FedAvg where that was run."""
    return [_line(name, arm, summary) for name, arm in summary.arms.items()]


def _line(name: str, arm: Arm, summary: Summary) -> str:
    metric, base = METRICS[summary.metric], summary.arms.get(FEDAVG)
    spread = f" ± {metric.show(arm.final_accuracy_sd)}" if len(arm.by_seed) > 1 else ""
    last = arm.uplink_bytes_last_round_per_device
    facts = [
        f"final {metric.name} {metric.show(arm.final_accuracy)}{spread}",
        f"uplink {size(arm.uplink_bytes)}{_ratio(arm.uplink_bytes, base.uplink_bytes if base else None)}",
        f"last round {size(last)} a device{_ratio(last, base.uplink_bytes_last_round_per_device if base else None)}",
        f"downlink {size(arm.downlink_bytes)}{_ratio(arm.downlink_bytes, base.downlink_bytes if base else None)}",
    ]
    if arm.rounds_failed:
        facts.append(f"{arm.rounds_failed} rounds failed")
    return f"{name}: " + ", ".join(facts)


def _ratio(found: float, base: float | None) -> str:
    return f" ({100 * found / base:.1f} % of {FEDAVG})" if base else ""
