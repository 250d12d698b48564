"""Plots of amounts: bytes by cause, joules by phase, and what the interface carried beyond the payload."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from testbed.report.drawing import (
    BLUES,
    COLOURS,
    EDGE,
    FAILED_COLOUR,
    INK,
    MARKERS,
    PALE,
    Drawing,
    legend_above,
    plain_log,
    sheet,
    short,
    stacked_bars,
    whole_numbers,
)
from testbed.report.measures import source_of, source_text, sources
from testbed.report.runs import ArmRun, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Order and colours of the phases of a device's round (`edge_client.energy.parts.Phase`).
PHASE_COLOURS: Final = {
    "receive": COLOURS[5],
    "prune": COLOURS[6],
    "train": COLOURS[0],
    "encode": COLOURS[3],
    "share": COLOURS[4],
    "send": COLOURS[1],
    "idle": PALE,
}
_UP, _DOWN = ("resent", "control"), ("model", "plan", "receipts", "other")
_CAUSE_COLOURS: Final = {
    "shares": COLOURS[0],
    "resent": FAILED_COLOUR,
    "control": COLOURS[4],
    "model": COLOURS[2],
    "plan": COLOURS[3],
    "receipts": COLOURS[6],
    "other": PALE,
}
_OVERHEAD: Final = "MQTT, TCP and IP headers"
#: Bytes at the interface beyond the payload that framing explains at messages of 20 kB.
_EXPLAINED_PERCENT: Final = 12


def bars(report: Report) -> Iterator[Drawing]:
    """Every plot of this kind that the runs have data for."""
    yield _bytes_by_cause(report)
    if len(report.arms) == 1:
        yield _bytes_by_round(report.arms[0])
    if any(sources(arm) for arm in report.arms):
        yield _energy_by_phase(report)
    if any(line.wire_up is not None for arm in report.arms for line in arm.devices):
        yield _overhead(report)


# --------------------------------------------------------------------------- bytes


def _causes(arm: ArmRun) -> dict[str, dict[str, float]]:
    """Megabytes a seed by direction and cause; the shares by aggregator where that is known."""
    seeds, up, down = len(arm.seeds), defaultdict[str, float](float), defaultdict[str, float](float)
    shares_by: dict[str, float] = defaultdict(float)
    for line in arm.rounds:
        for aggregator, count in line.shares_by.items():
            shares_by[aggregator] += count / 1e6 / seeds
        up["shares"] += line.up.shares / 1e6 / seeds
        for cause in _UP:
            up[cause] += getattr(line.up, cause) / 1e6 / seeds
        for cause in _DOWN:
            down[cause] += getattr(line.down, cause) / 1e6 / seeds
    if shares_by:
        rest = max(0.0, up.pop("shares") - sum(shares_by.values()))
        up = defaultdict(float, {f"shares to {name}": shares_by[name] for name in sorted(shares_by)} | up)
        up |= {"shares": rest} if rest > 1e-6 else {}
    wire = arm.figures.wire_bytes
    if wire.source == "interface":
        up[_OVERHEAD] = max(0.0, wire.up / 1e6 / seeds - sum(up.values()))
        down[_OVERHEAD] = max(0.0, wire.down / 1e6 / seeds - sum(down.values()))
    return {"sent": dict(up), "received": dict(down)}


def _bytes_by_cause(report: Report) -> Drawing:
    rows = [(arm, direction) for arm in report.arms for direction in ("sent", "received")]
    note = "All devices, mean over the seeds." if any(len(arm.seeds) > 1 for arm in report.arms) else "All devices."
    height = max(3.4, 1.3 + 0.42 * len(rows))
    with sheet("bytes-by-cause", "Bytes by cause", note) as paper:
        paper.figure.set_figheight(height)
        axes = paper.axes()
        found = {arm.name: _causes(arm) for arm in report.arms}
        parts = {part for one in found.values() for causes in one.values() for part in causes}
        style = {part: _cause_style(part, index) for index, part in enumerate(sorted(parts, key=_place))}
        _stack(axes, [found[arm.name][direction] for arm, direction in rows], style)
        labels = [
            f"{short(arm.name, 26)}, {direction}" if len(report.arms) > 1 else direction for arm, direction in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("MB" if _has_wire(report) else "MB of MQTT payload")
        legend_above(axes, 3)
    return paper.finished


def _has_wire(report: Report) -> bool:
    return any(arm.figures.wire_bytes.source == "interface" for arm in report.arms)


def _place(cause: str) -> tuple[int, str]:
    """Shares by aggregator first, then the causes in their order, headers last."""
    if cause.startswith("shares to "):
        return -1, cause
    return (len(_CAUSE_COLOURS) if cause == _OVERHEAD else list(_CAUSE_COLOURS).index(cause)), cause


def _cause_style(cause: str, index: int) -> dict[str, str]:
    if cause == _OVERHEAD:
        return {"color": "none", "edgecolor": EDGE, "hatch": "////"}
    if cause.startswith("shares to "):
        return {"color": BLUES[index % len(BLUES)]}
    return {"color": _CAUSE_COLOURS[cause]}


def _stack(axes: Axes, rows: Sequence[Mapping[str, float]], styles: Mapping[str, Mapping[str, str]]) -> None:
    """Horizontal bars, each a stack of what its row holds; the parts in the order of their styles."""
    starts = [0.0] * len(rows)
    for part, style in styles.items():
        widths = [row.get(part, 0.0) for row in rows]
        if any(widths):
            look: dict[str, Any] = {"linewidth": 0.0, **style}
            axes.barh(range(len(rows)), widths, left=starts, height=0.7, label=part.replace("$", r"\$"), **look)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]


def _bytes_by_round(arm: ArmRun) -> Drawing:
    with sheet("bytes-by-round", "Bytes by cause and round", "Sent upwards, received downwards.") as paper:
        axes = paper.axes()
        numbers = sorted({line.round for line in arm.rounds if line.phase != "OUTSIDE"})
        stack = {
            f"{cause}, {'sent' if sign > 0 else 'received'}": (_CAUSE_COLOURS[cause], values)
            for direction, causes, sign in (("up", ("shares", *_UP), 1), ("down", _DOWN, -1))
            for cause in causes
            if any(values := [sign * value for value in _sums(arm, numbers, direction, cause)])
        }
        stacked_bars(axes, numbers, stack)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.yaxis.set_major_formatter(lambda value, _position: f"{abs(value):g}")
        axes.set_xlabel("round")
        axes.set_ylabel("MB of MQTT payload, all devices")
        whole_numbers(axes)
        legend_above(axes, 3)
    return paper.finished


def _sums(arm: ArmRun, numbers: Sequence[int], direction: str, cause: str) -> list[float]:
    """Megabytes by round, mean over the seeds."""
    sums = dict.fromkeys(numbers, 0.0)
    for line in arm.rounds:
        if line.round in sums:
            sums[line.round] += getattr(getattr(line, direction), cause) / 1e6 / len(arm.seeds)
    return list(sums.values())


# --------------------------------------------------------------------------- joules


def _energy_by_phase(report: Report) -> Drawing:
    rows, labels = [], []
    for arm in report.arms:
        for source in sources(arm):
            rows.append(_phases(arm, source))
            parts = ([arm.name] if len(report.arms) > 1 else []) + ([source] if len(sources(arm)) > 1 else [])
            labels.append(short(", ".join(parts), 30))
    named = dict.fromkeys(source_text(source) for arm in report.arms for source in sources(arm))
    note = f"Joules {' and '.join(named)}, all devices; waiting (idle) includes the time between rounds."
    with sheet("energy-by-phase", "Energy by phase", note) as paper:
        axes = paper.axes()
        scale, unit = (1e3, "kJ") if max((sum(row.values()) for row in rows), default=0) >= 2000 else (1, "J")
        scaled = [{phase: joules / scale for phase, joules in row.items()} for row in rows]
        phases = [*PHASE_COLOURS, *sorted({phase for row in rows for phase in row} - set(PHASE_COLOURS))]
        _stack(axes, scaled, {phase: {"color": PHASE_COLOURS.get(phase, EDGE)} for phase in phases})
        axes.set_yticks(range(len(rows)) if any(labels) else [], labels if any(labels) else [])
        paper.figure.set_figheight(max(2.0, 1.6 + 0.45 * len(rows)))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{unit}, one seed's run" if any(len(arm.seeds) > 1 for arm in report.arms) else unit)
        legend_above(axes, 4)
    return paper.finished


def _phases(arm: ArmRun, source: str) -> dict[str, float]:
    """Joules a seed by phase, of one source."""
    sums: dict[str, float] = defaultdict(float)
    for name, part in (arm.figures.energy_j or {}).items():
        if source_of(part.source) == source:
            sums[name.removesuffix(f" ({source})")] += part.value / len(arm.seeds)
    return dict(sums)


# --------------------------------------------------------------------------- interface against payload


def _overhead(report: Report) -> Drawing:
    note = (
        "One mark a device and direction: filled up, hollow down. Bytes at the interface beyond the MQTT payload. "
        f"Dotted: {_EXPLAINED_PERCENT} %, what framing explains at messages of 20 kB; shorter ones weigh more."
    )
    with sheet("overhead", "Interface against payload bytes, by device", note) as paper:
        axes = paper.axes()
        for index, arm in enumerate(report.arms):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            for direction, face in (("up", colour), ("down", "none")):
                pairs = [
                    (getattr(one, direction).payload / 1e6, over)
                    for one in arm.totals
                    if (over := getattr(one, direction).overhead_percent) is not None
                ]
                label = short(f"{arm.name}, {direction}" if len(report.arms) > 1 else direction)
                axes.plot(
                    [x for x, _ in pairs], [y for _, y in pairs], marker, color=colour, markerfacecolor=face,
                    markersize=4.5, markeredgewidth=0.9, label=label,
                )  # fmt: skip
        axes.axhline(_EXPLAINED_PERCENT, color=EDGE, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("MB of MQTT payload of the device")
        axes.set_ylabel("overhead (%)")
        legend_above(axes, 4)
    return paper.finished
