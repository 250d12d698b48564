"""What a Python user would share secrets with instead, and ours in the same shape, each checked before it is timed.

Every adapter draws its randomness inside `split`, as its package does. All work over GF(2^31 − 1), except
pycryptodome's, which has GF(2^128) only. A package that is not installed is named, with what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Final, Protocol

import numpy as np

from fedpruneshare.errors import RunError
from fedpruneshare.sharing.field import F31, Words
from fedpruneshare.sharing.prg import Prg, Seed
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme
from testbed.benchmarks.packages import why_not
from testbed.benchmarks.peer_scalars import Pycryptodome, PycryptodomePacked, Shamirs, Tno
from testbed.benchmarks.peer_vectors import GaloisHorner, GaloisMatrix, HandWritten, Mpyc, ReducedOnce


class Peer(Protocol):
    """(k, n) sharing as one package does it. `Any` is whatever the package calls a vector, a share or a sum."""

    #: Whether shares can be added, and the sum of shares opens to the sum of the secrets mod p.
    adds: ClassVar[bool]

    def take(self, words: Words) -> Any:
        """Secrets as the package wants them."""

    def split(self, secrets: Any) -> Any:
        """Shares for points 1 … n, fresh randomness included."""

    def column(self, shares: Any, x: int) -> Any:
        """All shares of one point."""

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """What `open` takes: the shares of k points."""

    def open(self, picked: Any) -> Any:
        """The secrets."""

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Sum of several clients' shares of one point, starting from zero."""

    def numbers(self, vector: Any) -> Words:
        """Opened secrets, a column or a sum as uint32."""


@dataclass(frozen=True)
class Offer:
    """A peer: its name in the tables, distribution and module, and how many values a call is timed with at most.

    `most_values`: None for peers quick enough for any size. Slower ones take so many and their rate per value counts:
    all of them work value by value, so their time is linear in the number of values.
    """

    name: str
    package: str
    module: str
    make: Callable[[int, int, np.random.Generator], Peer]
    most_values: int | None = None
    is_in_field: bool = True


OFFERS: Final = (
    Offer("galois Horner", "galois", "galois", GaloisHorner),
    Offer("galois V @ C", "galois", "galois", GaloisMatrix, 200_000),
    Offer("hand-written numpy", "numpy", "numpy", HandWritten),
    Offer("numpy, one % at the end", "numpy", "numpy", ReducedOnce),
    Offer("mpyc", "mpyc", "mpyc.thresha", Mpyc, 100_000),
    Offer("shamirs", "shamirs", "shamirs", Shamirs, 4_000),
    Offer("tno", "tno.mpc.encryption_schemes.shamir", "tno.mpc.encryption_schemes.shamir.shamir", Tno, 4_000),
    Offer("pycryptodome, 1 packed", "pycryptodome", "Crypto", Pycryptodome, 400, is_in_field=False),
    Offer("pycryptodome, 4 packed", "pycryptodome", "Crypto", PycryptodomePacked, 1_600, is_in_field=False),
)


def available(offers: Sequence[Offer] = OFFERS) -> tuple[list[Offer], dict[str, str]]:
    """The peers that can be imported, and for each of the others why not."""
    reasons = {offer.name: why_not(offer.module) for offer in offers}
    return [offer for offer in offers if reasons[offer.name] is None], {
        name: reason for name, reason in reasons.items() if reason is not None
    }


# --------------------------------------------------------------------------- ours


class Ours:
    """This project's sharing, with all n shares written into buffers that are reused; every input is checked."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, prg: Prg) -> None:
        self._scheme, self._prg = SharingScheme(n, k, k - 1), prg
        self._out: dict[int, Words] = {}

    def take(self, words: Words) -> Words:
        """As they are."""
        return words

    def split(self, secrets: Words) -> dict[int, Words]:
        """Valid until the next split."""
        if not self._out or self._out[1].size != secrets.size:
            self._out = {x: np.empty_like(secrets) for x in range(1, self._scheme.n + 1)}
        seeds = {x: Seed.fresh() for x in range(1, self._scheme.t + 1)}
        for _ in self._scheme.split_chunks(secrets, seeds, (self._prg, b"benchmark"), self._out):
            pass
        return self._out

    def column(self, shares: dict[int, Words], x: int) -> Words:
        """A copy, since the buffers are reused."""
        return shares[x].copy()

    def pick(self, shares: dict[int, Words], points: Sequence[int]) -> dict[int, Words]:
        """Copies by point."""
        return {x: shares[x].copy() for x in points}

    def open(self, picked: dict[int, Words]) -> Words:
        """Canonical checks included."""
        return self._scheme.open(picked)

    def sum_of(self, columns: Sequence[Words]) -> Words:
        """Canonical checks included."""
        total = Accumulator(columns[0].size)
        for column in columns:
            total.add(column)
        return total.export()

    def numbers(self, vector: Words) -> Words:
        """As they are."""
        return vector


# --------------------------------------------------------------------------- right before quick


def verify(name: str, peer: Peer, scheme: tuple[int, int], is_in_field: bool, rng: np.random.Generator) -> None:
    """Split, open from every k-subset, and sums, against plain integers, before anything is timed.

    `scheme` = (n, k). Raises `RunError` naming the peer.
    """
    n, k = scheme
    words = rng.integers(0, F31.p, 16).astype(F31.dtype)
    words[:4] = 0, 1, F31.p - 1, F31.p - 2
    shares = peer.split(peer.take(words))
    for points in combinations(range(1, n + 1), k):
        _expect(name, f"opening from points {list(points)}", peer.numbers(peer.open(peer.pick(shares, points))), words)
        if is_in_field:
            rows = [peer.numbers(peer.column(shares, x)).tolist() for x in points]
            at_zero = [_interpolate(points, values) for values in zip(*rows, strict=True)]
            _expect(name, f"the shares of points {list(points)}", np.array(at_zero, dtype=F31.dtype), words)
    if peer.adds:
        column = peer.column(shares, n)
        once = peer.numbers(column).astype(np.uint64)
        total = peer.numbers(peer.sum_of([column, column, column]))
        _expect(name, "the sum of three shares", total, (3 * once % F31.p).astype(F31.dtype))


def _interpolate(points: tuple[int, ...], values: Sequence[int]) -> int:
    """f(0) of the polynomial through (points, values), in integers; shares no code with what is checked."""
    total = 0
    for x, value in zip(points, values, strict=True):
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator, denominator = numerator * -other, denominator * (x - other)
        total += value * numerator * pow(denominator, -1, F31.p)
    return total % F31.p


def _expect(name: str, what: str, found: Words, expected: Words) -> None:
    if not np.array_equal(found, expected):
        wrong = int(np.count_nonzero(found != expected)) if found.shape == expected.shape else expected.size
        raise RunError(f"{name}: {what} is wrong in {wrong} of {expected.size} values, so nothing is timed")
