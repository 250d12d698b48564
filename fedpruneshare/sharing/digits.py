"""Several small integers in one field word (docs/protocol.md §5.3).

Signed values become digits by a zero-point shift; digits of one word add up apart as long as no sum reaches the radix,
which every parameter set is checked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.sharing.field import F31, Field, Words, check_canonical

Digits = NDArray[np.unsignedinteger[Any]]


# --------------------------------------------------------------------------- zero-point shift


def zero_point(bits: int) -> int:
    """Q = 2^(bits−1) − 1: the digit that stands for zero, and the largest magnitude."""
    return (1 << (bits - 1)) - 1


def shift(values: NDArray[np.signedinteger[Any]], bits: int) -> NDArray[np.uint32]:
    """Integers in −Q…Q -> digits uint32 in 0…2Q of the same shape. Raises `SharingError` for one out of range."""
    q = zero_point(bits)
    if values.dtype.kind != "i":
        raise SharingError(f"values are {values.dtype}, expected signed integers")
    if values.size and not -q <= int(values.min()) <= int(values.max()) <= q:
        place = int(np.argmax((values < -q) | (values > q)))  # never the value: it is part of a device's update
        raise SharingError(f"value {place} is out of range, expected {-q} to {q}")
    return (values + q).astype(np.uint32)


def unshift(sums: Digits, bits: int, weight: int) -> NDArray[np.int64]:
    """Digit sums -> sums of the signed values, int64. `weight`: total weight, that is contributors where each has 1."""
    return sums.astype(np.int64) - weight * zero_point(bits)


# --------------------------------------------------------------------------- packing


@dataclass(frozen=True)
class DigitPacking:
    """`bits`-bit digits of at most `max_devices` devices, each times at most `max_weight`, add up without a carry.

    The radix is the largest sum and one, or with `is_power_of_two` the next power of two: digits are then cut by
    shifts, and now and then one fewer fits a word. Raises `PlanError` if not even one digit fits.
    """

    bits: int
    max_devices: int
    max_weight: int = 1
    is_power_of_two: bool = False
    field: Field = F31

    def __post_init__(self) -> None:
        if min(self.bits, self.max_devices, self.max_weight) < 1:
            raise PlanError(
                f"{self.bits} bits for {self.max_devices} devices of weight {self.max_weight},"
                " expected at least 1 of each"
            )
        if self.digits < 1:
            raise PlanError(
                f"sums of {self.max_devices} devices x weight {self.max_weight} x {self.bits} bits"
                f" reach the modulus {self.field.p}"
            )

    @cached_property
    def largest_sum(self) -> int:
        """The largest sum a digit can reach."""
        return self.max_devices * self.max_weight * ((1 << self.bits) - 1)

    @cached_property
    def radix(self) -> int:
        """R: above the largest sum of a digit."""
        return 1 << self.largest_sum.bit_length() if self.is_power_of_two else self.largest_sum + 1

    @cached_property
    def digits(self) -> int:
        """g: digits per word, the most for which a word of largest sums stays below p (R^g − 1 in the mixed radix)."""
        count, largest_word = 0, self.largest_sum
        while largest_word < self.field.p:
            count, largest_word = count + 1, largest_word * self.radix + self.largest_sum
        return count

    @cached_property
    def _sum_type(self) -> np.dtype[Any]:
        return np.dtype(np.uint32 if self.radix <= 2**32 else np.uint64)

    def words(self, count: int) -> int:
        """Words that `count` digits take."""
        return -(-count // self.digits)

    def pack(self, values: Digits) -> Words:
        """Digits [count] in 0…2^bits−1 -> words [h]; digit j of word i is number j·h + i.

        Raises `SharingError` if one is out of range, or could be (signed or fractional): it would spill into its
        neighbour.
        """
        if values.ndim != 1 or values.dtype.kind != "u":
            raise SharingError(f"digits are {values.dtype}{list(values.shape)}, expected one axis of unsigned integers")
        if values.size and int(values.max()) >> self.bits:
            place = int(np.argmax(values >> values.dtype.type(self.bits) > 0))  # never the value itself: it is secret
            raise SharingError(f"digit {place} is out of range, expected 0 to {2**self.bits - 1}")
        height = self.words(values.size)
        words = np.zeros(height, dtype=self.field.word_type)
        for digit in reversed(range(self.digits)):
            plane = values[digit * height : (digit + 1) * height]
            words *= self.field.word_type.type(self.radix)
            words[: plane.size] += plane.astype(self.field.word_type)
        return words

    def unpack(self, words: Words, count: int) -> Digits:
        """Words (of one device or of a sum) -> digit sums [count], uint32, or uint64 where 32 bits do not hold them.

        Raises `SharingError` on other words.
        """
        check_canonical(words, self.field)
        height = self.words(count)
        if words.size != height:
            raise SharingError(f"{words.size} words of digits, expected {height}")
        sums = np.empty(self.digits * height, dtype=self._sum_type)
        rest = words
        for digit in range(self.digits):
            rest, plane = self._cut(rest)
            sums[digit * height : (digit + 1) * height] = plane
        if rest.any() or sums[count:].any():
            raise SharingError("a word holds more than its digits, expected zero above the last one")
        return sums[:count]

    def _cut(self, words: Words) -> tuple[Words, Words]:
        """(words // R, words % R); the quotient by a scalar is vectorised, numpy's remainder is not."""
        scalar = self.field.word_type.type
        if self.is_power_of_two:
            return words >> scalar(self.radix.bit_length() - 1), words & scalar(self.radix - 1)
        quotient = words // scalar(self.radix)
        return quotient, words - quotient * scalar(self.radix)
