"""Several small integers in one field word (docs/protocol.md §5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.sharing.field import F31, Words, check_words


@dataclass(frozen=True)
class DigitPacking:
    """Mixed-radix digits: `bits`-bit integers of at most `max_devices` devices add up without a carry.

    Raises `PlanError` if not even one digit fits.
    """

    bits: int
    max_devices: int

    def __post_init__(self) -> None:
        if self.bits < 1 or self.max_devices < 1:
            raise PlanError(f"{self.bits} bits for {self.max_devices} devices, expected at least 1 of each")
        if self.digits < 1:
            raise PlanError(f"sums of {self.max_devices} devices x {self.bits} bits reach the modulus {F31.p}")

    @property
    def radix(self) -> int:
        """R: one more than the largest sum of a digit."""
        return self.max_devices * ((1 << self.bits) - 1) + 1

    @cached_property
    def digits(self) -> int:
        """g: digits per word, the most for which the largest packed sum R^g − 1 stays below p."""
        count = 0
        while self.radix ** (count + 1) - 1 < F31.p:
            count += 1
        return count

    def words(self, count: int) -> int:
        """Words that `count` integers take."""
        return -(-count // self.digits)

    def pack(self, values: NDArray[np.unsignedinteger]) -> Words:
        """Integers [count] in 0…2^bits−1 -> words uint32[h]; digit j of word i is integer j·h + i.

        Raises `SharingError` if one is out of range, or could be (signed or fractional): it would spill into its
        neighbour.
        """
        if values.ndim != 1 or values.dtype.kind != "u":
            raise SharingError(f"digits are {values.dtype}{list(values.shape)}, expected one axis of unsigned integers")
        if values.size and int(values.max()) >= 2**self.bits:
            raise SharingError(f"value {int(values.max())}, expected 0 to {2**self.bits - 1}")
        height = self.words(values.size)
        words = np.zeros(height, dtype=F31.dtype)
        for digit in reversed(range(self.digits)):
            plane = values[digit * height : (digit + 1) * height]
            words *= np.uint32(self.radix)
            words[: plane.size] += plane.astype(F31.dtype)
        return words

    def unpack(self, words: Words, count: int) -> NDArray[np.uint32]:
        """Words (of one device or of a sum) -> digit sums uint32[count]. Raises `SharingError` on other words."""
        check_words(words)
        height = self.words(count)
        if words.size != height:
            raise SharingError(f"{words.size} words of digits, expected {height}")
        values = np.empty(self.digits * height, dtype=np.uint32)
        rest = words.astype(np.uint32)
        for digit in range(self.digits):
            rest, values[digit * height : (digit + 1) * height] = np.divmod(rest, np.uint32(self.radix))
        if rest.any() or values[count:].any():
            raise SharingError("a word holds more than its digits, expected zero above the last one")
        return values[:count]
