"""An external meter's record laid beside what the device's ledger says it did: joules by phase and round."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from edge_client.energy.parts import Phase, PhaseEnergy, Span
from edge_client.energy.recorder import Interval
from edge_client.energy.tally import Tally, split
from edge_client.energy.trace import PowerTrace
from fedpruneshare.errors import MeterError

#: A record that paused for so many of its usual steps, and so long, says nothing of the time in between.
_GAP: Final = 10
_SHORT_GAP_S: Final = 5.0


@dataclass(frozen=True)
class LedgerRound:
    """One line of a ledger: the round and its phases in seconds since 1970. A restarted device has several."""

    number: int
    spans: tuple[Span, ...]


class _Line(msgspec.Struct, frozen=True):
    round: int
    spans: list[tuple[Phase, float, float]] = []


def attribute(trace: PowerTrace, spans: Sequence[Span], shift_s: float = 0.0) -> dict[Phase, PhaseEnergy]:
    """Joules by phase of one round. `shift_s`: added to the record's time gives the device's.

    A round that the record does not cover whole has no figure in any phase, and the reason.
    """
    seconds: dict[Phase, float] = defaultdict(float)
    counts = Counter(span.phase for span in spans)
    for span in spans:
        seconds[span.phase] += span.end_s - span.start_s
    intervals = _intervals(trace, spans, shift_s)
    reason = _uncovered(trace, spans, intervals, shift_s)
    tallies: defaultdict[Phase, Tally] = defaultdict(Tally)
    for interval in intervals:
        split(interval, spans, tallies)
    found = {}
    for phase in (phase for phase in Phase if phase in counts):
        tally, length_s = tallies[phase], seconds[phase]
        uncertainty_j = tally.uncertainty_j(length_s, counts[phase], trace.source)
        if reason:
            found[phase] = PhaseEnergy(None, length_s, trace.source, False, None, 0, reason=f"unavailable: {reason}")
        else:
            found[phase] = PhaseEnergy(tally.joules, length_s, trace.source, False, uncertainty_j, tally.readings)
    return found


def _intervals(trace: PowerTrace, spans: Sequence[Span], shift_s: float) -> list[Interval]:
    """Those between two samples that touch a round, by the device's clock."""
    start_s, end_s = _ends(spans)
    samples = [(moment_s + shift_s, watts) for moment_s, watts in zip(trace.seconds, trace.watts, strict=True)]
    return [
        Interval(before_s, after_s, (before_w + after_w) / 2 * (after_s - before_s), before_w, after_w)
        for (before_s, before_w), (after_s, after_w) in pairwise(samples)
        if after_s > start_s and before_s < end_s
    ]


def _uncovered(trace: PowerTrace, spans: Sequence[Span], intervals: Sequence[Interval], shift_s: float) -> str:
    """Why the record is not enough for a round; empty where it is."""
    start_s, end_s = _ends(spans)
    first_s, last_s = trace.seconds[0] + shift_s, trace.seconds[-1] + shift_s
    if not first_s <= start_s <= end_s <= last_s:
        return f"{trace.name} is of {first_s:.1f} to {last_s:.1f} s, expected {start_s:.1f} to {end_s:.1f} s"
    usual_s = median(after - before for before, after in pairwise(trace.seconds))
    longest_s = max((interval.seconds for interval in intervals), default=0.0)
    if longest_s > max(_GAP * usual_s, _SHORT_GAP_S):
        return f"{trace.name} has no sample for {longest_s:.1f} s, expected one each {usual_s:.3g} s"
    return ""


def _ends(spans: Sequence[Span]) -> tuple[float, float]:
    return min((span.start_s for span in spans), default=0.0), max((span.end_s for span in spans), default=0.0)


def read_rounds(path: Path) -> list[LedgerRound]:
    """The rounds of a device's ledger.jsonl that have phases. Raises `MeterError` naming the line.

    A last line without its end is still being written and left out.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise MeterError(f"{path}: {error.strerror}, expected a device's ledger.jsonl") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise MeterError(f"{path}, line {number}: {error}, expected a line of a device's ledger") from None
        if entry.spans:
            found.append(LedgerRound(entry.round, tuple(Span(*span) for span in entry.spans)))
    return found
