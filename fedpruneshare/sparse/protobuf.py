"""Protobuf as bytes, read without building anything: what a file claims is compared with bounds before it costs memory.

Only what ONNX needs: varints, length-delimited contents, and numbers of fixed size (Protocol Buffers, "Encoding").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10
_SIZES: Final = {FIXED64: 8, FIXED32: 4}

Data = bytes | memoryview


class Field(NamedTuple):
    """One field of a message: `value` is a number below 2^64, or the content of what has a length."""

    number: int
    kind: int
    value: int | memoryview


def read_fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in the order of the bytes. Raises `ModelFileError` where it is none."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = read_varint(message, at)
            yield Field(number, kind, value)
            continue
        if kind == BYTES:
            length, at = read_varint(message, at)
        elif kind in _SIZES:
            length = _SIZES[kind]
        else:
            raise ModelFileError(f"not an ONNX file: field of kind {kind} at byte {start}")
        if length > end - at or not number:
            raise ModelFileError(f"not an ONNX file: field {number} at byte {start} of {end} does not end")
        yield Field(number, kind, message[at : at + length])
        at += length


def read_varint(message: Data, at: int) -> tuple[int, int]:
    """The number at a place and the place after it. Raises `ModelFileError` where it does not end."""
    value = 0
    for place in range(_MAX_VARINT_BYTES):
        if at + place >= len(message):
            break
        value |= (message[at + place] & 0x7F) << 7 * place
        if message[at + place] < 0x80:
            return value & 2**64 - 1, at + place + 1
    raise ModelFileError(f"not an ONNX file: number at byte {at} of {len(message)} does not end")


def signed(value: int) -> int:
    """A varint as the int64 it stands for."""
    return value - 2**64 if value >= 2**63 else value


def packed_count(content: memoryview) -> int:
    """How many varints a packed field holds. Raises `ModelFileError` where the last one does not end."""
    data = np.frombuffer(content, dtype=np.uint8)
    if data.size and data[-1] >= 0x80:
        raise ModelFileError("not an ONNX file: packed numbers that do not end")
    return int(np.count_nonzero(data < 0x80))


def packed_numbers(content: memoryview) -> NDArray[np.int64]:
    """The int64 numbers of a packed field. Raises `ModelFileError` where one does not end in ten bytes."""
    count = packed_count(content)
    data = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    lengths = ends - starts + 1
    if count and int(lengths.max()) > _MAX_VARINT_BYTES:
        raise ModelFileError("not an ONNX file: packed number of more than ten bytes")
    numbers = np.zeros(count, dtype=np.uint64)
    for place in range(int(lengths.max()) if count else 0):
        longer = lengths > place
        digit = (data[starts[longer] + place] & 0x7F).astype(np.uint64)
        numbers[longer] |= digit << np.uint64(7 * place)  # the tenth byte's upper bits fall off, as in protobuf
    return numbers.view(np.int64)
