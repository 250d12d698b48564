"""IDX, the file format of MNIST and its relatives: raw or gzipped, one array of bytes each.

Layout: two zero bytes, type 0x08 (unsigned byte), number of dimensions, the sizes as big-endian uint32, the data.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_DIMENSIONS = 4


def read_idx_bytes(path: Path, limit_bytes: int) -> bytes:
    """The decompressed bytes of an IDX file, gzipped where its name ends in `.gz`.

    Raises `DataError` where it is damaged or unpacks to more than `limit_bytes`; nothing beyond the limit is unpacked.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > limit_bytes:
        raise DataError(f"{path} holds more than {limit_bytes} bytes, expected at most as many")
    return data


def parse_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """Bytes of an IDX file -> uint8 array (a read-only view). `name` is for the message of the `DataError`."""
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]) or not 1 <= data[3] <= MAX_DIMENSIONS:
        raise DataError(f"{name} starts with {data[:4].hex()}, expected 000008 and 1 to {MAX_DIMENSIONS} dimensions")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{name} ends inside its header of {start} bytes")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    expected = start + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(f"{name} has {len(data)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """uint8 array -> bytes of an IDX file, so that arrays from another layout can be checked against the same hash."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()
