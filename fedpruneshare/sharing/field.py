"""Vector arithmetic in GF(2^31 − 1) on little-endian uint32 words (docs/protocol.md §5.1).

Additions only need `t = a + b; min(t, t - p)` in wrapping unsigned arithmetic: exact, branch-free, vectorised. Work
goes in chunks that stay in cache. Every function writes into `out`; `out` may be the first operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import SharingError

Words = NDArray[np.uint32]

#: Elements worked on at a time: 128 KiB of words, which fits the second-level cache of small boards.
CHUNK: Final = 32 * 1024


@dataclass(frozen=True)
class Field:
    """A prime field and how its elements are stored."""

    name: str
    p: int
    bits: int
    dtype: str

    @property
    def word_bytes(self) -> int:
        """Bytes of one element on the wire."""
        return np.dtype(self.dtype).itemsize


F31: Final = Field("F31", 2**31 - 1, 31, "<u4")
_P: Final = np.uint32(F31.p)


def check_words(words: Words, what: str = "words") -> None:
    """Require a one-dimensional little-endian uint32 array. Raises `SharingError`."""
    if words.ndim != 1 or words.dtype != np.dtype(F31.dtype):
        raise SharingError(f"{what} are {words.dtype}{list(words.shape)}, expected one axis of {F31.dtype}")


def check_canonical(words: Words, field: Field = F31) -> None:
    """Require every word < p. Raises `SharingError` naming the first that is not."""
    check_words(words)
    if words.size and int(words.max()) >= field.p:
        place = int(np.argmax(words >= field.p))
        raise SharingError(f"word {place} is not below the modulus {field.p}")


def modadd(a: Words, b: Words, out: Words) -> Words:
    """Write a + b mod p into `out`. All uint32 of one length; `out` may be `a`."""
    scratch = np.empty(min(CHUNK, a.size), dtype=F31.dtype)
    for start in range(0, a.size, CHUNK):
        part = slice(start, start + CHUNK)
        target = out[part]
        reduced = scratch[: target.size]
        np.add(a[part], b[part], out=target)
        np.subtract(target, _P, out=reduced)
        np.minimum(target, reduced, out=target)
    return out


def modsub(a: Words, b: Words, out: Words) -> Words:
    """Write a − b mod p into `out`. All uint32 of one length; `out` may be `a`."""
    scratch = np.empty(min(CHUNK, a.size), dtype=F31.dtype)
    for start in range(0, a.size, CHUNK):
        part = slice(start, start + CHUNK)
        target = out[part]
        lifted = scratch[: target.size]
        np.subtract(a[part], b[part], out=target)
        np.add(target, _P, out=lifted)
        np.minimum(target, lifted, out=target)
    return out


def sum_of_products(factors: Sequence[int], rows: Sequence[Words], out: Words) -> Words:
    """Σ factors[i] · rows[i] mod p into `out`; factors in 0…p−1, rows uint32 of one length.

    Up to four products of 31-bit numbers fit 64 bits, then the sum is folded: 2^31 ≡ 1 (mod p).
    """
    for start in range(0, out.size, CHUNK):
        part = slice(start, start + CHUNK)
        total = np.zeros(out[part].size, dtype=np.uint64)
        for index, (factor, row) in enumerate(zip(factors, rows, strict=True)):
            if index and index % 3 == 0:
                _fold(total)
            total += row[part].astype(np.uint64) * np.uint64(factor)
        _fold(total)
        _fold(total)
        np.copyto(out[part], np.where(total >= F31.p, total - np.uint64(F31.p), total), casting="unsafe")
    return out


def _fold(total: NDArray[np.uint64]) -> None:
    high = total >> np.uint64(31)
    total &= np.uint64(F31.p)
    total += high


def to_bytes(words: Words) -> memoryview:
    """Words as little-endian bytes, without a copy where they are contiguous."""
    check_words(words)
    return np.ascontiguousarray(words).data.cast("B")


def from_bytes(data: bytes | memoryview, count: int) -> Words:
    """Exactly `count` words from little-endian bytes, read-only view. Raises `SharingError` on another length."""
    if len(data) != count * F31.word_bytes:
        raise SharingError(f"{len(data)} bytes of words, expected {count * F31.word_bytes}")
    return np.frombuffer(data, dtype=F31.dtype)
