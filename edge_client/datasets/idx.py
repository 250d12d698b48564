"""IDX, the file format of MNIST and its relatives: raw or gzipped, one array of bytes each.

Layout: two zero bytes, type 0x08 (unsigned byte), number of dimensions, the sizes as big-endian uint32, the data.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import DAMAGE
from fedpruneshare.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_DIMENSIONS = 4
_ROWS_AT_ONCE = 512


def read_idx_bytes(path: Path, limit_bytes: int) -> bytes:
    """The decompressed bytes of an IDX file, gzipped where its name ends in `.gz`.

    Raises `DataError` where it is damaged or unpacks to more than `limit_bytes`; nothing beyond the limit is unpacked.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > limit_bytes:
        raise DataError(f"{path} holds more than {limit_bytes} bytes, expected at most as many")
    return data


def parse_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """Bytes of an IDX file -> uint8 array (a read-only view). `name` is for the message of the `DataError`."""
    shape, start = _shape(data, name)
    expected = start + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(f"{name} has {len(data)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_idx_rows(path: Path, rows: NDArray[np.int64], limit_bytes: int) -> tuple[NDArray[np.uint8], str]:
    """The rows at ascending places of an IDX file, and the SHA-256 (hex) of the whole file, decompressed.

    Only the rows are ever in memory. Raises `DataError` as `read_idx_bytes` and `parse_idx`, and for a place the file
    does not have.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4)
            head += stream.read(4 * head[3]) if len(head) == 4 and head[3] <= MAX_DIMENSIONS else b""
            shape, _ = _shape(head, str(path))
            if len(head) + int(np.prod(shape, dtype=object)) > limit_bytes:
                raise DataError(f"{path} holds more than {limit_bytes} bytes, expected at most as many")
            if len(rows) and not 0 <= rows[0] <= rows[-1] < shape[0]:
                raise DataError(f"{path} has {shape[0]} rows, expected one at {rows[-1]}")
            state = hashlib.sha256(head)
            taken = _take_rows(cast(BinaryIO, stream), shape, rows, state)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if taken is None:
        raise DataError(f"{path} is longer or shorter than expected for shape {shape}")
    return taken, state.hexdigest()


def _take_rows(
    stream: BinaryIO, shape: tuple[int, ...], rows: NDArray[np.int64], state: hashlib._Hash
) -> NDArray[np.uint8] | None:
    """The rows out of what follows the header, all of it hashed; None unless it is as long as the header says."""
    row_bytes = int(np.prod(shape[1:], dtype=object))
    taken = np.empty((len(rows), *shape[1:]), np.uint8)
    for first in range(0, shape[0], _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, shape[0] - first)
        data = stream.read(count * row_bytes)
        if len(data) != count * row_bytes:
            return None
        state.update(data)
        start, end = np.searchsorted(rows, (first, first + count))
        taken[start:end] = np.frombuffer(data, np.uint8).reshape(count, *shape[1:])[rows[start:end] - first]
    return None if stream.read(1) else taken


def _shape(data: bytes, name: str) -> tuple[tuple[int, ...], int]:
    """Sizes that the header gives, and its length."""
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]) or not 1 <= data[3] <= MAX_DIMENSIONS:
        raise DataError(f"{name} starts with {data[:4].hex()}, expected 000008 and 1 to {MAX_DIMENSIONS} dimensions")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{name} ends inside its header of {start} bytes")
    return struct.unpack(f">{data[3]}I", data[4:start]), start


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """uint8 array -> bytes of an IDX file, so that arrays from another layout can be checked against the same hash."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()
