"""Sets of devices that may be summed after others were (docs/protocol.md §4.4). No I/O.

A round that froze a set and then failed may have shown its sum. Aggregators refuse another one on the same model that
differs by a few devices, whom the difference would show; those whose `floors.differencing_rounds` is above 0 refuse it
after any of their last sums. So the coordinator chooses a set that does not, if there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedpruneshare.messages import Contribution, Freeze

#: Contributors of every opened segment.
Sets = dict[int, frozenset[str]]
#: Who is summed, and the segments that this opens.
Choice = tuple[tuple[Contribution, ...], tuple[int, ...]]


# --------------------------------------------------------------------------- what was summed


@dataclass(frozen=True)
class Frozen:
    """An earlier Freeze. `summed_by`: who answered it for certain; with a quorum others may remember it unnamed."""

    freeze: Freeze
    has_quorum: bool
    summed_by: frozenset[str]


@dataclass(frozen=True)
class Past:
    """Earlier rounds, the newest first. `retried`: those that failed on the same model; `frozen`: all of them.

    `last`: aggregators compare a sum with so many that they gave last, whatever became of those rounds.
    """

    retried: tuple[Freeze, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    last: int = 0

    def freezes(self, aggregators: Collection[str]) -> tuple[Freeze, ...]:
        """The Freezes that any of these aggregators may compare another one with, each set of devices once."""
        found: dict[object, Freeze] = {}
        for freeze in (*self.retried, *self._remembered(aggregators)):
            found.setdefault((tuple((c.device_id, c.rung) for c in freeze.contributors), freeze.segments), freeze)
        return tuple(found.values())

    def _remembered(self, aggregators: Collection[str]) -> Iterator[Freeze]:
        """What may be among the last sums of one of them: back to where so many of its sums are certain."""
        certain: Counter[str] = Counter()
        for old in self.frozen:
            looking = [name for name in aggregators if certain[name] < self.last]
            if not looking:
                return
            if old.has_quorum or any(name in old.freeze.aggregators for name in looking):
                yield old.freeze
            certain.update(old.summed_by)


# --------------------------------------------------------------------------- which set comes next


def choose(
    contributors: tuple[Contribution, ...],
    past: tuple[Freeze, ...],
    floor: int,
    settle: Callable[[tuple[Contribution, ...]], Choice],
    is_lasting: bool,
) -> Choice | None:
    """The part of a set to be summed after earlier ones; None if there is none that may be.

    `settle`: contributors -> those that are summed, and the segments they open. `is_lasting`: whether this set, too,
    will be compared with later ones. Then one is preferred after which everybody may be summed again: of those who are
    left out, fewer than the floor could never come back by themselves, but as many as that may join together.
    """
    whole, sets = settle(contributors), [sets_of(freeze.contributors, freeze.segments) for freeze in past]
    all_sets = sets_of(*whole)
    if whole[1] and is_far_enough(all_sets, sets, floor):
        return whole
    choices = [settle(part) for part in candidates(contributors, past, floor)]
    seen = Counter(device for other in sets for theirs in other.values() for device in theirs)
    for least in (lambda c: (-seen[c.device_id], c.rung), lambda c: (c.rung,), lambda c: (-c.rung,)):
        order = [c.device_id for c in sorted(contributors, key=least)]
        choices += [_repaired(order, contributors, (sets, floor, is_generous), settle) for is_generous in (False, True)]
    allowed = [choice for choice in choices if choice[1] and is_far_enough(sets_of(*choice), sets, floor)]

    def worth(choice: Choice) -> tuple[bool, int]:
        return not is_lasting or is_far_enough(all_sets, [sets_of(*choice)], floor), len(choice[0])

    return max(allowed, key=worth, default=None)


def sets_of(contributors: Sequence[Contribution], segments: Iterable[int]) -> Sets:
    """The contributors of some segments."""
    return {s: frozenset(c.device_id for c in contributors if c.rung >= s) for s in segments}


def is_far_enough(now: Sets, earlier: Iterable[Sets], floor: int) -> bool:
    """Whether no two sums differ by fewer devices than the floor, either way; not at all is far enough.

    Rounds order equal weights anew, so that any segment of one may overlap any of the other.
    """
    return next(_clashes(now, earlier, floor), None) is None


def _clashes(now: Sets, earlier: Iterable[Sets], floor: int) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Pairs of a set of now and an earlier one whose sums would show few devices by their difference."""
    all_theirs = dict.fromkeys(theirs for other in earlier for theirs in other.values())  # in order, each once
    for mine in dict.fromkeys(now.values()):
        for theirs in all_theirs:
            if 0 < len(mine - theirs) < floor or 0 < len(theirs - mine) < floor:
                yield mine, theirs


def candidates(
    contributors: tuple[Contribution, ...], earlier: Sequence[Freeze], floor: int
) -> Iterator[tuple[Contribution, ...]]:
    """Parts of a set that may be summed after an earlier one: what is left of each of them.

    Fewer newcomers than the floor are left out; where fewer than the floor are missing, others stay away with them.
    """
    for freeze in earlier:
        rungs = {c.device_id: c.rung for c in freeze.contributors}
        new = tuple(c for c in contributors if c.device_id not in rungs)
        alike = tuple(c for c in contributors if rungs.get(c.device_id) == c.rung)
        for kept in (tuple(c for c in contributors if c.device_id in rungs), alike):
            missing = len(rungs) - len(kept)
            fewer = kept[: max(len(kept) - (floor - missing), 0)] if 0 < missing < floor else kept
            for part in dict.fromkeys((kept, fewer)):
                yield from ((*part, *new), part) if len(new) >= floor else (part,)


def _repaired(
    order: Sequence[str],
    contributors: tuple[Contribution, ...],
    rule: tuple[Sequence[Sets], int, bool],
    settle: Callable[[tuple[Contribution, ...]], Choice],
) -> Choice:
    """Leave devices away, step by step, until no sum differs by few from any earlier one: the last of an order first.

    `rule`: earlier sets, floor, and whether to be generous. Where some of an earlier set are missing, as many stay away
    with them as make up the floor; or, generously, as many as can come back by themselves.
    """
    earlier, floor, is_generous = rule
    while True:
        choice = settle(contributors)
        clash = next(_clashes(sets_of(*choice), earlier, floor), None)
        if clash is None:
            return choice
        mine, theirs = clash
        away = mine - theirs
        if not 0 < len(away) < floor:
            both = [device for device in order if device in mine and device in theirs]
            missing = floor if is_generous else floor - len(theirs - mine)
            away = frozenset(both[-missing:]) or mine
        contributors = tuple(c for c in choice[0] if c.device_id not in away)
