"""Updates that are not shared: how floats of one segment are laid out (docs/protocol.md §5.10).

Plain FedAvg and pruning alone are what sharing is compared with. Their updates travel whole, as float32 or float16,
sealed and signed like shares, to the one aggregator of a directory that allows it. A segment is
[w | vector elements | values] in 32-bit words; two float16 share a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import SharingError
from fedpruneshare.messages import Coding
from fedpruneshare.sharing.field import Words

_FLOATS: Final[dict[int, np.dtype[np.floating[Any]]]] = {32: np.dtype("<f4"), 16: np.dtype("<f2")}
_WORD_BYTES: Final = 4


@dataclass(frozen=True)
class PlainSegment:
    """What a segment of one update says: its weight, and float64 vector elements and values. Secret."""

    weight: int
    vectors: NDArray[np.float64]
    values: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"PlainSegment(vectors={self.vectors.size}, values={self.values.size})"


@dataclass(frozen=True)
class PlainLayout:
    """The layout of every segment of a round without sharing; `value_bits` and `vector_bits` are 32 or 16."""

    coding: Coding

    def words(self, vectors: int, values: int) -> int:
        """32-bit words of a segment with so many vector elements and values."""
        return 1 + _words(vectors, self.coding.vector_bits) + _words(values, self.coding.value_bits)

    def pack(self, weight: int, vectors: NDArray[np.float32], values: NDArray[np.float32]) -> Words:
        """One device's numbers -> words; what float16 cannot hold becomes its largest number.

        Raises `SharingError` for a weight out of range.
        """
        if not 1 <= weight <= self.coding.max_weight:
            raise SharingError(f"weight out of range, expected 1 to {self.coding.max_weight}")
        head = np.array([weight], dtype=np.uint32)
        return np.concatenate([head, _pack(vectors, self.coding.vector_bits), _pack(values, self.coding.value_bits)])

    def unpack(self, words: Words, vectors: int, values: int) -> PlainSegment:
        """Words -> what they say. Raises `SharingError` on a wrong length, weight or number."""
        if words.size != self.words(vectors, values):
            raise SharingError(f"segment of {words.size} words, expected {self.words(vectors, values)}")
        weight, middle = int(words[0]), 1 + _words(vectors, self.coding.vector_bits)
        if not 1 <= weight <= self.coding.max_weight:
            raise SharingError(f"weight out of range, expected 1 to {self.coding.max_weight}")
        parts = (
            _unpack(words[1:middle], self.coding.vector_bits, vectors),
            _unpack(words[middle:], self.coding.value_bits, values),
        )
        if not all(np.isfinite(part).all() for part in parts):
            raise SharingError("an update with numbers that are not finite, expected finite ones")
        return PlainSegment(weight, *parts)


def _words(count: int, bits: int) -> int:
    return -(-count * _FLOATS[bits].itemsize // _WORD_BYTES)


def _pack(numbers: NDArray[np.float32], bits: int) -> Words:
    kind = _FLOATS[bits]
    largest = float(np.finfo(kind).max)
    data = np.clip(numbers, -largest, largest).astype(kind).tobytes()
    return np.frombuffer(data.ljust(_WORD_BYTES * _words(numbers.size, bits), b"\0"), dtype=np.uint32)


def _unpack(words: Words, bits: int, count: int) -> NDArray[np.float64]:
    numbers = np.frombuffer(words.astype("<u4", copy=False).tobytes(), dtype=_FLOATS[bits])[:count]
    return numbers.astype(np.float64)
