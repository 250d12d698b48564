"""Two pieces of work side by side: A-B-A-B in one process, the ratio of their rates pair by pair.

A machine that slows down for a second slows both sides of a pair, so the ratio travels better than either rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Seconds; `time.process_time` in earnest: of this process, all its threads, so a busy neighbour does not count.
Clock = Callable[[], float]

#: A piece of work is repeated until it has taken so long: shorter times are mostly the clock's.
LEAST_S: Final = 0.005


@dataclass(frozen=True)
class Work:
    """Something to time, and how many values one call of it handles."""

    run: Callable[[], object]
    values: int


@dataclass(frozen=True)
class Race:
    """Rates in values per second, pair by pair."""

    ours: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def pairs(self) -> int:
        """How often both sides were timed."""
        return len(self.ours)

    @property
    def ratio(self) -> float:
        """Median over the pairs of our rate by the other's."""
        return statistics.median(a / b for a, b in zip(self.ours, self.other, strict=True))

    @property
    def ours_median(self) -> float:
        """Our median rate, values per second."""
        return statistics.median(self.ours)

    @property
    def other_median(self) -> float:
        """The other's median rate, values per second."""
        return statistics.median(self.other)


def rate(work: Work, clock: Clock) -> float:
    """Values per second, over as many calls as take `LEAST_S`."""
    calls, started = 0, clock()
    while True:
        work.run()
        calls += 1
        elapsed_s = clock() - started
        if elapsed_s >= LEAST_S:
            return calls * work.values / elapsed_s


def race(ours: Work, other: Work, pairs: int, clock: Clock) -> Race:
    """One untimed call of each, then so many pairs, one after the other."""
    ours.run()
    other.run()
    rates = [(rate(ours, clock), rate(other, clock)) for _ in range(pairs)]
    return Race(tuple(a for a, _ in rates), tuple(b for _, b in rates))


def rates(work: Work, runs: int, clock: Clock) -> tuple[float, ...]:
    """One untimed call, then so many rates in values per second."""
    work.run()
    return tuple(rate(work, clock) for _ in range(runs))
