"""Sets of devices that may be summed after others were, on the same model (docs/protocol.md §4.4). No I/O.

A round that froze a set and then failed may have shown its sum. Aggregators refuse another one that differs by a few
devices, whom the difference would show. So the coordinator chooses one that does not, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedpruneshare.messages import Contribution, Freeze

#: Contributors of every opened segment.
Sets = dict[int, frozenset[str]]


def sets_of(contributors: Sequence[Contribution], segments: Iterable[int]) -> Sets:
    """The contributors of some segments."""
    return {s: frozenset(c.device_id for c in contributors if c.rung >= s) for s in segments}


def is_far_enough(now: Sets, earlier: Iterable[Sets], floor: int) -> bool:
    """Whether no two sums differ by fewer devices than the floor, either way; not at all is far enough.

    Rounds order equal weights anew, so that any segment of one may overlap any of the other.
    """
    return not any(
        0 < len(mine - theirs) < floor or 0 < len(theirs - mine) < floor
        for other in earlier
        for theirs in other.values()
        for mine in now.values()
    )


def candidates(
    contributors: tuple[Contribution, ...], earlier: Sequence[Freeze], floor: int
) -> Iterator[tuple[Contribution, ...]]:
    """Parts of a set that may be summed after earlier ones: all of it first, then what is left of each earlier one.

    Fewer newcomers than the floor are left out; where fewer than the floor are missing, others stay away with them.
    """
    yield contributors
    for freeze in earlier:
        rungs = {c.device_id: c.rung for c in freeze.contributors}
        new = tuple(c for c in contributors if c.device_id not in rungs)
        alike = tuple(c for c in contributors if rungs.get(c.device_id) == c.rung)
        for kept in (tuple(c for c in contributors if c.device_id in rungs), alike):
            missing = len(rungs) - len(kept)
            fewer = kept[: max(len(kept) - (floor - missing), 0)] if 0 < missing < floor else kept
            for part in dict.fromkeys((kept, fewer)):
                yield from ((*part, *new), part) if len(new) >= floor else (part,)
