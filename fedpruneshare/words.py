"""Field words: how quantised integers of one segment are laid out and packed (docs/protocol.md §6.4).

Segment = [Σw | digits of the vector elements | digits of the values | tail words]. The weight word is an unpacked
element; vectors and values are packed apart, each with its own digit width. Device, aggregator and coordinator
all take lengths from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.messages import Coding
from fedpruneshare.sharing.digits import DigitPacking, Digits
from fedpruneshare.sharing.field import F31, Field, Words


@dataclass(frozen=True)
class SegmentWords:
    """What one segment's words say: a weight, digits of the vector elements and of the values, or sums of each."""

    weight: int
    vectors: Digits
    values: Digits

    def __repr__(self) -> str:
        return f"SegmentWords(vectors={self.vectors.size}, values={self.values.size})"


@dataclass(frozen=True)
class WordLayout:
    """The layout of every segment of a round. Raises `PlanError` on construction if any sum could wrap or carry."""

    coding: Coding
    field: Field = F31

    def __post_init__(self) -> None:
        coding, p = self.coding, self.field.p
        if coding.max_devices * coding.max_weight >= p:
            raise PlanError(
                f"max_devices x max_weight = {coding.max_devices} x {coding.max_weight} reaches the modulus {p}"
            )
        _ = self._vectors, self._values

    @cached_property
    def _vectors(self) -> DigitPacking:
        return self._packing(self.coding.vector_bits)

    @cached_property
    def _values(self) -> DigitPacking:
        return self._packing(self.coding.value_bits)

    def _packing(self, bits: int) -> DigitPacking:
        is_power_of_two = self.coding.radix == "power-of-two"
        return DigitPacking(bits, self.coding.max_devices, is_power_of_two=is_power_of_two, field=self.field)

    def words(self, vectors: int, values: int) -> int:
        """Field words of a segment with so many vector elements and values."""
        return 1 + self._vectors.words(vectors) + self._values.words(values) + self.coding.tail_words

    def pack(self, segment: SegmentWords) -> Words:
        """One device's integers -> words. Raises `SharingError` if one is out of its range."""
        if not 1 <= segment.weight <= self.coding.max_weight:
            raise SharingError(f"weight out of range, expected 1 to {self.coding.max_weight}")
        head = np.array([segment.weight], dtype=self.field.word_type)
        tail = np.zeros(self.coding.tail_words, dtype=self.field.word_type)
        return np.concatenate([head, self._vectors.pack(segment.vectors), self._values.pack(segment.values), tail])

    def unpack(self, words: Words, vectors: int, values: int) -> SegmentWords:
        """Summed words -> Σw and the digit sums. Raises `SharingError` on a wrong length."""
        expected = self.words(vectors, values)
        if words.size != expected:
            raise SharingError(f"segment of {words.size} words, expected {expected}")
        middle = 1 + self._vectors.words(vectors)
        end = middle + self._values.words(values)
        return SegmentWords(
            int(words[0]),
            self._vectors.unpack(words[1:middle], vectors),
            self._values.unpack(words[middle:end], values),
        )
