"""Plots over rounds, bytes and joules: one line for each arm, its spread over the seeds as a band."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from testbed.ledger.rounds import IDLE, RunRound
from testbed.report.drawing import (
    COLOURS,
    FAILED_COLOUR,
    MARKERS,
    Drawing,
    legend_above,
    plain_log,
    sheet,
    short,
    whole_numbers,
)
from testbed.report.measures import source_text, sources
from testbed.report.runs import ArmRun, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Above so many points a line has no markers.
_MARKED: Final = 40


@dataclass(frozen=True)
class _Point:
    """One round of an arm over its seeds: means, and the lowest and highest of what is drawn upwards."""

    round: int
    x: float
    y: float
    low: float
    high: float


def curves(report: Report) -> Iterator[Drawing]:
    """Every plot of this kind that the runs have data for."""
    yield _quality(report, "by-round", "by round", None)
    yield _quality(report, "by-uplink", "by uplink bytes", _uplink_mb)
    if any(sources(arm) for arm in report.arms):
        yield _quality_by_joules(report)
    if any(line.uploads for arm in report.arms for line in arm.rounds):
        yield _uplink_by_round(report)
    yield _density_by_round(report)


def _band_note(report: Report) -> str:
    several = any(len(arm.seeds) > 1 for arm in report.arms)
    return "Lines are means over the seeds, bands reach from the lowest to the highest seed." if several else ""


def _points(
    arm: ArmRun, y: Callable[[RunRound], float | None], xs: Callable[[list[RunRound]], list[float]] | None = None
) -> list[_Point]:
    """The arm's points in the order of the rounds; a seed without a value in a round is left out of that point."""
    by_round: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for seed in arm.seeds:
        lines = arm.seed_rounds(seed)
        places = xs(lines) if xs else [float(line.round) for line in lines]
        for line, place in zip(lines, places, strict=True):
            value = y(line)
            if value is not None:
                by_round[line.round].append((place, value))
    made = []
    for number, pairs in sorted(by_round.items()):
        values = [value for _, value in pairs]
        x = sum(place for place, _ in pairs) / len(pairs)
        made.append(_Point(number, x, sum(values) / len(values), min(values), max(values)))
    return made


def _draw(axes: Axes, index: int, label: str, points: Sequence[_Point]) -> None:
    colour = COLOURS[index % len(COLOURS)]
    xs = [point.x for point in points]
    marker = MARKERS[index % len(MARKERS)] if len(points) <= _MARKED else ""
    style = "-" if index < len(COLOURS) else "--"
    axes.plot(xs, [p.y for p in points], style, color=colour, marker=marker, markersize=3.5, label=short(label))
    if any(point.high > point.low for point in points):
        lows, highs = [p.low for p in points], [p.high for p in points]
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)


def _quality(report: Report, name: str, title: str, xs: Callable[[list[RunRound]], list[float]] | None) -> Drawing:
    metric = report.metric
    with sheet(f"{metric.name}-{name}", f"{_capital(metric.name)} {title}", _band_note(report)) as paper:
        axes = paper.axes()
        for index, arm in enumerate(report.arms):
            _draw(axes, index, arm.name, _points(arm, lambda line: line.accuracy, xs))
        if xs is None:
            _mark_failed(axes, report)
            axes.set_xlabel("round")
            whole_numbers(axes)
        else:
            axes.set_xlim(left=0)
            axes.set_xlabel("uplink of all devices so far (MB of MQTT payload)")
        axes.set_ylabel(f"{metric.name} on the test set")
        _as_percent(axes, metric.is_share)
        legend_above(axes)
    return paper.finished


def _as_percent(axes: Axes, is_share: bool) -> None:
    if is_share:
        axes.yaxis.set_major_formatter(lambda value, _position: f"{100 * value:.4g} %")


def _mark_failed(axes: Axes, report: Report) -> None:
    failed = sorted({line.round for arm in report.arms for line in arm.rounds if line.phase == "FAILED"})
    if failed:
        foot = axes.get_ylim()[0]
        axes.plot(failed, [foot] * len(failed), "x", color=FAILED_COLOUR, label="failed round", clip_on=False)


def _uplink_mb(lines: list[RunRound]) -> list[float]:
    return [line.uplink_bytes_so_far / 1e6 for line in lines]


def _quality_by_joules(report: Report) -> Drawing:
    metric = report.metric
    named = dict.fromkeys(source_text(source) for arm in report.arms for source in sources(arm))
    note = f"Joules {' and '.join(named)}; what devices idled away is left out. {_band_note(report)}"
    with sheet(f"{metric.name}-by-joules", f"{_capital(metric.name)} by joules", note.strip()) as paper:
        axes, index = paper.axes(), 0
        for place, arm in enumerate(report.arms):
            found = sources(arm)
            for source in found:
                label = arm.name if len(found) == 1 else f"{arm.name} ({source})"
                points = _points(arm, lambda line: line.accuracy, _joules_so_far(source))
                _draw(axes, place if len(found) == 1 else index, label, points)
                index += 1
        axes.set_xlim(left=0)
        axes.set_xlabel("joules of work of all devices so far")
        axes.set_ylabel(f"{metric.name} on the test set")
        _as_percent(axes, metric.is_share)
        legend_above(axes)
    return paper.finished


def _joules_so_far(source: str) -> Callable[[list[RunRound]], list[float]]:
    return lambda lines: list(accumulate(_worked_j(line.energy_j.get(source, {})) for line in lines))


def _worked_j(phases: Mapping[str, float]) -> float:
    return sum(joules for phase, joules in phases.items() if phase != IDLE)


def _uplink_by_round(report: Report) -> Drawing:
    note = f"Everything a device with a completed upload sent in the round. {_band_note(report)}"
    with sheet("uplink-by-round", "Uplink of a device by round", note.strip()) as paper:
        axes = paper.axes()
        for index, arm in enumerate(report.arms):
            _draw(axes, index, arm.name, _points(arm, _kb_per_upload))
        if len(report.arms) > 1:
            axes.set_yscale("log")
            plain_log(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("round")
        axes.set_ylabel("kB of MQTT payload")
        whole_numbers(axes)
        legend_above(axes)
    return paper.finished


def _kb_per_upload(line: RunRound) -> float | None:
    return line.uploaded_bytes / line.uploads / 1e3 if line.uploads else None


def _density_by_round(report: Report) -> Drawing:
    with sheet("density-by-round", "Density by round", _band_note(report)) as paper:
        axes = paper.axes()
        for index, arm in enumerate(report.arms):
            points = _points(arm, lambda line: None if line.density is None else 100 * line.density)
            _draw(axes, index, arm.name, points)
        axes.set_ylim(0, 105)
        axes.set_xlabel("round")
        axes.set_ylabel("weights kept (%)")
        whole_numbers(axes)
        legend_above(axes)
    return paper.finished


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
