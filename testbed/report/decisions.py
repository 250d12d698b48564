"""Plots of what devices decided: the rung they took in each round, and the constraint that bound it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from testbed.report.drawing import (
    COLOURS,
    EDGE,
    FAILED_COLOUR,
    Drawing,
    legend_above,
    sheet,
    short,
    stacked_bars,
    whole_numbers,
)
from testbed.report.runs import ArmRun, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a reader is told of a constraint (`edge_client.density.Constraint`), and its colour.
CONSTRAINTS: Final = {
    "plan": ("all the plan offers", COLOURS[5]),
    "rung_max": ("the device's own limit", COLOURS[0]),
    "deadline": ("deadline", COLOURS[1]),
    "memory": ("memory", COLOURS[3]),
    "energy": ("energy", COLOURS[4]),
    "temperature": ("temperature", FAILED_COLOUR),
    "battery": ("battery", COLOURS[6]),
}
_RUNG_COLOURS: Final = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#7a5195", "#d55e00", "#6b7280")
_DECLINED: Final = "declined"
Counts = Mapping[int, Mapping[str, float]]


def decisions(report: Report) -> Iterator[Drawing]:
    """A plot for each arm in which devices had a choice."""
    for index, arm in enumerate(report.arms):
        rungs, constraints = counts_by_rung(arm), counts_by_constraint(arm)
        if len({name for row in rungs.values() for name in row}) > 1 or _are_bound(constraints):
            yield _decisions(arm, index, rungs, constraints)


def _are_bound(constraints: Counts) -> bool:
    return bool({name for row in constraints.values() for name in row} - {"plan"})


def counts_by_rung(arm: ArmRun) -> Counts:
    """Devices by round and rung, mean over the seeds; of the contributors alone where no device's lines are known."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for line in arm.devices:
        if line.round and line.status == _DECLINED:
            found[line.round][_DECLINED] += 1
        elif line.round and line.rung is not None:
            found[line.round][_rung(line.rung)] += 1
    if not arm.devices:
        for entry in arm.rounds:
            found[entry.round].update({_rung(rung): count for rung, count in enumerate(entry.rungs) if count})
    return _mean(found, len(arm.seeds))


def counts_by_constraint(arm: ArmRun) -> Counts:
    """Devices by round and by what bound their decision, mean over the seeds."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for line in arm.devices:
        if line.round and line.constraint:
            found[line.round][line.constraint] += 1
    return _mean(found, len(arm.seeds))


def _rung(rung: int) -> str:
    return f"rung {rung}"


def _mean(found: Mapping[int, Counter[str]], seeds: int) -> Counts:
    return {
        number: {name: count / seeds for name, count in row.items()} for number, row in sorted(found.items()) if row
    }


def _decisions(arm: ArmRun, index: int, rungs: Counts, constraints: Counts) -> Drawing:
    note = "Devices of the cohort by the rung they took" + (
        " (above) and by why it was not a larger one (below)" if constraints else ""
    )
    note += ", mean over the seeds." if len(arm.seeds) > 1 else "."
    with sheet(f"decisions-{index + 1}", f"Density decisions: {arm.name}", note) as paper:
        panels = 2 if constraints else 1
        paper.figure.set_figheight(2.0 + 1.6 * panels)
        top = paper.figure.add_subplot(panels, 1, 1)
        _stacked(top, rungs, _rung_styles(rungs))
        legend_above(top, 6)
        if constraints:
            below = paper.figure.add_subplot(panels, 1, 2, sharex=top)
            _stacked(below, constraints, _constraint_styles(constraints))
            legend_above(below, 4)
        paper.figure.axes[-1].set_xlabel("round")
        whole_numbers(top)
    return paper.finished


def _rung_styles(rungs: Counts) -> dict[str, tuple[str, str]]:
    names = sorted({name for row in rungs.values() for name in row} - {_DECLINED}, key=lambda name: int(name[5:]))
    styles = {name: (name, _RUNG_COLOURS[int(name[5:]) % len(_RUNG_COLOURS)]) for name in names}
    is_declined = any(_DECLINED in row for row in rungs.values())
    return styles | ({_DECLINED: (_DECLINED, FAILED_COLOUR)} if is_declined else {})


def _constraint_styles(constraints: Counts) -> dict[str, tuple[str, str]]:
    names = {name for row in constraints.values() for name in row}
    known = {name: style for name, style in CONSTRAINTS.items() if name in names}
    return known | {name: (short(name), EDGE) for name in sorted(names - set(CONSTRAINTS))}


def _stacked(axes: Axes, counts: Counts, styles: Mapping[str, tuple[str, str]]) -> None:
    stack = {
        label: (colour, [row.get(name, 0.0) for row in counts.values()]) for name, (label, colour) in styles.items()
    }
    stacked_bars(axes, list(counts), stack)
    axes.set_ylabel("devices")
    axes.grid(visible=False, axis="x")
