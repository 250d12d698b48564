"""Peers that share whole vectors: galois, hand-written numpy, mpyc (`testbed.benchmarks.peers` says what each does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from fedpruneshare.sharing.field import F31, Words
from fedpruneshare.sharing.polynomial import lagrange_weights
from testbed.benchmarks.packages import load

P: Final = F31.p
_PRIMITIVE: Final = 7  # generates the multiplicative group; given, so that galois need not search for one


class GaloisHorner:
    """galois, one Horner step after the other on whole vectors: its quickest way. Its randomness is not secure."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, rng: np.random.Generator) -> None:
        galois = load("galois")
        self._n, self._k, self._rng = n, k, rng
        self.field: Any = galois.GF(P, repr="int", verify=False, primitive_element=_PRIMITIVE)

    def take(self, words: Words) -> Any:
        """Field array of galois' own word type."""
        return self.field(words)

    def split(self, secrets: Any) -> Any:
        """One product and one sum a coefficient and point."""
        coefficients = [self.field.Random(secrets.size, seed=self._rng) for _ in range(self._k - 1)]
        return {x: self._evaluate(secrets, coefficients, self.field(x)) for x in range(1, self._n + 1)}

    def _evaluate(self, secrets: Any, coefficients: list[Any], x: Any) -> Any:
        total = coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            total = total * x + coefficient
        return total * x + secrets

    def column(self, shares: Any, x: int) -> Any:
        """One row."""
        return shares[x]

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """(weight, share) by point."""
        weights = lagrange_weights(tuple(points), 0)
        return [(self.field(weight), shares[x]) for weight, x in zip(weights, points, strict=True)]

    def open(self, picked: Any) -> Any:
        """Share times weight, summed."""
        (weight, share), *rest = picked
        total = share * weight
        for weight, share in rest:
            total = total + share * weight
        return total

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """One sum after the other; galois does not check its operands."""
        total = self.field.Zeros(columns[0].size)
        for column in columns:
            total = total + column
        return total

    def numbers(self, vector: Any) -> Words:
        """Plain words."""
        return np.asarray(vector).astype(F31.dtype)


class GaloisMatrix(GaloisHorner):
    """galois, a Vandermonde matrix times the coefficients: the obvious way."""

    adds: ClassVar[bool] = False  # as above

    def __init__(self, n: int, k: int, rng: np.random.Generator) -> None:
        super().__init__(n, k, rng)
        self._powers = self.field([[pow(x, power, P) for power in range(k)] for x in range(1, n + 1)])

    def split(self, secrets: Any) -> Any:
        """One matrix product."""
        coefficients = self.field.Random((self._k, secrets.size), seed=self._rng)
        coefficients[0] = secrets
        return dict(enumerate(self._powers @ coefficients, start=1))

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """(weights, rows)."""
        return self.field(lagrange_weights(tuple(points), 0)), self.field([shares[x] for x in points])

    def open(self, picked: Any) -> Any:
        """One vector-matrix product."""
        weights, rows = picked
        return weights @ rows


class HandWritten:
    """int64 and `%` at each step, what a person writes first. Its randomness is not secure."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, rng: np.random.Generator) -> None:
        self._n, self._k, self._rng = n, k, rng

    def take(self, words: Words) -> Any:
        """int64."""
        return words.astype(np.int64)

    def split(self, secrets: Any) -> Any:
        """Horner, reduced at each step."""
        coefficients = [self._rng.integers(0, P, secrets.size) for _ in range(self._k - 1)]
        shares = {}
        for x in range(1, self._n + 1):
            total = coefficients[0] * x % P
            for coefficient in coefficients[1:]:
                total = (total + coefficient) * x % P
            shares[x] = (total + secrets) % P
        return shares

    def column(self, shares: Any, x: int) -> Any:
        """One row."""
        return shares[x]

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """(weight, share) by point."""
        return [(weight, shares[x]) for weight, x in zip(lagrange_weights(tuple(points), 0), points, strict=True)]

    def open(self, picked: Any) -> Any:
        """Share times weight, reduced at each step."""
        total = 0
        for weight, share in picked:
            total = (total + share * weight % P) % P
        return total

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Reduced at each step."""
        total = np.zeros_like(columns[0])
        for column in columns:
            total = (total + column) % P
        return total

    def numbers(self, vector: Any) -> Words:
        """Plain words."""
        return np.asarray(vector).astype(F31.dtype)


class ReducedOnce(HandWritten):
    """uint64 and one `%` at the end, for whoever has worked out that nothing overflows for these n and k."""

    adds: ClassVar[bool] = True

    def take(self, words: Words) -> Any:
        """uint64."""
        return words.astype(np.uint64)

    def split(self, secrets: Any) -> Any:
        """Horner; below 2^31·(1 + n + … + n^(k−1))."""
        coefficients = [self._rng.integers(0, P, secrets.size, dtype=np.uint64) for _ in range(self._k - 1)]
        shares = {}
        for x in range(1, self._n + 1):
            total = coefficients[0] * x
            for coefficient in coefficients[1:]:
                total = (total + coefficient) * x
            shares[x] = (total + secrets) % P
        return shares

    def open(self, picked: Any) -> Any:
        """Sum of at most four products of 31-bit numbers."""
        (weight, share), *rest = picked
        total = share * weight
        for weight, share in rest:
            total = total + share * weight
        return total % P

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Up to 2^33 clients."""
        total = columns[0].copy()
        for column in columns[1:]:
            total += column
        return total % P


class Mpyc:
    """mpyc's own sharing of arrays: Python integers in object arrays, one secure draw a coefficient."""

    adds: ClassVar[bool] = True

    def __init__(self, n: int, k: int, _rng: np.random.Generator) -> None:
        self._thresha = load("mpyc.thresha")
        self._field: Any = load("mpyc.finfields").GF(P)
        self._n, self._k = n, k

    def take(self, words: Words) -> Any:
        """Field array."""
        return self._field.array(words.astype(object))

    def split(self, secrets: Any) -> Any:
        """Rows by point, from point 1."""
        return self._thresha.np_random_split(self._field, secrets, self._k - 1, self._n)

    def column(self, shares: Any, x: int) -> Any:
        """Field array."""
        return self._field.array(shares[x - 1])

    def pick(self, shares: Any, points: Sequence[int]) -> Any:
        """(point, row)."""
        return [(x, shares[x - 1]) for x in points]

    def open(self, picked: Any) -> Any:
        """Field array."""
        return self._thresha.np_recombine(self._field, picked)

    def sum_of(self, columns: Sequence[Any]) -> Any:
        """Field array."""
        total = self._field.array(np.zeros(len(columns[0]), dtype=object))
        for column in columns:
            total = total + column
        return total

    def numbers(self, vector: Any) -> Words:
        """Plain words."""
        return vector.value.astype(F31.dtype)  # type: ignore[no-any-return]
