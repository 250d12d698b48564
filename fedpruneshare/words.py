"""Field words: how quantised integers of one segment are laid out and packed (docs/protocol.md §6.4).

Segment = [Σw | digits of the vector elements | digits of the values | tail words]. The weight word is an unpacked
element; vectors and values are packed apart, each with its own digit width. Device, aggregator and coordinator
all take lengths from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.messages import Coding
from fedpruneshare.sharing.digits import DigitPacking
from fedpruneshare.sharing.field import F31

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class SegmentWords:
    """What one segment's words say: a weight (or Σw), quantised vector elements and quantised values, uint32."""

    weight: int
    vectors: NDArray[np.uint32]
    values: NDArray[np.uint32]

    def __repr__(self) -> str:
        return f"SegmentWords(vectors={self.vectors.size}, values={self.values.size})"


@dataclass(frozen=True)
class WordLayout:
    """The layout of every segment of a round. Raises `PlanError` on construction if any sum could wrap or carry."""

    coding: Coding

    def __post_init__(self) -> None:
        coding = self.coding
        if coding.max_devices * coding.max_weight >= F31.p:
            raise PlanError(
                f"max_devices x max_weight = {coding.max_devices} x {coding.max_weight} reaches the modulus {F31.p}"
            )
        _ = self._vectors, self._values

    @property
    def _vectors(self) -> DigitPacking:
        return DigitPacking(self.coding.vector_bits, self.coding.max_devices)

    @property
    def _values(self) -> DigitPacking:
        return DigitPacking(self.coding.value_bits, self.coding.max_devices)

    def words(self, vectors: int, values: int) -> int:
        """Field words of a segment with so many vector elements and values."""
        return 1 + self._vectors.words(vectors) + self._values.words(values) + self.coding.tail_words

    def pack(self, segment: SegmentWords) -> Words:
        """One device's integers -> uint32 words. Raises `SharingError` if one is out of its range."""
        if not 1 <= segment.weight <= self.coding.max_weight:
            raise SharingError(f"weight {segment.weight}, expected 1 to {self.coding.max_weight}")
        head = np.array([segment.weight], dtype="<u4")
        tail = np.zeros(self.coding.tail_words, dtype="<u4")
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


def total_words(segment_words: Sequence[int], rung: int) -> int:
    """Words of a share at a rung: segments 0 to `rung`, one after the other."""
    return sum(segment_words[: rung + 1])
