"""Which sums may be opened: the floors, one rule for planner, coordinator and aggregator (docs/protocol.md §8).

A segment of the nested supports is contributed to by the devices whose rung reaches it, so counts never rise from
segment to segment. Opening two segments also shows what the *difference* of their contributors added to the
weight sum: a difference of one device would show that device's weight. Hence three rules, applied from the shortest
segment on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: No setting may go below this (docs/protocol.md §8.1).
LOWEST_FLOOR: Final = 3


def contributor_counts(rungs: Sequence[int], segments: int) -> list[int]:
    """Devices that reach each segment: `counts[s]` = number of rungs >= s."""
    return [sum(rung >= segment for rung in rungs) for segment in range(segments)]


def open_segments(rungs: Sequence[int], segments: int, min_devices: int, min_devices_segment: int) -> tuple[int, ...]:
    """Indices of the segments whose sums may be opened for contributors with these rungs.

    Segment 0 needs `min_devices` contributors; without it nothing is opened (empty result). Each longer segment
    needs `min_devices_segment`, and the contributors it has lost since the last open segment must be none or
    at least `min_devices_segment`; otherwise it stays closed and the next is compared with that same last one.
    """
    counts = contributor_counts(rungs, segments)
    if counts[0] < max(min_devices, 1):
        return ()
    opened = [0]
    for segment in range(1, segments):
        lost = counts[opened[-1]] - counts[segment]
        if counts[segment] >= min_devices_segment and (lost == 0 or lost >= min_devices_segment):
            opened.append(segment)
    return tuple(opened)
