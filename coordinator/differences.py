"""Sets of devices that may be summed after others were (docs/protocol.md §4.4). No I/O.

A round that froze a set and then failed may have shown its sum. Aggregators refuse another one on the same model that
differs by a few devices, whom the difference would show; those whose `floors.differencing_rounds` is above 0 refuse it
after any of their last sums. So the coordinator chooses a set that does not, if there is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fedpruneshare.messages import Contribution, Freeze

#: Who is summed, and the segments that this opens.
Choice = tuple[tuple[Contribution, ...], tuple[int, ...]]
Settle = Callable[[tuple[Contribution, ...]], Choice]
#: After so many steps a set that is to be made fit is given up: thousands of devices would hold up the loop.
_MOST_STEPS: Final = 128


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
    settle: Settle,
    is_lasting: bool,
) -> Choice | None:
    """The part of a set to be summed after earlier ones; None if there is none that may be.

    `settle`: contributors -> those that are summed, and the segments they open. `is_lasting`: whether this set, too,
    will be compared with later ones. Then one is preferred after which everybody may be summed again: of those who are
    left out, fewer than the floor could never come back by themselves, but as many as that may join together.
    """
    devices = _Devices(floor)
    earlier = list(dict.fromkeys(mask for old in past for mask in devices.masks(old.contributors, old.segments)))
    whole = settle(contributors)
    everybody = devices.masks(*whole)
    if whole[1] and devices.clash(everybody, earlier) is None:
        return whole
    choices = [settle(part) for part in _candidates(contributors, past, floor)]
    seen = Counter({c.device_id: sum(bool(mask & devices.bit(c)) for mask in earlier) for c in contributors})
    for order in (lambda c: (-seen[c.device_id], c.rung), lambda c: (c.rung,), lambda c: (-c.rung,)):
        ordered = tuple(sorted(contributors, key=order))
        choices += [_repaired(ordered, devices, (earlier, is_generous), settle) for is_generous in (False, True)]
    allowed = [choice for choice in choices if choice[1] and devices.clash(devices.masks(*choice), earlier) is None]

    def worth(choice: Choice) -> tuple[bool, int]:
        return not is_lasting or devices.clash(everybody, devices.masks(*choice)) is None, len(choice[0])

    return max(allowed, key=worth, default=None)


class _Devices:
    """Sets of devices as whole numbers, a bit for each: thousands of pairs of sets are compared in the loop."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self._bits: dict[str, int] = {}

    def bit(self, contributor: Contribution) -> int:
        """The bit of a device."""
        return self._bits.setdefault(contributor.device_id, 1 << len(self._bits))

    def masks(self, contributors: Iterable[Contribution], segments: Iterable[int]) -> list[int]:
        """The different sets of contributors of some segments."""
        by_rung: dict[int, int] = defaultdict(int)
        for contributor in contributors:
            by_rung[contributor.rung] |= self.bit(contributor)
        sums = [sum(bits for rung, bits in by_rung.items() if rung >= segment) for segment in segments]
        return list(dict.fromkeys(sums))

    def clash(self, now: Iterable[int], earlier: Collection[int]) -> tuple[int, int] | None:
        """A set of now and an earlier one that differ by fewer devices than the floor, either way, if there are any.

        Not at all is enough. Rounds order equal weights anew, so that any segment of one may overlap any of the other.
        """
        for mine in now:
            for theirs in earlier:
                come, gone = (mine & ~theirs).bit_count(), (theirs & ~mine).bit_count()
                if 0 < come < self.floor or 0 < gone < self.floor:
                    return mine, theirs
        return None


def _candidates(
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
    ordered: tuple[Contribution, ...], devices: _Devices, rule: tuple[Collection[int], bool], settle: Settle
) -> Choice:
    """Leave devices away, step by step, until no sum differs by few from any earlier one: the last of an order first.

    `rule`: earlier sets, and whether to be generous. Where some of an earlier set are missing, as many stay away with
    them as make up the floor; or, generously, as many as can come back by themselves.
    """
    earlier, is_generous = rule
    here = {contributor.device_id: contributor for contributor in ordered}
    for _ in range(_MOST_STEPS):
        choice = settle(tuple(here[device] for device in sorted(here)))
        clash = devices.clash(devices.masks(*choice), earlier)
        if clash is None:
            return choice
        mine, theirs = clash
        both = [c.device_id for c in here.values() if devices.bit(c) & mine & theirs]
        if 0 < (mine & ~theirs).bit_count() < devices.floor or not both:
            away = [c.device_id for c in here.values() if devices.bit(c) & mine & ~theirs]
        else:
            away = both[-devices.floor if is_generous else (theirs & ~mine).bit_count() - devices.floor :]
        for device in away:
            del here[device]
    return (), ()
