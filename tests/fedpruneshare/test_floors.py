"""The floors against a slow, independent reading of docs/protocol.md §8.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.floors import contributor_counts, open_segments

rung_lists = st.lists(st.integers(0, 4), max_size=14)


def slow(rungs: list[int], segments: int, floor: int, floor_segment: int) -> tuple[int, ...]:
    opened: list[int] = []
    for segment in range(segments):
        here = {device for device, rung in enumerate(rungs) if rung >= segment}
        if not opened:
            if segment == 0 and len(here) >= floor and here:
                opened.append(0)
            continue
        before = {device for device, rung in enumerate(rungs) if rung >= opened[-1]}
        gone = before - here
        if len(here) >= floor_segment and (not gone or len(gone) >= floor_segment):
            opened.append(segment)
    return tuple(opened)


@given(rung_lists, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_against_the_slow_reading(rungs: list[int], segments: int, floor: int, floor_segment: int) -> None:
    assert open_segments(rungs, segments, floor, floor_segment) == slow(rungs, segments, floor, floor_segment)


@given(rung_lists, st.integers(1, 5))
def test_no_difference_of_opened_sums_shows_fewer_than_the_floor(rungs: list[int], segments: int) -> None:
    counts = contributor_counts(rungs, segments)
    opened = open_segments(rungs, segments, 3, 3)
    for place, first in enumerate(opened):
        assert counts[first] >= 3
        for later in opened[place + 1 :]:
            assert counts[first] - counts[later] == 0 or counts[first] - counts[later] >= 3


@pytest.mark.parametrize(
    ("rungs", "expected"),
    [
        ([0, 0], ()),
        ([0, 0, 0], (0,)),
        ([1, 1, 1], (0, 1)),
        ([0, 1, 1, 1], (0,)),
        ([0, 0, 1, 1, 1], (0,)),
        ([0, 0, 0, 1, 1, 1], (0, 1)),
        ([0, 0, 0, 1, 1], (0,)),
        ([0, 0, 0, 1, 2, 2, 2], (0, 1)),
        ([0, 0, 1, 2, 2, 2], (0, 2)),
        ([], ()),
    ],
)
def test_at_the_boundaries(rungs: list[int], expected: tuple[int, ...]) -> None:
    assert open_segments(rungs, 3 if 2 in rungs else 2, 3, 3) == expected
