"""Vector arithmetic in GF(2^31 − 1) and GF(2^61 − 1) on little-endian words (docs/protocol.md §5.1).

Both primes leave spare bits in their words, so an addition only needs `t = a + b; min(t, t - p)` in wrapping unsigned
arithmetic: exact, branch-free, vectorised. Work goes in chunks that stay in cache. Functions write into `out`, which
may be the first operand. Arrays of another type or length raise `SharingError`: numpy would stretch or cut them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import SharingError

#: uint32[m] in F31, uint64[m] in F61.
Words = NDArray[np.unsignedinteger[Any]]
_Wide = NDArray[np.uint64]

#: Bytes worked on at a time, which fit the second-level cache of small boards.
CHUNK_BYTES: Final = 128 * 1024


@dataclass(frozen=True)
class Field:
    """A prime field and how its elements are stored. `stream`: number of its first keystream (docs/protocol.md §5.2).

    Any p with a spare bit in the word adds and subtracts; products are fast where p = 2^bits − 1. (The tests prove
    secrecy exhaustively in a tiny field, with this same code.)
    """

    name: str
    p: int
    bits: int
    dtype: str
    stream: int

    @cached_property
    def word_type(self) -> np.dtype[Any]:
        """Type of a word."""
        return np.dtype(self.dtype)

    @cached_property
    def word_bytes(self) -> int:
        """Bytes of one element on the wire."""
        return self.word_type.itemsize

    @cached_property
    def chunk(self) -> int:
        """Elements worked on at a time."""
        return CHUNK_BYTES // self.word_bytes

    @cached_property
    def modulus(self) -> Any:
        """`p` as a scalar of the word type: arithmetic with it wraps and is never promoted."""
        return self.word_type.type(self.p)


F31: Final = Field("F31", 2**31 - 1, 31, "<u4", stream=0)
F61: Final = Field("F61", 2**61 - 1, 61, "<u8", stream=2)
FIELDS: Final = {field.name: field for field in (F31, F61)}
#: Elements of the default field worked on at a time.
CHUNK: Final = F31.chunk


# --------------------------------------------------------------------------- what is acceptable


def check_words(words: Words, field: Field = F31, what: str = "words") -> None:
    """Require a one-dimensional array of the field's word type. Raises `SharingError`."""
    if words.ndim != 1 or words.dtype != field.word_type:
        raise SharingError(f"{what} are {words.dtype}{list(words.shape)}, expected one axis of {field.dtype}")


def check_canonical(words: Words, field: Field = F31) -> None:
    """Require words below p. Raises `SharingError` naming the first that is not."""
    check_words(words, field)
    for start in range(0, words.size, field.chunk):
        part = words[start : start + field.chunk]
        if int(part.max()) >= field.p:
            place = start + int(np.argmax(part >= field.modulus))
            raise SharingError(f"word {place} is not below the modulus {field.p}")


def check_alike(field: Field, *arrays: Words) -> None:
    """Require arrays of words of one length. Raises `SharingError`."""
    for array in arrays:
        check_words(array, field)
    sizes = [array.size for array in arrays]
    if len(set(sizes)) > 1:
        raise SharingError(f"vectors of {sizes} words, expected one length")


# --------------------------------------------------------------------------- sums


def modadd(a: Words, b: Words, out: Words, field: Field = F31) -> Words:
    """Write a + b mod p into `out`. All canonical words of one length; `out` may be `a`. Raises `SharingError`."""
    return _in_chunks(add_into, (a, b, out), field)


def modsub(a: Words, b: Words, out: Words, field: Field = F31) -> Words:
    """Write a − b mod p into `out`. All canonical words of one length; `out` may be `a`. Raises `SharingError`."""
    return _in_chunks(subtract_into, (a, b, out), field)


def _in_chunks(
    kernel: Callable[[Words, Words, Words, Words, Field], None], arrays: tuple[Words, Words, Words], field: Field
) -> Words:
    check_alike(field, *arrays)
    a, b, out = arrays
    scratch = np.empty(min(field.chunk, out.size), dtype=field.word_type)
    for start in range(0, out.size, field.chunk):
        part = slice(start, start + field.chunk)
        kernel(a[part], b[part], out[part], scratch, field)
    return out


def add_into(a: Words, b: Words, out: Words, scratch: Words, field: Field) -> None:
    """`modadd` of one chunk, unchecked, for inner loops; `scratch` is at least as long and overlaps nothing."""
    reduced = scratch[: out.size]
    np.add(a, b, out=out)
    np.subtract(out, field.modulus, out=reduced)
    np.minimum(out, reduced, out=out)


def subtract_into(a: Words, b: Words, out: Words, scratch: Words, field: Field) -> None:
    """`modsub` of one chunk, unchecked, for inner loops; `scratch` is at least as long and overlaps nothing."""
    lifted = scratch[: out.size]
    np.subtract(a, b, out=out)
    np.add(out, field.modulus, out=lifted)
    np.minimum(out, lifted, out=out)


