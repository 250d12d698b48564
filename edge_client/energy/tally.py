"""Dividing what a sensor says passed between two readings over the phases it fell in; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_client.energy.meters import Source
from edge_client.energy.parts import Phase, Span
from edge_client.energy.recorder import Interval


@dataclass
class Tally:
    """What the readings say of one phase. `squares`: of the errors of its pieces, in J²."""

    joules: float = 0.0
    squares: float = 0.0
    readings: int = 0

    def add(self, joules: float, error_j: float) -> None:
        """Count a piece of an interval between two readings."""
        self.joules += joules
        self.squares += error_j**2
        self.readings += 1

    def uncertainty_j(self, seconds: float, spans: int, source: Source) -> float:
        """The sensor's own error, that of the pieces, and at either end of a span what the sensor cannot resolve."""
        if not seconds or not spans:
            return abs(self.joules)
        edge_j = self.joules / seconds * min(source.interval_s, seconds / spans)
        return math.sqrt((source.error_share * self.joules) ** 2 + self.squares + 2 * spans * edge_j**2)


def split(interval: Interval, spans: Sequence[Span], tallies: Mapping[Phase, Tally]) -> None:
    """Divide what passed between two readings over the phases it fell in (`spans` by the clock of the interval).

    By time; where power changed linearly with it. A piece may be off by half the difference of the power at its ends,
    and where a boundary lies inside of the interval, by as much as the smaller side of it.
    """
    for span in spans:
        start_s, end_s = max(span.start_s, interval.start_s), min(span.end_s, interval.end_s)
        seconds = end_s - start_s
        if seconds <= 0:
            continue
        start_w, end_w = interval.watts_at(start_s), interval.watts_at(end_s)
        joules = (start_w + end_w) / 2 * seconds
        error_j = abs(end_w - start_w) / 2 * seconds + min(joules, max(0.0, interval.joules - joules))
        tallies[span.phase].add(joules, error_j)
