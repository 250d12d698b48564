"""The floors against a slow, independent reading of docs/protocol.md §8.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.floors import contributor_counts, lone_rungs, open_segments

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


def opened_words(rungs: list[int], words: list[int]) -> int:
    counts = contributor_counts(rungs, len(words))
    return sum(counts[segment] * words[segment] for segment in open_segments(rungs, len(words), 3, 3))


@given(st.lists(st.integers(0, 4), min_size=3, max_size=40), st.lists(st.integers(1, 1000), min_size=5, max_size=5))
def test_leaving_lone_devices_out_opens_most(rungs: list[int], words: list[int]) -> None:
    lone = lone_rungs(rungs, words, 3, 3)
    kept = [rung for rung in rungs if rung not in lone]
    assert all(rungs.count(rung) < 3 for rung in lone)
    assert 10 * (len(rungs) - len(kept)) <= len(rungs)
    few = [rung for rung in set(rungs) if rungs.count(rung) < 3]
    for choice in range(2 ** len(few)):
        left_out = {rung for place, rung in enumerate(few) if choice >> place & 1}
        others = [rung for rung in rungs if rung not in left_out]
        if 10 * (len(rungs) - len(others)) <= len(rungs):
            assert opened_words(kept, words) >= opened_words(others, words)
    if opened_words(rungs, words) == opened_words(kept, words):
        assert not lone


@pytest.mark.parametrize(
    ("rungs", "lone"),
    [
        ([1] * 9 + [0], {0}),  # one weak device of ten would cost all of them the second segment
        ([1] * 8 + [0], set()),  # of nine it is more than a tenth
        ([1] * 30 + [0] * 3, set()),  # three are a stratum
        ([1] + [0] * 20, set()),  # nothing is won: the second segment stays closed either way
        ([2] * 20 + [1, 0], {0, 1}),
        ([2] * 10 + [1, 0], {0}),  # both would be more than a tenth; without the lower one, two segments open
        ([1] * 2 + [0] * 8, set()),
    ],
)
def test_who_is_left_out(rungs: list[int], lone: set[int]) -> None:
    assert lone_rungs(rungs, [100] * (max(rungs) + 1), 3, 3) == lone