# --------------------------------------------------------------------------- products


def sum_of_products(factors: Sequence[int], rows: Sequence[Words], out: Words, field: Field = F31) -> Words:
    """Write Σ factors[i] · rows[i] mod p into `out`, which may be one of the rows.

    `factors` in 0…p−1; rows canonical, of one length. Raises `SharingError` for other arrays.
    """
    check_alike(field, out, *rows)
    if len(factors) != len(rows):
        raise SharingError(f"{len(factors)} factors for {len(rows)} rows, expected as many")
    scalars = [np.uint64(factor) for factor in factors]
    total, product = (np.empty(min(field.chunk, out.size), dtype=np.uint64) for _ in range(2))
    for start in range(0, out.size, field.chunk):
        part = slice(start, min(start + field.chunk, out.size))
        size = part.stop - start
        sums = _sum_chunk(scalars, [row[part] for row in rows], total[:size], product[:size], field)
        _reduce(sums, product[:size], field)
        np.copyto(out[part], sums, casting="same_kind")
    return out


def _sum_chunk(factors: list[np.uint64], rows: list[Words], total: _Wide, product: _Wide, field: Field) -> _Wide:
    """Σ factors[i] · rows[i] below 2^64, congruent mod p."""
    if field is F61:
        total[:] = 0
        for factor, row in zip(factors, rows, strict=True):
            total += _multiply61(row, factor)
            _fold(total, product, field)
        return total
    np.multiply(rows[0], factors[0], out=total)
    for index in range(1, len(rows)):
        # Four products of 31-bit numbers fit 64 bits; a folded sum leaves room for three more.
        if index % 3 == 1 and index > 1:
            _fold(total, product, field)
        np.multiply(rows[index], factors[index], out=product)
        np.add(total, product, out=total)
    return total


def inner_product(a: Words, b: Words, field: Field = F31) -> int:
    """Σ a[i] · b[i] mod p of two canonical vectors of one length. Raises `SharingError` for other arrays."""
    check_alike(field, a, b)
    total = 0
    for start in range(0, a.size, field.chunk):
        part = slice(start, start + field.chunk)
        x, y = a[part], b[part]
        products = _multiply61(x, y) if field is F61 else np.multiply(x, y, dtype=np.uint64)
        # A whole chunk of 32-bit halves sums below 2^64.
        high = int(np.sum(products >> np.uint64(32), dtype=np.uint64))
        low = int(np.sum(products & np.uint64(0xFFFF_FFFF), dtype=np.uint64))
        total = (total + (high << 32) + low) % field.p
    return total


def _multiply61(row: Words, factor: np.uint64 | Words) -> _Wide:
    """Row · factor, both below 2^61 − 1, as uint64 below 2^62, congruent mod p: 31-bit limbs, 2^61 ≡ 1."""
    mask31, mask30 = np.uint64(2**31 - 1), np.uint64(2**30 - 1)
    high, low = row >> np.uint64(31), row & mask31
    factor_high, factor_low = factor >> np.uint64(31), factor & mask31
    middle = high * factor_low + low * factor_high  # below 2^62; times 2^31
    products = low * factor_low  # below 2^62
    products = (products & np.uint64(F61.p)) + (products >> np.uint64(61))
    products += (high * factor_high) << np.uint64(1)  # 2^62 is 2; below 2^61
    products += ((middle & mask30) << np.uint64(31)) + (middle >> np.uint64(30))
    return (products & np.uint64(F61.p)) + (products >> np.uint64(61))


def _fold(total: _Wide, scratch: _Wide, field: Field) -> None:
    """Congruent sums near 2^bits: 2^bits is 1 where p = 2^bits − 1."""
    if field.p != 2**field.bits - 1:
        np.remainder(total, np.uint64(field.p), out=total)
        return
    np.right_shift(total, np.uint64(field.bits), out=scratch)
    np.bitwise_and(total, np.uint64(field.p), out=total)
    np.add(total, scratch, out=total)


def _reduce(total: _Wide, scratch: _Wide, field: Field) -> None:
    """Any uint64 sums -> canonical."""
    _fold(total, scratch, field)
    _fold(total, scratch, field)
    np.subtract(total, np.uint64(field.p), out=scratch)
    np.minimum(total, scratch, out=total)


# --------------------------------------------------------------------------- bytes


def to_bytes(words: Words, field: Field = F31) -> memoryview:
    """Words as little-endian bytes, without a copy where they are contiguous."""
    check_words(words, field)
    return np.ascontiguousarray(words).data.cast("B")


def from_bytes(data: bytes | memoryview, count: int, field: Field = F31) -> Words:
    """Exactly `count` words from little-endian bytes, read-only view. Raises `SharingError` on another length."""
    size_bytes = memoryview(data).nbytes  # `len` of a view counts its items, which need not be bytes
    if size_bytes != count * field.word_bytes:
        raise SharingError(f"{size_bytes} bytes of words, expected {count * field.word_bytes}")
    return np.frombuffer(data, dtype=field.word_type)
