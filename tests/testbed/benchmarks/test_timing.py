"""Races on a clock that the test drives: what is called when, and ratios worked out by hand."""

from __future__ import annotations

import pytest

from testbed.benchmarks.timing import LEAST_S, Race, Work, race, rate, rates


class Track:
    """A clock that stands still except when work runs, and a record of who ran."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def work(self, name: str, seconds: list[float], values: int) -> Work:
        """Takes seconds[i] at its i-th call, the last ones again and again."""
        calls = iter(seconds)
        last = [seconds[-1]]

        def run() -> None:
            last[0] = next(calls, last[0])
            self.now_s += last[0]
            self.ran.append(name)

        return Work(run, values)


def test_sides_alternate_after_one_untimed_call_each() -> None:
    track = Track()
    race(track.work("A", [1.0], 10), track.work("B", [1.0], 10), 3, track.clock)
    assert "".join(track.ran) == "AB" + "AB" * 3


def test_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians() -> None:
    track = Track()
    # Untimed first. Rates of A: 10, 5, 2.5 values/s; of B: 10, 1, 4.
    ours = track.work("A", [99.0, 1.0, 2.0, 4.0], 10)
    other = track.work("B", [99.0, 1.0, 10.0, 2.5], 10)
    found = race(ours, other, 3, track.clock)
    assert found.ours == pytest.approx((10.0, 5.0, 2.5))
    assert found.other == pytest.approx((10.0, 1.0, 4.0))
    assert found.ratio == pytest.approx(1.0)  # of 1, 5, 0.625
    assert found.ours_median / found.other_median == pytest.approx(1.25)
    assert found.pairs == 3


def test_rates_count_values_of_either_side() -> None:
    track = Track()
    found = race(track.work("A", [0.5], 1_000), track.work("B", [0.25], 10), 1, track.clock)
    assert (found.ours_median, found.other_median) == pytest.approx((2_000.0, 40.0))
    assert found.ratio == pytest.approx(50.0)


def test_an_even_number_of_pairs_has_the_middle_between_two() -> None:
    assert Race((1.0, 3.0), (1.0, 1.0)).ratio == pytest.approx(2.0)


def test_short_work_is_repeated_until_the_clock_has_something_to_measure() -> None:
    track = Track()
    # 4 ms, then 3 ms: two calls pass 5 ms.
    assert rate(track.work("A", [0.004, 0.003], 70), track.clock) == pytest.approx(2 * 70 / 0.007)
    assert track.ran == ["A", "A"]
    track = Track()
    rate(track.work("A", [LEAST_S], 1), track.clock)
    assert track.ran == ["A"]


def test_rates_alone_leave_the_first_call_out() -> None:
    track = Track()
    assert rates(track.work("A", [50.0, 1.0, 2.0], 10), 2, track.clock) == pytest.approx((10.0, 5.0))
