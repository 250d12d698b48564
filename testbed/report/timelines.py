"""Timelines: what each device did, second by second, in a window of rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from testbed.ledger.device_lines import ABSENT, DeviceLine
from testbed.ledger.rounds import RunRound
from testbed.report.drawing import COLOURS, EDGE, FAILED_COLOUR, INK, PALE, Drawing, sheet, short
from testbed.report.runs import ArmRun, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Rounds in a window, and devices in a plot: more of either cannot be read.
WINDOW_ROUNDS, MOST_DEVICES = 6, 40

#: What is drawn: label -> colour, and hatch of what a device could not help.
_LOOKS: Final = {
    "receive": (COLOURS[5], ""),
    "train": (COLOURS[0], ""),
    "encode and share": (COLOURS[4], ""),
    "upload": (COLOURS[1], ""),
    "wait": (PALE, ""),
    "declined": (FAILED_COLOUR, ""),
    "dropped out": ("none", "xxxx"),
    "away": ("none", "////"),
}
_LOOK_OF_PHASE: Final = {
    "receive": "receive",
    "prune": "train",
    "train": "train",
    "encode": "encode and share",
    "share": "encode and share",
    "send": "upload",
    "idle": "wait",
}
#: In which order the phases of a round come, where only their lengths are known.
_ORDER: Final = ("receive", "prune", "train", "encode", "share", "send")
_FINE: Final = ("uploaded", "not-in-cohort", "declined", "", ABSENT)
_IDLE: Final = ("not-in-cohort", "", ABSENT)
_WIDTH_IN: Final = 11.5


@dataclass(frozen=True)
class Bar:
    """One thing a device did, in seconds since 1970; `row` is its place in the plot."""

    row: int
    look: str
    start_s: float
    end_s: float


def timelines(report: Report) -> Iterator[Drawing]:
    """A timeline of each arm whose devices' lines and rounds say when things were."""
    for index, arm in enumerate(report.arms):
        seed = arm.seeds[0]
        rounds = [line for line in arm.seed_rounds(seed) if line.started_at]
        lines = [line for line in arm.devices if line.seed == seed]
        if rounds and lines:
            yield _timeline(arm, index, rounds, lines)


def window(rounds: Sequence[RunRound]) -> list[RunRound]:
    """Consecutive rounds: those in which most went wrong, and the last of them where that is equal."""
    trouble = [_trouble(line) for line in rounds]
    count = min(WINDOW_ROUNDS, len(rounds))
    starts = range(len(rounds) - count + 1)
    best = max(starts, key=lambda start: (sum(trouble[start : start + count]), start))
    return list(rounds[best : best + count])


def _trouble(line: RunRound) -> int:
    ended = sum(count for status, count in line.devices.items() if status not in ("uploaded", "not-in-cohort"))
    return ended + len(line.events) + (line.phase == "FAILED")


