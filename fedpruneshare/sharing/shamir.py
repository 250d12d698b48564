"""(k, n) Shamir sharing of whole vectors, seed-compressed, split by finite differences (docs/protocol.md §5.4, §5.5).

f(0) is the secret and f(x) the share of point x = 1…n, deg f < k, one polynomial per word. The shares of points 1…t
(t = k − 1) are keystreams and travel as seeds; together with the secret they fix f, and walking the table of
differences extends it to the other points by additions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from fedpruneshare.errors import InconsistentSharesError, PlanError, SharingError
from fedpruneshare.sharing.field import CHUNK, F31, Words, check_canonical, modadd, modsub, sum_of_products
from fedpruneshare.sharing.prg import SEED_BYTES, ElementStream, Prg, Seed, fill_elements

MAX_SHARES: Final = 16


@dataclass(frozen=True)
class SharingScheme:
    """Any `k` of `n` shares open, `t` together tell nothing. Raises `PlanError` for other than 2 ≤ k ≤ n, t = k − 1."""

    n: int
    k: int
    t: int

    def __post_init__(self) -> None:
        if not 2 <= self.k <= self.n <= MAX_SHARES:
            raise PlanError(f"k = {self.k} of n = {self.n}, expected 2 <= k <= n <= {MAX_SHARES}")
        if self.t != self.k - 1:
            raise PlanError(f"t = {self.t}, expected k - 1 = {self.k - 1}: ramp sharing is not supported")

    def is_seed_point(self, x: int) -> bool:
        """Whether the share of point x travels as a seed. Raises `SharingError` unless 1 ≤ x ≤ n."""
        self._check_point(x)
        return x <= self.t

    def share_bytes(self, x: int, words: int) -> int:
        """Bytes of a share of so many words at point x."""
        return SEED_BYTES if self.is_seed_point(x) else F31.word_bytes * words

    def split(self, words: Words, seeds: Mapping[int, Seed], prg: Prg, domain: bytes) -> dict[int, Words]:
        """Share a vector: uint32[m] for each full point t + 1 … n; the seed points' shares are their seeds.

        `seeds`: exactly the points 1…t. Raises `SharingError` for other points or words that are not canonical.
        """
        out = {x: np.empty(words.size, dtype=F31.dtype) for x in range(self.t + 1, self.n + 1)}
        for _ in self.split_chunks(words, seeds, (prg, domain), out):
            pass
        return out

    def split_chunks(
        self, words: Words, seeds: Mapping[int, Seed], stream: tuple[Prg, bytes], out: Mapping[int, Words]
    ) -> Iterator[slice]:
        """As `split`, chunk by chunk into the caller's buffers; yields the slice that has just been written.

        `stream` = (keystream algorithm, domain). Extra memory: k + 1 chunks.
        """
        check_canonical(words)
        if sorted(seeds) != list(range(1, self.t + 1)) or sorted(out) != list(range(self.t + 1, self.n + 1)):
            raise SharingError(f"seeds for points {sorted(seeds)}, expected 1 to {self.t}, and outputs for the others")
        streams = [ElementStream(stream[0], seeds[x], stream[1]) for x in range(1, self.t + 1)]
        rows = np.empty((self.k, min(CHUNK, max(words.size, 1))), dtype=F31.dtype)
        for start in range(0, words.size, CHUNK):
            part = slice(start, min(start + CHUNK, words.size))
            table = rows[:, : part.stop - part.start]
            table[0] = words[part]
            for row, elements in zip(table[1:], streams, strict=True):
                elements.fill(row)
            self._extend(table, {x: vector[part] for x, vector in out.items()})
            yield part

    def _extend(self, table: Words, out: Mapping[int, Words]) -> None:
        """From f(0)…f(k−1) in the rows of `table` (overwritten) to f(k)…f(n)."""
        k = self.k
        for order in range(1, k):  # backward differences of f at k − 1, highest order in row 0
            for row in range(k - order):
                modsub(table[row + 1], table[row], out=table[row])
        for x in range(k, self.n + 1):
            for row in range(1, k):
                modadd(table[row], table[row - 1], out=table[row])
            out[x][:] = table[k - 1]

    def open(self, shares: Mapping[int, Words]) -> Words:
        """The secret uint32[m] from the shares of at least k points; with more than k they must all agree.

        Raises `SharingError` for too few, impossible points, unequal lengths or words that are not canonical, and
        `InconsistentSharesError` if the shares lie on no polynomial of degree < k.
        """
        points = tuple(sorted(shares))
        self._check_shares(shares)
        chosen = points[: self.k]
        rows = [shares[x] for x in chosen]
        for x in points[self.k :]:
            expected = self._interpolate(chosen, x, rows)
            if not np.array_equal(expected, shares[x]):
                wrong = int(np.count_nonzero(expected != shares[x]))
                raise InconsistentSharesError(
                    f"shares of points {list(points)} disagree in {wrong} of {expected.size} words at x = {x},"
                    f" expected one polynomial of degree < {self.k}"
                )
        return self._interpolate(chosen, 0, rows)

    def _interpolate(self, points: tuple[int, ...], at: int, rows: list[Words]) -> Words:
        out = np.empty(rows[0].size, dtype=F31.dtype)
        return sum_of_products(lagrange_weights(points, at), rows, out)

    def _check_shares(self, shares: Mapping[int, Words]) -> None:
        if len(shares) < self.k:
            raise SharingError(f"{len(shares)} shares, expected at least k = {self.k}")
        for x, share in shares.items():
            self._check_point(x)
            check_canonical(share)
        sizes = {x: share.size for x, share in shares.items()}
        if len(set(sizes.values())) > 1:
            raise SharingError(f"shares of different lengths {sizes}, expected one length")

    def _check_point(self, x: int) -> None:
        if not 1 <= x <= self.n:
            raise SharingError(f"point x = {x}, expected 1 to n = {self.n}")


@lru_cache(maxsize=1024)
def lagrange_weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """λ_i with f(at) = Σ λ_i·f(points_i) mod p for every f of degree < len(points). Points must be distinct mod p."""
    weights = []
    for x in points:
        others = [other for other in points if other != x]
        numerator = denominator = 1
        for other in others:
            numerator = numerator * (at - other) % F31.p
            denominator = denominator * (x - other) % F31.p
        weights.append(numerator * pow(denominator, -1, F31.p) % F31.p)
    return tuple(weights)


class Accumulator:
    """Running sum of share vectors of one length."""

    def __init__(self, words: int) -> None:
        self._sum = np.zeros(words, dtype=F31.dtype)
        self.count = 0

    def add(self, words: Words) -> None:
        """Add a share uint32[m]. Raises `SharingError`, the sum unchanged, if it is not m canonical words."""
        self._check(words)
        modadd(self._sum, words, out=self._sum)
        self.count += 1

    def add_seed(self, prg: Prg, seed: Seed, domain: bytes) -> None:
        """Add the share that a seed stands for."""
        self.add(fill_elements(prg, seed, domain, np.empty(self._sum.size, dtype=F31.dtype)))

    def remove(self, words: Words) -> None:
        """Take a share that was added out again."""
        if self.count == 0:
            raise RuntimeError("nothing was added")
        self._check(words)
        modsub(self._sum, words, out=self._sum)
        self.count -= 1

    def export(self) -> Words:
        """A copy of the sum."""
        return self._sum.copy()

    def _check(self, words: Words) -> None:
        if words.size != self._sum.size:
            raise SharingError(f"share of {words.size} words, expected {self._sum.size}")
        check_canonical(words)
