"""Which sums may be opened: the floors, one rule for planner, coordinator and aggregator (docs/protocol.md §8).

A segment of the nested supports is contributed to by the devices whose rung reaches it, so counts never rise from
segment to segment. Opening two segments also shows what the *difference* of their contributors added to the
weight sum: a difference of one device would show that device's weight. Hence three rules, applied from the shortest
segment on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import Final

#: No setting may go below this (docs/protocol.md §8.1).
LOWEST_FLOOR: Final = 3
#: A sum is compared with those of so many rounds before it on the same model (docs/protocol.md §4.4): where a device of
#: a failed round has gone for good, no set of a small federation would ever be allowed again.
RETRY_ROUNDS: Final = 8
#: Sums whose contributors an aggregator keeps, to compare later ones with: the most that `differencing_rounds` can be.
KEPT_SETS: Final = 64
#: Contributors to each device that may be left out for being alone on its rung.
_PER_LEFT_OUT: Final = 10


def contributor_counts(rungs: Sequence[int], segments: int) -> list[int]:
    """Devices that reach each segment: `counts[s]` = number of rungs >= s."""
    return [sum(rung >= segment for rung in rungs) for segment in range(segments)]


def open_segments(rungs: Sequence[int], segments: int, min_devices: int, min_devices_segment: int) -> tuple[int, ...]:
    """Indices of the segments whose sums may be opened for contributors with these rungs.

    Segment 0 needs `min_devices` contributors; without it nothing is opened (empty result). Each longer segment
    needs `min_devices_segment`, and the contributors it has lost since the last open segment must be none or
    at least `min_devices_segment`; otherwise it stays closed and the next is compared with that same last one.
    """
    return _opened(contributor_counts(rungs, segments), min_devices, min_devices_segment)


def _opened(counts: Sequence[int], min_devices: int, min_devices_segment: int) -> tuple[int, ...]:
    """The same from the number of contributors to each segment."""
    if counts[0] < max(min_devices, 1):
        return ()
    opened = [0]
    for segment in range(1, len(counts)):
        lost = counts[opened[-1]] - counts[segment]
        if counts[segment] >= min_devices_segment and (lost == 0 or lost >= min_devices_segment):
            opened.append(segment)
    return tuple(opened)


def lone_rungs(rungs: Sequence[int], words: Sequence[int], min_devices: int, min_devices_segment: int) -> set[int]:
    """Rungs whose few devices had better be left out: alone on their rung, they would keep longer segments closed.

    Of the rungs with fewer devices than `min_devices_segment`, the set without which most is opened: contributors times
    `words` (of each segment), over all segments that may then be opened. Never more than one device in ten is left out;
    empty if nothing is won.
    """
    here = [sum(rung == own for rung in rungs) for own in range(len(words))]
    few = [rung for rung, count in enumerate(here) if 0 < count < min_devices_segment]
    best, most = set[int](), -1
    for size in range(len(few) + 1):
        for left_out in combinations(few, size):
            if _PER_LEFT_OUT * sum(here[rung] for rung in left_out) > len(rungs):
                continue
            kept = [0 if rung in left_out else count for rung, count in enumerate(here)]
            counts = [*accumulate(reversed(kept))][::-1]
            opened = _opened(counts, min_devices, min_devices_segment)
            found = sum(counts[segment] * words[segment] for segment in opened)
            if found > most:
                best, most = set(left_out), found
    return best
