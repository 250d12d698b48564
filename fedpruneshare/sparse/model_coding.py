"""Model segments as they travel: positions and values in as few bytes as the plan leaves open (docs/protocol.md §6.5).

Blob: version (1 byte) ‖ position coding (1 byte) ‖ seven sections, each packing (1 byte) ‖ length (uint32 LE) ‖ bytes:
channel groups (MessagePack, in segment 0 where widths differ), channel bitmap (where the width rises to less than 1),
positions, low and high bytes of the float16 codes, low and high halves of the vectors' float32 (bytes 0, 1, then 2, 3).
Packing 0 is as is, 1 raw DEFLATE. Positions count among the coordinates that exist at this width and that no earlier
segment holds, in ascending order ("remaining" index). Position codings: 0 all of them; 1 bitmap, bit i%8 (least
significant first) of byte i//8 is remaining index i; 2 gaps, each the distance to the one before minus one (the first:
the index itself), as LEB128. Counts come from the plan, so all lengths are known or bounded before anything is
unpacked.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import MessageError, PlanError
from fedpruneshare.messages import Segment
from fedpruneshare.sparse.channels import (
    MAX_GROUPS,
    Groups,
    Kept,
    all_kept,
    channel_count,
    check_groups,
    coordinates,
    kept_per_part,
    pack_channels,
    unpack_channels,
)
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import Codes, Positions

_VERSION: Final = 2
_SECTIONS: Final = 7
_STORED, _DEFLATED = 0, 1
_ALL, _BITMAP, _GAPS = 0, 1, 2
_MAX_GAP_BYTES: Final = 5
#: Largest encoded channel groups: some 100,000 cuts.
_MAX_GROUP_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ModelSegment:
    """One segment of the public model.

    Positions int64[m] and their codes uint16[m]; vector elements int64[u] and their values float32[u]; which
    channels exist up to here (None: all), and so which of the d coordinates do (bool[d]).
    """

    positions: Positions
    codes: Codes
    vector_positions: Positions
    vectors: NDArray[np.float32] = field(repr=False)
    kept: Kept | None = field(repr=False)
    exists: NDArray[np.bool_] = field(repr=False)


class _Room:
    """What coder and decoder know alike between two segments: the width so far, and what is taken."""

    def __init__(self, table: ParameterTable, groups: Groups = ()) -> None:
        self.table, self.groups = table, groups
        self.width = 0.0
        self.kept: Kept | None = None
        self.exists = np.ones(table.weight_count, dtype=np.bool_)
        self.taken = np.zeros(table.weight_count, dtype=np.bool_)
        self.vectors_exist = np.ones(table.vector_count, dtype=np.bool_)
        self.vectors_taken = np.zeros(table.vector_count, dtype=np.bool_)

    def needs_bitmap(self, width: float) -> bool:
        """Whether a segment of this width says which channels it has."""
        return width < 1.0 and width != self.width

    def widen(self, width: float, kept: Kept | None) -> None:
        """Let the channels of a segment exist."""
        self.width, self.kept = width, kept
        if kept is None:
            self.exists, self.vectors_exist = np.ones_like(self.exists), np.ones_like(self.vectors_exist)
        else:
            self.exists, self.vectors_exist = coordinates(self.table, self.groups, kept)

    def free(self) -> Positions:
        """Coordinates that a segment may take."""
        return np.flatnonzero(self.exists & ~self.taken).astype(np.int64)

    def new_vectors(self) -> Positions:
        """Vector elements that exist and that no segment has yet."""
        return np.flatnonzero(self.vectors_exist & ~self.vectors_taken).astype(np.int64)

    def take(self, positions: Positions, vectors: Positions) -> None:
        """Note what a segment has taken."""
        self.taken[positions] = True
        self.vectors_taken[vectors] = True


# --------------------------------------------------------------------------- coding


class SegmentWriter:
    """Codes the segments of one model, in order. `groups`: its channel groups, () where no rung is narrower."""

    def __init__(self, table: ParameterTable, groups: Groups = ()) -> None:
        self._room = _Room(table, groups)
        self._is_first = True

    def write(
        self, positions: Positions, codes: Codes, vectors: NDArray[np.float32], width: float = 1.0, kept: Kept = ()
    ) -> bytes:
        """Positions int64[m] ascending, their codes uint16[m], the vector elements this segment adds -> blob.

        `kept`: the channels that exist at `width`, where that is below 1.
        """
        room = self._room
        has_bitmap = room.needs_bitmap(width)
        if width != room.width:
            room.widen(width, kept if width < 1.0 else None)
        free = room.free()
        coding, places = _encode_positions(np.searchsorted(free, positions), free.size)
        groups = msgspec.msgpack.encode(room.groups) if self._is_first and room.groups else b""
        floats = np.frombuffer(vectors.astype("<f4").tobytes(), dtype="<u2").reshape(-1, 2)
        sections = [
            groups,
            pack_channels(kept) if has_bitmap else b"",
            places,
            (codes & 0xFF).astype(np.uint8).tobytes(),
            (codes >> 8).astype(np.uint8).tobytes(),
            floats[:, 0].tobytes(),
            floats[:, 1].tobytes(),
        ]
        self._is_first = False
        room.take(positions, room.new_vectors())
        return bytes([_VERSION, coding]) + b"".join(_packed(section) for section in sections)


def _packed(data: bytes) -> bytes:
    """The shortest of a section as it is and its two deflations: by entropy alone, and with runs of equal bytes.

    A search for longer repetitions finds none in such data, and takes a hundred times as long.
    """
    best = min([data, *(_deflated(data, strategy) for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE))], key=len)
    return struct.pack("<BI", _STORED if best is data else _DEFLATED, len(best)) + best


def _deflated(data: bytes, strategy: int) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return engine.compress(data) + engine.flush()


def _encode_positions(rank: NDArray[np.int64], count: int) -> tuple[int, bytes]:
    if rank.size == count:
        return _ALL, b""
    mask = np.zeros(count, dtype=bool)
    mask[rank] = True
    bitmap = np.packbits(mask, bitorder="little").tobytes()
    gaps = _encode_gaps(np.diff(rank, prepend=-1) - 1)
    return (_BITMAP, bitmap) if len(_packed(bitmap)) <= len(_packed(gaps)) else (_GAPS, gaps)


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


# --------------------------------------------------------------------------- decoding


class SegmentReader:
    """Reads the segments of one model, in order; every length is checked against the plan before it is unpacked."""

    def __init__(self, table: ParameterTable) -> None:
        self._room = _Room(table)
        self._is_first = True

    @property
    def groups(self) -> Groups:
        """The model's channel groups, as segment 0 gave them; () where it gave none."""
        return self._room.groups

    def read(self, blob: bytes, segment: Segment) -> ModelSegment:
        """Blob -> the segment, as large as `segment` of the plan says.

        Raises `MessageError` for any other length, version, coding, packing, channel choice or position, and for a
        value that is not finite.
        """
        if len(blob) < 2 or blob[0] != _VERSION:
            raise MessageError(f"model segment of {len(blob)} bytes, expected version {_VERSION}")
        room, sections = self._room, _Sections(blob)
        self._read_groups(sections.next(_MAX_GROUP_BYTES), segment.width)
        self._widen(sections, segment.width)
        free, vectors = room.free(), room.new_vectors()
        if segment.weights > free.size or segment.vectors != vectors.size:
            found = f"{segment.weights} coordinates and {segment.vectors} vector elements"
            raise MessageError(f"model segment of {found}, expected at most {free.size} and {vectors.size}")
        rank = _decode_positions(blob[1], sections, segment.weights, free.size)
        codes = sections.bytes_of(segment.weights) | (sections.bytes_of(segment.weights) << np.uint16(8))
        halves = np.stack([sections.words_of(segment.vectors), sections.words_of(segment.vectors)], axis=1)
        floats = np.frombuffer(halves.astype("<u2").tobytes(), dtype="<f4").astype(np.float32)
        sections.end()
        if not np.isfinite(floats).all() or ((codes & 0x7C00) == 0x7C00).any():
            raise MessageError("model segment holds a value that is not finite")
        room.take(free[rank], vectors)
        return ModelSegment(free[rank], codes, vectors, floats, room.kept, room.exists)

    def _read_groups(self, data: bytes, width: float) -> None:
        """Channel groups come with segment 0, if that is narrower than the model."""
        is_expected, self._is_first = self._is_first and width < 1.0, False
        if bool(data) != is_expected:
            expected = "channel groups" if is_expected else "no channel groups"
            raise MessageError(f"model segment of width {width} with {len(data)} bytes of groups, expected {expected}")
        if is_expected:
            try:
                self._room.groups = msgspec.msgpack.decode(data, type=Groups)
                check_groups(self._room.groups, self._room.table)
            except (msgspec.DecodeError, PlanError) as error:
                raise MessageError(f"channel groups of the model: {error}") from None
            # Without any, a device would train the whole model where it chose a narrow one for what that costs.
            if not 1 <= len(self._room.groups) <= MAX_GROUPS:
                raise MessageError(f"{len(self._room.groups)} channel groups, expected 1 to {MAX_GROUPS}")

    def _widen(self, sections: _Sections, width: float) -> None:
        room = self._room
        size = -(-channel_count(room.groups) // 8) if room.needs_bitmap(width) else 0
        bitmap = sections.exactly(size)
        if width == room.width:
            return
        if width < room.width:
            raise MessageError(f"model segment of width {width} after one of {room.width}, expected a wider one")
        if width == 1.0:
            room.widen(width, None)
            return
        kept = self._checked(bitmap, width)
        room.widen(width, kept)

    def _checked(self, bitmap: bytes, width: float) -> Kept:
        """The channels of a width: as many of every part of a group as it keeps, those of the width before included."""
        room = self._room
        try:
            kept = unpack_channels(bitmap, room.groups)
        except PlanError as error:
            raise MessageError(str(error)) from None
        before = room.kept or tuple(~channels for channels in all_kept(room.groups))
        for number, (group, now, then) in enumerate(zip(room.groups, kept, before, strict=True)):
            if (now.reshape(group.parts, -1).sum(axis=1) != kept_per_part(group, width)).any() or (then & ~now).any():
                expected = f"{kept_per_part(group, width)} of each part, those of a smaller width among them"
                raise MessageError(f"channel group {number} keeps {int(now.sum())} channels, expected {expected}")
        return kept


class _Sections:
    """The sections of a blob, one after the other, each bounded before it is unpacked."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._start = memoryview(blob), 2
        self._left = iter(range(_SECTIONS))

    def next(self, limit: int) -> bytes:
        """The next section, of at most `limit` bytes."""
        if len(self._blob) - self._start < 5:
            raise MessageError(f"model segment ends in section {next(self._left)}, expected {_SECTIONS}")
        number = next(self._left)
        packing, length = struct.unpack_from("<BI", self._blob, self._start)
        data = self._blob[self._start + 5 : self._start + 5 + length]
        self._start += 5 + length
        if len(data) != length or packing not in (_STORED, _DEFLATED):
            raise MessageError(f"section {number} of a model segment: packing {packing}, {len(data)} of {length} bytes")
        unpacked = bytes(data) if packing == _STORED else _inflated(bytes(data), limit, number)
        if len(unpacked) > limit:
            raise MessageError(f"section {number} of a model segment has {len(unpacked)} bytes, expected {limit}")
        return unpacked

    def exactly(self, size: int) -> bytes:
        """The next section, of exactly `size` bytes."""
        data = self.next(size)
        if len(data) != size:
            raise MessageError(f"section of a model segment has {len(data)} bytes, expected {size}")
        return data

    def bytes_of(self, count: int) -> NDArray[np.uint16]:
        """A section of `count` bytes, widened."""
        return np.frombuffer(self.exactly(count), dtype=np.uint8).astype(np.uint16)

    def words_of(self, count: int) -> NDArray[np.uint16]:
        """A section of `count` 16-bit words."""
        return np.frombuffer(self.exactly(2 * count), dtype="<u2").astype(np.uint16)

    def end(self) -> None:
        """Nothing may follow the last section."""
        if self._start != len(self._blob):
            raise MessageError(f"{len(self._blob) - self._start} bytes after the last section of a model segment")


def _inflated(data: bytes, limit: int, number: int) -> bytes:
    engine = zlib.decompressobj(-15)
    try:
        unpacked = engine.decompress(data, limit + 1)
    except zlib.error as error:
        raise MessageError(f"section {number} of a model segment does not unpack: {error}") from None
    if len(unpacked) <= limit and (not engine.eof or engine.unused_data):
        raise MessageError(f"section {number} of a model segment does not end where its bytes do")
    return unpacked


def _decode_positions(coding: int, sections: _Sections, weights: int, count: int) -> NDArray[np.int64]:
    if coding == _ALL:
        sections.exactly(0)
        if weights != count:
            raise MessageError(f"model segment of all {count} coordinates, expected {weights}")
        return np.arange(count, dtype=np.int64)
    if coding == _BITMAP:
        return _decode_bitmap(sections.exactly(-(-count // 8)), weights, count)
    if coding == _GAPS:
        gaps = _decode_gaps(np.frombuffer(sections.next(_MAX_GAP_BYTES * weights), dtype=np.uint8), weights)
        rank: NDArray[np.int64] = np.cumsum(gaps + 1) - np.int64(1)
        # Each gap is checked as well: with all of them below `count` the running sum cannot wrap around.
        if gaps.size and (reach := max(int(gaps.max()), int(rank[-1]))) >= count:
            raise MessageError(f"model segment reaches coordinate {reach}, expected below {count}")
        return rank
    raise MessageError(f"position coding {coding}, expected {_ALL}, {_BITMAP} or {_GAPS}")


def _decode_bitmap(data: bytes, weights: int, count: int) -> NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    rank: NDArray[np.int64] = np.flatnonzero(bits)
    if rank.size != weights or (rank.size and rank[-1] >= count):
        raise MessageError(f"bitmap names {rank.size} coordinates of {count}, expected {weights}")
    return rank


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