def sample(lines: Iterable[DeviceLine]) -> list[str]:
    """The devices that are drawn: all, or so many at even distances in the order of groups and names."""
    ordered = list(dict.fromkeys(device for _, device in sorted((line.group, line.device) for line in lines)))
    if len(ordered) <= MOST_DEVICES:
        return ordered
    return [ordered[index * len(ordered) // MOST_DEVICES] for index in range(MOST_DEVICES)]


def _timeline(arm: ArmRun, index: int, rounds: Sequence[RunRound], lines: Sequence[DeviceLine]) -> Drawing:
    shown, devices, every = window(rounds), sample(lines), {line.device for line in lines}
    span = f"rounds {shown[0].round} to {shown[-1].round}" if len(shown) > 1 else f"round {shown[0].round}"
    note = f"Seed {shown[0].seed}, {span} of {rounds[-1].round}"
    note += f", {len(devices)} of {len(every)} devices." if len(devices) < len(every) else ", every device."
    start_s = shown[0].started_at
    bars = list(bars_of(shown, lines, devices))
    height = 1.3 + 0.17 * len(devices)
    with sheet(f"timeline-{index + 1}", f"What devices did: {arm.name}", note, (_WIDTH_IN, height)) as paper:
        axes = paper.axes()
        _draw_bars(axes, bars, start_s)
        _draw_rounds(axes, shown, len(devices))
        axes.set_yticks(range(len(devices)), [short(device, 22) for device in devices], fontsize=7.5)
        axes.set_ylim(len(devices) - 0.4, -0.6)
        axes.grid(visible=False)
        axes.set_xlim(0, max([bar.end_s for bar in bars] + [shown[-1].started_at + _length_s(shown[-1])]) - start_s)
        axes.set_xlabel(f"seconds since round {shown[0].round} began")
        _legend(axes, {bar.look for bar in bars}, height)
    return paper.finished


def _length_s(line: RunRound) -> float:
    return line.seconds.get("total", sum(line.seconds.values()))


def bars_of(rounds: Sequence[RunRound], lines: Sequence[DeviceLine], devices: Sequence[str]) -> Iterator[Bar]:
    """What each of the devices did in these rounds, one row for each."""
    rows = {device: row for row, device in enumerate(devices)}
    by_round: dict[int, list[DeviceLine]] = defaultdict(list)
    for entry in lines:
        if entry.device in rows:
            by_round[entry.round].append(entry)
    knows_absent = any(entry.round and entry.status == "not-in-cohort" for entry in lines)
    for number, line in enumerate(rounds):
        end_s = line.started_at + _length_s(line)
        # Between two rounds a device that was away is so still.
        until_s = rounds[number + 1].started_at if number + 1 < len(rounds) else end_s
        for entry in by_round[line.round]:
            row = rows[entry.device]
            if entry.status in ("", ABSENT):
                if knows_absent or entry.status == ABSENT:
                    yield Bar(row, "away", line.started_at, max(end_s, until_s))
                continue
            yield from _device_bars(row, entry, line.started_at, end_s)


def _device_bars(row: int, entry: DeviceLine, start_s: float, end_s: float) -> Iterator[Bar]:
    """One device in one round: its phases, and how it ended if not with an upload."""
    if entry.status in _IDLE:
        return
    reached_s = start_s
    for phase, begun_s, ended_s in entry.spans or _from_lengths(entry, start_s):
        reached_s = max(reached_s, ended_s)
        yield Bar(row, _LOOK_OF_PHASE.get(phase, "wait"), begun_s, ended_s)
    if entry.status == "declined":
        width_s = 0.06 * (end_s - start_s)
        yield Bar(row, "declined", min(reached_s, end_s - width_s), min(reached_s, end_s - width_s) + width_s)
    elif entry.status not in _FINE:
        yield Bar(row, "dropped out", min(reached_s, 0.9 * end_s + 0.1 * start_s), end_s)
    elif not entry.spans and reached_s < end_s:
        yield Bar(row, "wait", reached_s, end_s)


def _from_lengths(entry: DeviceLine, start_s: float) -> Iterator[tuple[str, float, float]]:
    for phase in _ORDER:
        length_s = entry.seconds.get(phase, 0.0)
        if length_s > 0:
            yield phase, start_s, start_s + length_s
            start_s += length_s


def _draw_bars(axes: Axes, bars: Sequence[Bar], start_s: float) -> None:
    from matplotlib.collections import PolyCollection

    by_look: dict[str, list[Bar]] = defaultdict(list)
    for bar in bars:
        by_look[bar.look].append(bar)
    for look, (colour, hatch) in _LOOKS.items():
        corners = [_corners(bar, start_s) for bar in by_look[look]]
        if corners:
            edge = (FAILED_COLOUR if look == "dropped out" else EDGE) if hatch else "none"
            axes.add_collection(
                PolyCollection(corners, facecolors=colour, edgecolors=edge, hatch=hatch or None, linewidths=0.4)
            )


def _corners(bar: Bar, start_s: float) -> list[tuple[float, float]]:
    left, right, top, foot = bar.start_s - start_s, bar.end_s - start_s, bar.row - 0.36, bar.row + 0.36
    return [(left, top), (right, top), (right, foot), (left, foot)]


def _draw_rounds(axes: Axes, rounds: Sequence[RunRound], rows: int) -> None:
    """A line where each round begins, with its number and, if it failed, that it did."""
    for line in rounds:
        at_s = line.started_at - rounds[0].started_at
        axes.axvline(at_s, color=EDGE, linewidth=0.8, linestyle=":")
        is_failed = line.phase == "FAILED"
        text = f" {line.round}" + (" failed" if is_failed else "") + (" ⚑" * bool(line.events))
        axes.text(at_s, -0.62, text, fontsize=8, color=FAILED_COLOUR if is_failed else INK, va="bottom")
    axes.margins(y=1 / max(rows, 1))


def _legend(axes: Axes, looks: set[str], height_in: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=EDGE if hatch else "none", hatch=hatch or None, label=look)
        for look, (colour, hatch) in _LOOKS.items()
        if look in looks
    ]
    above = 1 + 0.25 / height_in  # the rounds' numbers stand between
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, above),
        ncols=len(handles), borderaxespad=0.2, columnspacing=1.2, handlelength=1.4,
    )  # fmt: skip
