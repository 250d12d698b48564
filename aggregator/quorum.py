"""Who has accepted what in a round: Freezes and DealerChecks by digest (docs/protocol.md §4.5). Rules only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

#: Digests that count of one aggregator: a DealerCheck and a Freeze, and as many that nobody here has heard of.
_MOST_OF_ONE: Final = 4


class Quorum:
    """Counts aggregators of the plan by what they have accepted. `least`: how many it takes, 0 for none."""

    def __init__(self, least: int = 0, members: Collection[str] = ()) -> None:
        self._least, self._members = least, members
        self._accepted: dict[str, set[bytes]] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether anything has to be accepted by several."""
        return self._least > 0

    def resume(self, stored: Iterable[tuple[bytes, str]]) -> None:
        """Put back what the store held."""
        for of, aggregator_id in stored:
            self.add(of, aggregator_id)

    def knows(self, of: bytes, aggregator_id: str) -> bool:
        """Whether an aggregator's acceptance is noted."""
        return of in self._accepted.get(aggregator_id, ())

    def takes(self, aggregator_id: str) -> bool:
        """Whether an aggregator may still accept something new: it is of the plan, and has not accepted any number."""
        return aggregator_id in self._members and len(self._accepted.get(aggregator_id, ())) < _MOST_OF_ONE

    def add(self, of: bytes, aggregator_id: str) -> None:
        """Note that an aggregator has accepted it."""
        self._accepted.setdefault(aggregator_id, set()).add(of)

    def is_met(self, of: bytes) -> bool:
        """Whether enough different aggregators have accepted it."""
        return sum(of in accepted for accepted in self._accepted.values()) >= self._least
