"""Systematic Reed-Solomon erasure code over GF(256) for blobs (docs/protocol.md §5.8).

Piece x of n is a combination of k data pieces; any k pieces give the data back (Reed and Solomon 1960; the Cauchy form
of the generator is that of Blömer et al. 1995). Multiplication is one `bytes.translate` a piece, addition numpy's XOR.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

import numpy as np

#: Bytes of a piece that are coded at a time.
_STRIPE_BYTES: Final = 256 * 1024
#: x^8 + x^4 + x^3 + x^2 + 1, with 2 as a generator.
_BYTE_POLYNOMIAL: Final = 0x11D


@lru_cache(maxsize=1)
def _logarithms() -> tuple[list[int], list[int]]:
    """(powers of 2, logarithms) of GF(256)."""
    powers, logarithms, value = [0] * 510, [0] * 256, 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logarithms[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= _BYTE_POLYNOMIAL
    return powers, logarithms


def _multiply(a: int, b: int) -> int:
    powers, logarithms = _logarithms()
    return powers[logarithms[a] + logarithms[b]] if a and b else 0


def _inverse(a: int) -> int:
    powers, logarithms = _logarithms()
    return powers[255 - logarithms[a]]


@lru_cache(maxsize=256)
def _table(factor: int) -> bytes:
    """Factor times every byte, for `bytes.translate`."""
    return bytes(_multiply(factor, byte) for byte in range(256))


@lru_cache(maxsize=256)
def _generator(n: int, k: int) -> tuple[tuple[int, ...], ...]:
    """Row x − 1 gives piece x from the k data pieces: the unit matrix, then a Cauchy matrix; any k rows are regular."""
    unit = [tuple(int(column == row) for column in range(k)) for row in range(k)]
    cauchy = [tuple(_inverse(row ^ column) for column in range(k)) for row in range(k, n)]
    return (*unit, *cauchy)


def encode(data: bytes, n: int, k: int) -> dict[int, bytes]:
    """Data -> n pieces of ⌈size/k⌉ bytes by point: the first k are the data, padded with zeros."""
    size = -(-len(data) // k)
    padded = data + bytes(k * size - len(data))
    pieces = {x: padded[(x - 1) * size : x * size] for x in range(1, k + 1)}
    own = [pieces[x] for x in range(1, k + 1)]
    return pieces | {x: _combine_pieces(own, _generator(n, k)[x - 1]) for x in range(k + 1, n + 1)}


def decode(pieces: Mapping[int, bytes], k: int) -> bytes:
    """The padded data from the pieces of any k points, all of one length."""
    points = sorted(pieces)
    if points == list(range(1, k + 1)):
        return b"".join(pieces[x] for x in points)
    inverse = _invert([list(_generator(max(*points, k), k)[x - 1]) for x in points])
    given = [pieces[x] for x in points]
    return b"".join(pieces[x] if x in pieces else _combine_pieces(given, inverse[x - 1]) for x in range(1, k + 1))


def _combine_pieces(pieces: list[bytes], factors: tuple[int, ...] | list[int]) -> bytes:
    """Σ factors · pieces in GF(256), a stripe at a time."""
    return b"".join(_stripes(pieces, factors))


def _stripes(pieces: list[bytes], factors: tuple[int, ...] | list[int]) -> Iterator[bytes]:
    for start in range(0, len(pieces[0]), _STRIPE_BYTES):
        total = np.zeros(min(_STRIPE_BYTES, len(pieces[0]) - start), dtype=np.uint8)
        for piece, factor in zip(pieces, factors, strict=True):
            product = piece[start : start + _STRIPE_BYTES].translate(_table(factor))
            np.bitwise_xor(total, np.frombuffer(product, dtype=np.uint8), out=total)
        yield total.tobytes()


def _invert(rows: list[list[int]]) -> list[list[int]]:
    """Inverse of a regular matrix over GF(256), by Gauss and Jordan."""
    size = len(rows)
    work = [row + [int(column == index) for column in range(size)] for index, row in enumerate(rows)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if work[row][column])
        work[column], work[pivot] = work[pivot], work[column]
        scale = _inverse(work[column][column])
        work[column] = [_multiply(scale, value) for value in work[column]]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [
                    value ^ _multiply(factor, other) for value, other in zip(work[row], work[column], strict=True)
                ]
    return [row[size:] for row in work]
