"""Values of polynomials of degree < k from k others, whole vectors at a time (docs/protocol.md §5.4, §5.5).

From consecutive points to the next ones leads Newton's table of finite differences: additions only, three passes of
numpy each. From any other points leads Lagrange's formula, with products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.field import F31, Field, Words, add_into, check_alike, subtract_into, sum_of_products

#: So many additions cost about as much as a product.
_ADDITIONS_PER_PRODUCT: Final = 3


def walk(values: Sequence[Words], table: Words, out: Sequence[Words], field: Field) -> None:
    """From f at k consecutive points to f at the points that follow, one for each array of `out`.

    For inner loops, unchecked: all arrays of one length, at most a chunk; `table` is work space for k of them.
    `out` may hold any of `values` but the last.
    """
    k = len(values)
    scratch = table[k - 1]
    for row in range(k - 1):  # backward differences at the last point, highest order in row 0
        subtract_into(values[row + 1], values[row], table[row], scratch, field)
    for order in range(2, k):
        for row in range(k - order):
            subtract_into(table[row + 1], table[row], table[row], scratch, field)
    last = values[k - 1]
    for target in out:
        for row in range(1, k - 1):
            add_into(table[row], table[row - 1], table[row], scratch, field)
        add_into(last, table[k - 2], target, scratch, field)
        last = target


def interpolate(points: tuple[int, ...], at: int, rows: Sequence[Words], out: Words, field: Field = F31) -> Words:
    """Write f(at) into `out`, f the polynomials of degree < len(points) with the values `rows` at the rising `points`.

    `out` may be one of the rows. Raises `SharingError` unless the points are distinct mod p and all arrays of one
    length.
    """
    check_alike(field, out, *rows)
    steps = _steps(points, at)
    k = len(points)
    if k > 1 and steps > 0 and k * (k - 1) // 2 + steps * (k - 1) <= _ADDITIONS_PER_PRODUCT * k:
        return _walk_to(rows if at > points[-1] else list(reversed(rows)), steps, out, field)
    return sum_of_products(lagrange_weights(points, at, field.p), rows, out, field)


def _steps(points: tuple[int, ...], at: int) -> int:
    """How far `at` lies beyond consecutive points, on either side; 0 where it does not, or they are not."""
    if list(points) != list(range(points[0], points[0] + len(points))):
        return 0
    return max(at - points[-1], points[0] - at, 0)


def _walk_to(rows: Sequence[Words], steps: int, out: Words, field: Field) -> Words:
    """`interpolate` by differences, chunk by chunk; only the last step is kept."""
    width = min(field.chunk, out.size)
    table = np.empty((len(rows) + 1, width), dtype=field.word_type)
    for start in range(0, out.size, field.chunk):
        values = [row[start : start + field.chunk] for row in rows]
        between = table[len(rows), : values[0].size]
        walk(values, table[:, : values[0].size], [between] * steps, field)
        out[start : start + field.chunk] = between
    return out


@lru_cache(maxsize=4096)
def lagrange_weights(points: tuple[int, ...], at: int, p: int = F31.p) -> tuple[int, ...]:
    """λ_i with f(at) = Σ λ_i·f(points_i) mod p for every f of degree < len(points).

    Raises `SharingError` unless the points are distinct mod p.
    """
    if len({x % p for x in points}) < len(points):
        raise SharingError(f"points {list(points)}, expected distinct ones modulo {p}")
    weights = []
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * (at - other) % p
                denominator = denominator * (x - other) % p
        weights.append(numerator * pow(denominator, -1, p) % p)
    return tuple(weights)
