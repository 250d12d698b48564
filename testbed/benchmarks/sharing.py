"""`bench sharing`: splitting, opening and adding shares, ours against each peer and against the physical limits.

Every comparison is a race of `testbed.benchmarks.timing` in this one process, on CPU time. Vectors are uniform field
elements; ours checks every input for canonical words, the peers do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from fedpruneshare.sharing.field import F31, Words
from fedpruneshare.sharing.prg import BACKENDS, Prg
from testbed.benchmarks.limits import copy_each, keystream_and_copy
from testbed.benchmarks.peers import Offer, Ours, Peer, verify
from testbed.benchmarks.sharing_figures import COPY, KEYSTREAM_AND_COPY, Figure, demanded_ratio
from testbed.benchmarks.timing import Clock, Work, race

#: (n, k)
SCHEMES: Final = ((3, 2), (5, 3))
#: So many clients have shares of their own; more clients are the same ones again.
DISTINCT_CLIENTS: Final = 10


@dataclass(frozen=True)
class Effort:
    """How much is measured. `slow_share`: of the values that slow peers are timed with."""

    sizes: tuple[int, ...]
    pairs: int
    slow_pairs: int
    clients: int
    slow_share: float
    memory_values: int


FULL: Final = Effort((100_000, 1_000_000), pairs=7, slow_pairs=3, clients=100, slow_share=1.0, memory_values=10_000_000)
QUICK: Final = Effort((100_000,), pairs=3, slow_pairs=1, clients=20, slow_share=0.25, memory_values=1_000_000)


@dataclass(frozen=True)
class Case:
    """Of one race: scheme, values of our side, the other side and how many values it takes."""

    n: int
    k: int
    values: int
    other: str
    other_values: int
    is_limit: bool = False
    is_slow: bool = False


@dataclass
class SharingBench:
    """Collects the figures of all races; `note` is told what comes next."""

    effort: Effort
    prg: Prg
    offers: Sequence[Offer]
    clock: Clock
    rng: np.random.Generator
    note: Callable[[str], None]
    figures: list[Figure] = field(default_factory=list)

    def run(self) -> list[Figure]:
        """Check everybody, then race. Raises `RunError` if a peer, or ours, shares wrongly."""
        self.check()
        for values in self.effort.sizes:
            for n, k in SCHEMES:
                self.note(f"physical limits, ({k},{n}), {values:,} values")
                self._race_limits(n, k, values)
                for offer in self.offers:
                    self.note(f"{offer.name}, ({k},{n}), {values:,} values")
                    self._race_peer(offer, n, k, values)
        return self.figures

    def check(self) -> None:
        """Everybody's split, opening and sums against plain integers. Raises `RunError` naming who is wrong."""
        for n, k in SCHEMES:
            verify("ours", Ours(n, k, self.prg), (n, k), True, self.rng)
            for offer in self.offers:
                self.note(f"checking {offer.name}, ({k},{n})")
                verify(offer.name, offer.make(n, k, self.rng), (n, k), offer.is_in_field, self.rng)

    def _race_peer(self, offer: Offer, n: int, k: int, values: int) -> None:
        case = Case(n, k, values, offer.name, self._other_values(offer, values), is_slow=offer.most_values is not None)
        ours, peer = Ours(n, k, self.prg), offer.make(n, k, self.rng)
        self._race_split(case, ours, peer)
        self._race_open(case, ours, peer)
        if peer.adds:
            clients = self.effort.clients
            their_clients = min(DISTINCT_CLIENTS, clients) if case.is_slow else clients
            self._race(
                case,
                "add",
                f"{clients} clients",
                self._sum(ours, values, clients),
                self._sum(peer, case.other_values, their_clients),
            )

    def _other_values(self, offer: Offer, values: int) -> int:
        if offer.most_values is None:
            return values
        # Whole blocks, for the peers that pack.
        return min(values, max(8, int(offer.most_values * self.effort.slow_share))) // 8 * 8

    def _race_split(self, case: Case, ours: Peer, peer: Peer) -> None:
        mine, theirs = ours.take(self._words(case.values)), peer.take(self._words(case.other_values))
        self._race(
            case,
            "split",
            "all n shares",
            Work(lambda: ours.split(mine), case.values),
            Work(lambda: peer.split(theirs), case.other_values),
        )

    def _race_open(self, case: Case, ours: Peer, peer: Peer) -> None:
        mine = ours.split(ours.take(self._words(case.values)))
        theirs = peer.split(peer.take(self._words(case.other_values)))
        for detail, points in openings(case.n, case.k).items():
            a, b = ours.pick(mine, points), peer.pick(theirs, points)
            self._race(
                case,
                "open",
                detail,
                Work(partial(ours.open, a), case.values),
                Work(partial(peer.open, b), case.other_values),
            )

    def _race_limits(self, n: int, k: int, values: int) -> None:
        ours, words, clients = Ours(n, k, self.prg), self._words(values), self.effort.clients
        limit = keystream_and_copy(self.prg, BACKENDS[0], k - 1, ours.split(words))
        case = Case(n, k, values, KEYSTREAM_AND_COPY, values, is_limit=True)
        self._race(case, "split", "all n shares", Work(lambda: ours.split(words), values), Work(limit, values))
        columns = self._columns(ours, values, clients)
        case = Case(n, k, values, COPY, values, is_limit=True)
        copies = Work(copy_each(columns), values * clients)
        self._race(case, "add", f"{clients} clients", Work(lambda: ours.sum_of(columns), values * clients), copies)

    def _race(self, case: Case, operation: str, detail: str, ours: Work, other: Work) -> None:
        ran = race(ours, other, self.effort.slow_pairs if case.is_slow else self.effort.pairs, self.clock)
        demanded = demanded_ratio(operation, case.other, (case.n, case.k), case.values)
        self.figures.append(
            Figure(
                operation=operation,
                detail=detail,
                n=case.n,
                k=case.k,
                values=case.values,
                other=case.other,
                is_limit=case.is_limit,
                other_values=case.other_values,
                pairs=ran.pairs,
                ours=ran.ours_median,
                other_rate=ran.other_median,
                ratio=ran.ratio,
                demanded=demanded,
                met=None if demanded is None else ran.ratio >= demanded,
            )
        )

    def _sum(self, peer: Peer, values: int, clients: int) -> Work:
        columns = self._columns(peer, values, clients)
        return Work(lambda: peer.sum_of(columns), values * clients)

    def _columns(self, peer: Peer, values: int, clients: int) -> list[Any]:
        """The shares that so many clients have for point 1."""
        distinct = [
            peer.column(peer.split(peer.take(self._words(values))), 1) for _ in range(min(DISTINCT_CLIENTS, clients))
        ]
        return [distinct[client % len(distinct)] for client in range(clients)]

    def _words(self, values: int) -> Words:
        return self.rng.integers(0, F31.p, values, dtype=F31.word_type)


def openings(n: int, k: int) -> dict[str, tuple[int, ...]]:
    """Subsets of k points to open from: the first ones, and one with a gap where there is one."""
    found = {"consecutive points": tuple(range(1, k + 1))}
    if n > k:
        found["points with a gap"] = (*range(1, k), n)
    return found
