"""(n, k, t) sharing of whole vectors: Shamir, seed-compressed, plain or ramp (docs/protocol.md §5.4, §5.5).

Each polynomial f of degree < k carries k − t secrets, at x = 0, −1, …, and its value at x = 1…n is the share of that
point. The shares of points 1…t are keystreams and travel as seeds; with the secrets they fix f, and walking the table
of differences extends it to the other points by additions alone. t = k − 1 is Shamir's scheme (CACM 1979); below that
it is ramp or packed sharing (Blakley and Meadows 1984; Franklin and Yung 1992): shorter shares, secret from t parties
instead of k − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from fedpruneshare.errors import InconsistentSharesError, PlanError, SharingError
from fedpruneshare.sharing.field import (
    F31,
    Field,
    Words,
    add_into,
    check_alike,
    check_canonical,
    check_words,
    modsub,
)
from fedpruneshare.sharing.polynomial import interpolate, walk
from fedpruneshare.sharing.prg import SEED_BYTES, ElementStream, Prg, Seed

MAX_SHARES: Final = 16


@dataclass(frozen=True)
class SharingScheme:
    """Any `k` of `n` shares open, any `t` together tell nothing; between the two they tell part (ramp sharing).

    Raises `PlanError` for other than 1 ≤ t < k ≤ n ≤ 16.
    """

    n: int
    k: int
    t: int
    field: Field = F31

    def __post_init__(self) -> None:
        if not 2 <= self.k <= self.n <= MAX_SHARES:
            raise PlanError(f"k = {self.k} of n = {self.n}, expected 2 <= k <= n <= {MAX_SHARES}")
        if not 1 <= self.t < self.k:
            raise PlanError(f"t = {self.t}, expected 1 to k - 1 = {self.k - 1}")

    # ------------------------------------------------------------------ sizes

    @property
    def secrets(self) -> int:
        """Words that one polynomial carries: k − t."""
        return self.k - self.t

    @property
    def full_points(self) -> range:
        """The points whose shares are vectors: t + 1 … n. Those before travel as seeds."""
        return range(self.t + 1, self.n + 1)

    def elements(self, words: int) -> int:
        """Elements of a full share of so many words."""
        return -(-words // self.secrets)

    def is_seed_point(self, x: int) -> bool:
        """Whether the share of point x travels as a seed. Raises `SharingError` unless 1 ≤ x ≤ n."""
        self._check_point(x)
        return x <= self.t

    def share_bytes(self, x: int, words: int) -> int:
        """Bytes of a share of so many words at point x."""
        return SEED_BYTES if self.is_seed_point(x) else self.field.word_bytes * self.elements(words)

    # ------------------------------------------------------------------ split

    def split(self, words: Words, seeds: Mapping[int, Seed], prg: Prg, domain: bytes) -> dict[int, Words]:
        """Share a vector: elements [⌈m/(k−t)⌉] for each full point; the seed points' shares are their seeds.

        `seeds`: exactly the points 1…t, no two alike. Raises `SharingError` for other points, a seed used twice or
        words that are not canonical.
        """
        size = self.elements(words.size)
        out = {x: np.empty(size, dtype=self.field.word_type) for x in self.full_points}
        self.split_next(words, self.open_streams(seeds, (prg, domain)), out)
        return out

    def split_chunks(
        self, words: Words, seeds: Mapping[int, Seed], stream: tuple[Prg, bytes], out: Mapping[int, Words]
    ) -> Iterator[slice]:
        """As `split`, chunk by chunk into the caller's buffers; yields the slice that has just been written.

        `stream` = (keystream algorithm, domain); `out`: elements for each full point, which may be the secret's own
        buffer, and for any seed point whose share is wanted. All is checked at the call, before anything is written.
        """
        return self._extend_into(words, self.open_streams(seeds, stream), out)

    def stream(
        self, words: Words, seeds: Mapping[int, Seed], stream: tuple[Prg, bytes]
    ) -> Iterator[tuple[slice, dict[int, Words]]]:
        """As `split`, chunk by chunk in its own buffers, valid until the next: (slice of the share, elements by point).

        Extra memory: k + n chunks of 128 KiB, whatever the length. All is checked at the call.
        """
        return self.stream_next(words, self.open_streams(seeds, stream), self.n)

    def stream_next(
        self, words: Words, streams: list[ElementStream], last: int
    ) -> Iterator[tuple[slice, dict[int, Words]]]:
        """As `stream` for one of several vectors in the same keystreams, for the full points up to `last` only."""
        check_canonical(words, self.field)
        width = min(self.field.chunk, self.elements(words.size))
        buffers = {x: np.empty(width, dtype=self.field.word_type) for x in self.full_points if x <= last}
        return self._extend(words, streams, lambda part: {x: b[: part.stop - part.start] for x, b in buffers.items()})

    def split_next(self, words: Words, streams: list[ElementStream], out: Mapping[int, Words]) -> None:
        """Share one of several vectors that follow one another in the same keystreams, as `open_streams` gives them.

        `out` as for `split_chunks`. Raises `SharingError` as `split`.
        """
        for _ in self._extend_into(words, streams, out):
            pass

    def open_streams(
        self, seeds: Mapping[int, Seed], stream: tuple[Prg, bytes], backend: str | None = None
    ) -> list[ElementStream]:
        """The keystreams of points 1…t, by `backend` or else the quickest library.

        Raises `SharingError` for other points or a seed used twice.
        """
        if sorted(seeds) != list(range(1, self.t + 1)):
            raise SharingError(f"seeds for points {sorted(seeds)}, expected 1 to {self.t}")
        for x, other in combinations(sorted(seeds), 2):
            # With one seed for all of 1 … t and an odd k, f(k) would be the secret itself.
            if seeds[x] == seeds[other]:
                raise SharingError(f"points {x} and {other} have the same seed, expected a fresh one for each")
        return [ElementStream(stream[0], seeds[x], stream[1], self.field, backend) for x in range(1, self.t + 1)]

    def _extend_into(self, words: Words, streams: list[ElementStream], out: Mapping[int, Words]) -> Iterator[slice]:
        self._check_outputs(out, self.elements(words.size))
        check_canonical(words, self.field)
        steps = self._extend(words, streams, lambda part: {x: vector[part] for x, vector in out.items()})
        return (part for part, _ in steps)

    def _extend(
        self, words: Words, streams: list[ElementStream], places: Callable[[slice], dict[int, Words]]
    ) -> Iterator[tuple[slice, dict[int, Words]]]:
        """Secrets and the next elements of `streams` -> the shares, written where `places` says, chunk by chunk.

        Nothing is copied that need not be: secrets are read where they lie, seed shares that are wanted are drawn
        where they go.
        """
        size, width = self.elements(words.size), min(self.field.chunk, self.elements(words.size))
        own, padding, table = (
            np.empty((rows, width), dtype=self.field.word_type) for rows in (self.t, self.secrets, self.k)
        )
        for start in range(0, size, self.field.chunk):
            part = slice(start, min(start + self.field.chunk, size))
            out, length = places(part), part.stop - part.start
            values = self._secrets(words, part, padding[:, :length])
            for index, elements in enumerate(streams):
                values.append(elements.fill(out.get(index + 1, own[index, :length])))
            wanted = [out[x] for x in self.full_points if x in out]  # from t + 1 on without a gap
            walk(values, table[:, :length], wanted, self.field)
            yield part, out

    def _secrets(self, words: Words, part: slice, padding: Words) -> list[Words]:
        """Secrets of a chunk at x = −(k − t − 1), …, 0. Planar: secret j of element i is word j·size + i, or zero."""
        size = self.elements(words.size)
        rows = []
        for secret in reversed(range(self.secrets)):
            row = words[secret * size + part.start : secret * size + part.stop]
            if row.size < part.stop - part.start:
                padding[secret, : row.size], padding[secret, row.size :] = row, 0
                row = padding[secret]
            rows.append(row)
        return rows

    def _check_outputs(self, out: Mapping[int, Words], size: int) -> None:
        if not set(self.full_points) <= set(out) <= set(range(1, self.n + 1)):
            raise SharingError(f"outputs for points {sorted(out)}, expected {self.t + 1} to {self.n}")
        for x, share in out.items():
            if share.size != size:
                raise SharingError(f"output for point {x} of {share.size} words, expected {size}")
        check_alike(self.field, *out.values())

    # ------------------------------------------------------------------ open

    def open(self, shares: Mapping[int, Words], words: int | None = None) -> Words:
        """The secret words [m] from the shares of at least k points; with more than k they must all agree.

        `words`: m, by default all that the shares carry. Raises `SharingError` for too few, impossible points, unequal
        lengths, words that are not canonical or padding that is not zero, and `InconsistentSharesError` if the shares
        lie on no polynomial of degree < k.
        """
        size = self._check_shares(shares)
        count = self.secrets * size if words is None else words
        if self.elements(count) != size:
            raise SharingError(f"shares of {size} elements, expected {self.elements(count)} for {count} words")
        self._check_consistency(shares)
        chosen = tuple(sorted(shares))[: self.k]
        rows = [shares[x] for x in chosen]
        opened = np.empty(self.secrets * size, dtype=self.field.word_type)
        for secret in range(self.secrets):
            target = opened[secret * size : (secret + 1) * size]
            interpolate(chosen, -secret, rows, target, self.field)
        if opened[count:].any():
            raise SharingError("the shares open to something behind the last word, expected zero there")
        return opened[:count]

    def check(self, shares: Mapping[int, Words]) -> None:
        """Whether the shares of more than k points lie on polynomials of degree < k.

        Raises `InconsistentSharesError` if not, and `SharingError` for shares that cannot be compared: k or fewer say
        nothing about one another.
        """
        self._check_shares(shares)
        if len(shares) == self.k:
            raise SharingError(f"{self.k} shares, expected more than k = {self.k}: fewer always agree")
        self._check_consistency(shares)

    def _check_consistency(self, shares: Mapping[int, Words]) -> None:
        points = tuple(sorted(shares))
        chosen = points[: self.k]
        rows = [shares[x] for x in chosen]
        expected = np.empty(rows[0].size, dtype=self.field.word_type)
        for x in points[self.k :]:
            interpolate(chosen, x, rows, expected, self.field)
            if not np.array_equal(expected, shares[x]):
                wrong = int(np.count_nonzero(expected != shares[x]))
                raise InconsistentSharesError(
                    f"shares of points {list(points)} disagree in {wrong} of {expected.size} words at x = {x},"
                    f" expected one polynomial of degree < {self.k}"
                )

    def locate(self, shares: Mapping[int, Words]) -> tuple[int, ...]:
        """The points whose shares are wrong, none if all agree: m shares locate up to ⌊(m − k)/2⌋ wrong ones.

        Unique decoding of the Reed-Solomon code that the shares are. Raises `InconsistentSharesError` where no so few
        points explain the disagreement, and `SharingError` as `check` does.
        """
        points = tuple(sorted(shares))
        most = (len(points) - self.k) // 2
        try:
            self.check(shares)
        except InconsistentSharesError:
            if not most:
                raise
        else:
            return ()
        disputed = self._disputed(shares)
        for count in range(1, most + 1):
            for suspects in combinations(points, count):
                rest = self._disputed({x: disputed[x] for x in points if x not in suspects})
                if not next(iter(rest.values())).size:
                    return suspects
        raise InconsistentSharesError(
            f"shares of points {list(points)} disagree and no {most} of them explain it,"
            f" expected one polynomial of degree < {self.k}"
        )

    def _disputed(self, shares: Mapping[int, Words]) -> dict[int, Words]:
        """Shares reduced to the elements they disagree in."""
        points = tuple(sorted(shares))
        rows = [shares[x] for x in points[: self.k]]
        expected = np.empty(rows[0].size, dtype=self.field.word_type)
        wrong = np.zeros(rows[0].size, dtype=bool)
        for x in points[self.k :]:
            wrong |= interpolate(points[: self.k], x, rows, expected, self.field) != shares[x]
        return {x: shares[x][wrong] for x in points}

    # ------------------------------------------------------------------ checks

    def _check_shares(self, shares: Mapping[int, Words]) -> int:
        if len(shares) < self.k:
            raise SharingError(f"{len(shares)} shares, expected at least k = {self.k}")
        for x, share in shares.items():
            self._check_point(x)
            check_canonical(share, self.field)
        sizes = {x: share.size for x, share in shares.items()}
        if len(set(sizes.values())) > 1:
            raise SharingError(f"shares of different lengths {sizes}, expected one length")
        return next(iter(sizes.values()))

    def _check_point(self, x: int) -> None:
        if not 1 <= x <= self.n:
            raise SharingError(f"point x = {x}, expected 1 to n = {self.n}")


class Accumulator:
    """Running sum of share vectors of one length."""

    def __init__(self, elements: int, field: Field = F31) -> None:
        self._sum = np.zeros(elements, dtype=field.word_type)
        self._field = field
        self.count = 0

    def add(self, share: Words) -> None:
        """Add a share [m]. Raises `SharingError`, the sum unchanged, if it is not m canonical words.

        Each chunk is checked while it is in cache; should one fail, those before it are taken out again.
        """
        self._check(share)
        field = self._field
        scratch = np.empty(min(field.chunk, share.size), dtype=field.word_type)
        for start in range(0, share.size, field.chunk):
            given, part = share[start : start + field.chunk], self._sum[start : start + field.chunk]
            if int(given.max()) >= field.p:
                modsub(self._sum[:start], share[:start], self._sum[:start], field)
                check_canonical(share, field)
            add_into(part, given, part, scratch, field)
        self.count += 1

    def add_seed(self, prg: Prg, seed: Seed, domain: bytes) -> None:
        """Add the share that a seed stands for. Extra memory: two chunks."""
        elements = ElementStream(prg, seed, domain, self._field)
        size = self._sum.size
        block, scratch = (np.empty(min(self._field.chunk, size), dtype=self._field.word_type) for _ in range(2))
        for start in range(0, size, self._field.chunk):
            part = self._sum[start : start + self._field.chunk]
            add_into(part, elements.fill(block[: part.size]), part, scratch, self._field)
        self.count += 1

    def remove(self, share: Words) -> None:
        """Take a share that was added out again. Raises as `add`."""
        if self.count == 0:
            raise RuntimeError("nothing was added")
        self._check(share)
        check_canonical(share, self._field)
        modsub(self._sum, share, self._sum, self._field)
        self.count -= 1

    def export(self) -> Words:
        """A copy of the sum."""
        return self._sum.copy()

    def _check(self, share: Words) -> None:
        if share.size != self._sum.size:
            raise SharingError(f"share of {share.size} words, expected {self._sum.size}")
        check_words(share, self._field)
