"""One model segment as a blob (docs/protocol.md §6.5).

Blob = version (1 byte) ‖ position coding (1 byte) ‖ position bytes ‖ float16 codes, uint16 LE ‖ vectors, float32 LE.
Positions count among the coordinates no earlier segment holds, in ascending order ("remaining" index). Codings:
0 all of them; 1 bitmap, bit i%8 (least significant first) of byte i//8 is remaining index i; 2 gaps, each the
distance to the one before minus one (the first: the index itself), as LEB128. Counts come from the plan, so all
lengths are known or bounded before anything is allocated.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import MessageError
from fedpruneshare.sparse.support import Codes, Positions

_VERSION: Final = 1
_ALL, _BITMAP, _GAPS = 0, 1, 2
_MAX_GAP_BYTES: Final = 5


def encode_segment(
    positions: Positions, coded: Codes, d: int, taken: Positions, vectors: NDArray[np.float32] | None = None
) -> bytes:
    """Positions int64[m] ascending with their codes uint16[m] -> blob. `taken`: positions of the earlier segments."""
    rank = np.searchsorted(_remaining(d, taken), positions)
    coding, places = _encode_positions(rank, d - taken.size)
    tail = b"" if vectors is None else vectors.astype("<f4").tobytes()
    return bytes([_VERSION, coding]) + places + coded.astype("<u2").tobytes() + tail


def decode_segment(
    blob: bytes, d: int, weights: int, vectors: int, taken: Positions
) -> tuple[Positions, Codes, NDArray[np.float32]]:
    """Blob -> (positions int64[weights], codes uint16[weights], vectors float32[vectors]).

    `weights` and `vectors` are the plan's counts. Raises `MessageError` for any other length, version, coding, or
    position, and for a value that is not finite.
    """
    tail = 2 * weights + 4 * vectors
    if len(blob) < 2 + tail or blob[0] != _VERSION:
        raise MessageError(f"model segment of {len(blob)} bytes, expected version {_VERSION} and at least {2 + tail}")
    places = np.frombuffer(blob, dtype=np.uint8, offset=2, count=len(blob) - 2 - tail)
    codes = np.frombuffer(blob, dtype="<u2", offset=2 + places.size, count=weights).astype(np.uint16)
    floats = np.frombuffer(blob, dtype="<f4", offset=len(blob) - 4 * vectors, count=vectors).astype(np.float32)
    rank = _decode_positions(blob[1], places, weights, d - taken.size)
    if not np.isfinite(floats).all() or ((codes & 0x7C00) == 0x7C00).any():
        raise MessageError("model segment holds a value that is not finite")
    return _remaining(d, taken)[rank], codes, floats


def _remaining(d: int, taken: Positions) -> Positions:
    is_free = np.ones(d, dtype=bool)
    is_free[taken] = False
    return np.flatnonzero(is_free).astype(np.int64)


def _encode_positions(rank: NDArray[np.int64], count: int) -> tuple[int, bytes]:
    if rank.size == count:
        return _ALL, b""
    mask = np.zeros(count, dtype=bool)
    mask[rank] = True
    bitmap = np.packbits(mask, bitorder="little").tobytes()
    gaps = _encode_gaps(np.diff(rank, prepend=-1) - 1)
    return (_BITMAP, bitmap) if len(bitmap) <= len(gaps) else (_GAPS, gaps)


def _decode_positions(coding: int, places: NDArray[np.uint8], weights: int, count: int) -> NDArray[np.int64]:
    if coding == _ALL:
        if places.size or weights != count:
            raise MessageError(f"model segment of all {count} coordinates, expected {weights} and no position bytes")
        return np.arange(count, dtype=np.int64)
    if coding == _BITMAP:
        return _decode_bitmap(places, weights, count)
    if coding == _GAPS:
        gaps = _decode_gaps(places, weights)
        rank: NDArray[np.int64] = np.cumsum(gaps + 1) - np.int64(1)
        # Each gap is checked as well: with all of them below `count` the running sum cannot wrap around.
        if gaps.size and (reach := max(int(gaps.max()), int(rank[-1]))) >= count:
            raise MessageError(f"model segment reaches coordinate {reach}, expected below {count}")
        return rank
    raise MessageError(f"position coding {coding}, expected {_ALL}, {_BITMAP} or {_GAPS}")


def _decode_bitmap(places: NDArray[np.uint8], weights: int, count: int) -> NDArray[np.int64]:
    if places.size != -(-count // 8):
        raise MessageError(f"bitmap of {places.size} bytes, expected {-(-count // 8)}")
    bits = np.unpackbits(places, bitorder="little")
    rank: NDArray[np.int64] = np.flatnonzero(bits)
    if rank.size != weights or (rank.size and rank[-1] >= count):
        raise MessageError(f"bitmap names {rank.size} coordinates of {count}, expected {weights}")
    return rank


def _encode_gaps(gaps: NDArray[np.int64]) -> bytes:
    """LEB128, all numbers at once: column c holds the c-th seven bits of each."""
    columns = [((gaps >> (7 * c)) & 0x7F).astype(np.uint8) for c in range(_MAX_GAP_BYTES)]
    lengths = np.ones(gaps.size, dtype=np.int64)
    for c in range(1, _MAX_GAP_BYTES):
        lengths += gaps >= 1 << 7 * c
    table = np.stack(columns, axis=1) if gaps.size else np.zeros((0, _MAX_GAP_BYTES), dtype=np.uint8)
    column = np.arange(_MAX_GAP_BYTES)
    table |= np.where(column < (lengths - 1)[:, None], 0x80, 0).astype(np.uint8)
    return table[column < lengths[:, None]].tobytes()


def _decode_gaps(places: NDArray[np.uint8], weights: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(places < 0x80)
    if ends.size != weights or (places.size and places[-1] >= 0x80):
        raise MessageError(f"position bytes hold {ends.size} gaps, expected {weights}")
    if not weights:
        if places.size:
            raise MessageError("position bytes after the last gap")
        return np.empty(0, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GAP_BYTES or (places[ends][lengths > 1] == 0).any():
        raise MessageError(f"a gap is longer than {_MAX_GAP_BYTES} bytes or than it needs to be")
    offset = np.arange(places.size) - np.repeat(starts, lengths)
    parts = (places & 0x7F).astype(np.int64) << (7 * offset)
    total: NDArray[np.int64] = np.add.reduceat(parts, starts)
    return total
