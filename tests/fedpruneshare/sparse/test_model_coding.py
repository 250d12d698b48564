"""Model segments: the shortest coding, read strictly (docs/protocol.md §6.5)."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import MessageError
from fedpruneshare.messages import Segment
from fedpruneshare.sparse import model_coding
from fedpruneshare.sparse.channels import ChannelGroup, Cut, coordinates, nested_channels, pack_channels, rank_channels
from fedpruneshare.sparse.model_coding import ModelSegment, SegmentReader, SegmentWriter
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.support import code_values, derive_support

ALL, BITMAP, GAPS = 0, 1, 2
NONE = np.empty(0, dtype=np.float32)


def table(d: int, vectors: int) -> ParameterTable:
    return ParameterTable((Parameter("w", (d,), Role.WEIGHT), Parameter("b", (vectors,), Role.VECTOR)))


def planned(weights: int, vectors: int, width: float = 1.0) -> Segment:
    """What a plan says of a segment; only counts and width matter to its coding."""
    return msgspec.structs.replace(
        Segment(0, 0, 1, 0.5, bytes(32), 1, bytes(32), width), weights=weights, vectors=vectors
    )


def encode_segment(
    positions: np.ndarray, codes: np.ndarray, d: int, taken: np.ndarray, vectors: np.ndarray = NONE
) -> bytes:
    """A segment of a model of d coordinates of which some are taken already."""
    writer = SegmentWriter(table(d, vectors.size))
    writer._room.take(taken, np.empty(0, dtype=np.int64))
    return writer.write(positions, codes, vectors)


def decode_segment(blob: bytes, d: int, weights: int, vectors: int, taken: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same segment read again."""
    reader = SegmentReader(table(d, min(vectors, 1000)))
    reader._room.take(taken, np.empty(0, dtype=np.int64))
    part: ModelSegment = reader.read(blob, planned(weights, vectors))
    return part.positions, part.codes, part.vectors


def blob_of(coding: int, places: bytes, values: int, groups: bytes = b"", bitmap: bytes = b"") -> bytes:
    """A blob with sections as they are, its values and vectors zero."""
    sections = [groups, bitmap, places, bytes(values), bytes(values), b"", b""]
    return bytes([2, coding]) + b"".join(struct.pack("<BI", 0, len(part)) + part for part in sections)


def sections_of(blob: bytes) -> list[tuple[int, bytes]]:
    """(packing, bytes) of each section."""
    found, start = [], 2
    while start < len(blob):
        packing, length = struct.unpack_from("<BI", blob, start)
        found.append((packing, blob[start + 5 : start + 5 + length]))
        start += 5 + length
    return found


def segment(d: int, count: int, taken: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions, codes, taken) of random coordinates."""
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(d)
    positions = np.sort(mixed[taken : taken + count]).astype(np.int64)
    return positions, code_values(rng.normal(size=count).astype(np.float32)), np.sort(mixed[:taken]).astype(np.int64)


@given(st.integers(1, 400), st.data())
def test_round_trip(d: int, data: st.DataObject) -> None:
    taken_count = data.draw(st.integers(0, d - 1))
    count = data.draw(st.integers(0, d - taken_count))
    positions, codes, taken = segment(d, count, taken_count, data.draw(st.integers(0, 99)))
    vectors = np.arange(data.draw(st.integers(0, 5)), dtype=np.float32)
    blob = encode_segment(positions, codes, d, taken, vectors)
    got = decode_segment(blob, d, count, vectors.size, taken)
    for found, expected in zip(got, (positions, codes, vectors), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("d", "count", "coding"), [(1000, 1000, ALL), (1000, 500, BITMAP), (8000, 80, GAPS), (100_000, 1, GAPS)]
)
def test_the_shortest_coding_is_chosen(d: int, count: int, coding: int) -> None:
    positions, codes, taken = segment(d, count)
    blob = encode_segment(positions, codes, d, taken)
    assert blob[:2] == bytes([2, coding])
    assert len(sections_of(blob)) == 7
    assert len(sections_of(blob)[2][1]) <= d / 8


def test_values_and_places_take_about_their_entropy() -> None:
    """One in ten of 44,190 places: 2.6 kB for which, and less than 13 bits for each of the largest weights."""
    coded = code_values(np.random.default_rng(1).normal(size=44_190).astype(np.float32))
    positions = derive_support(coded, 3, (4419,)).segments[0]
    blob = encode_segment(positions, coded[positions], 44_190, TAKEN[:0])
    places, low, high = (len(part) for _, part in sections_of(blob)[2:5])
    assert places < 2700
    assert 8 * (low + high) < 13 * 4419


def test_a_whole_model_along_its_supports() -> None:
    coded = code_values(np.random.default_rng(1).normal(size=5000).astype(np.float32))
    support = derive_support(coded, 3, (300, 900, 5000))
    taken = np.empty(0, dtype=np.int64)
    rebuilt = np.zeros(5000, dtype=np.uint16)
    for positions in support.segments:
        blob = encode_segment(positions, coded[positions], 5000, taken)
        places, codes, _ = decode_segment(blob, 5000, positions.size, 0, taken)
        rebuilt[places] = codes
        taken = np.concatenate([taken, positions])
    assert np.array_equal(rebuilt, coded)


POSITIONS, CODES, TAKEN = segment(3000, 100, 50)
BLOB = encode_segment(POSITIONS, CODES, 3000, TAKEN, np.ones(3, dtype=np.float32))


@pytest.mark.parametrize(
    "wrong",
    [b"", BLOB[:1], BLOB[:-1], BLOB + b"\0", b"\1" + BLOB[1:], BLOB[:1] + b"\7" + BLOB[2:], BLOB[:1] + b"\0" + BLOB[2:],
     BLOB[:1] + b"\1" + BLOB[2:], BLOB[:2] + b"\xff" * 6 + BLOB[8:], BLOB[:2] + b"\2" + BLOB[3:],
     blob_of(GAPS, bytes(100), 100, groups=b"\x90"), blob_of(GAPS, bytes(100), 100, bitmap=b"\0")],
)  # fmt: skip
def test_anything_else_is_refused(wrong: bytes) -> None:
    with pytest.raises(MessageError):
        decode_segment(wrong, 3000, 100, 3, TAKEN)


def test_needless_and_endless_gap_bytes_are_refused() -> None:
    assert decode_segment(blob_of(GAPS, bytes([5]), 1), 1000, 1, 0, TAKEN[:0])[0].tolist() == [5]
    for places in (bytes([0x85, 0x00]), bytes([0x85, 0x80, 0x00]), b"\xff" * 5 + b"\x01", bytes([0x85])):
        with pytest.raises(MessageError):
            decode_segment(blob_of(GAPS, places, 1), 1000, 1, 0, TAKEN[:0])
    with pytest.raises(MessageError, match="reaches coordinate 1000"):
        decode_segment(blob_of(GAPS, bytes([0xE8, 0x07]), 1), 1000, 1, 0, TAKEN[:0])


def test_gaps_cannot_wrap_around_to_a_place_in_range() -> None:
    """These four gaps, plus one each, are 2^64 + 4: in 64 bits the last index is 3."""
    gaps = np.full(4, 2**62, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_coding, "_decode_gaps", lambda *_: gaps)
        with pytest.raises(MessageError, match="reaches coordinate"):
            decode_segment(blob_of(GAPS, bytes(4), 4), 1000, 4, 0, TAKEN[:0])


@pytest.mark.parametrize("code", [0x7C00, 0xFC00, 0x7E01])
def test_what_is_not_finite_is_refused(code: int) -> None:
    codes = CODES.copy()
    codes[7] = code
    with pytest.raises(MessageError, match="not finite"):
        decode_segment(encode_segment(POSITIONS, codes, 3000, TAKEN), 3000, 100, 0, TAKEN)
    vectors = np.array([1, np.inf], dtype=np.float32)
    with pytest.raises(MessageError, match="not finite"):
        decode_segment(encode_segment(POSITIONS, CODES, 3000, TAKEN, vectors), 3000, 100, 2, TAKEN)


@pytest.mark.parametrize(("d", "taken"), [(1, 0), (7, 7), (5000, 5000), (5000, 0)])
def test_a_segment_without_weights(d: int, taken: int) -> None:
    positions, codes, there = segment(d, 0, taken)
    vectors = np.array([1.5, -2.5], dtype=np.float32)
    blob = encode_segment(positions, codes, d, there, vectors)
    assert blob[:2] == bytes([2, ALL if taken == d else GAPS if d > 8 else blob[1]])
    assert len(blob) <= 2 + 7 * 5 + 8 + 1
    places, values, floats = decode_segment(blob, d, 0, 2, there)
    assert (places.size, values.size, floats.tolist()) == (0, 0, [1.5, -2.5])


@pytest.mark.parametrize("gap", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_gaps_around_each_length_of_a_number(gap: int) -> None:
    d = 2_200_000
    positions = np.array([gap, gap + 1, d - 1], dtype=np.int64)
    blob = encode_segment(positions, CODES[:3], d, TAKEN[:0])
    assert blob[1] == GAPS
    got = decode_segment(blob, d, 3, 0, TAKEN[:0])
    assert np.array_equal(got[0], positions)
    assert np.array_equal(got[1], CODES[:3])


@pytest.mark.parametrize("places", [b"\xff" * 4 + b"\x0f", b"\xff" * 4 + b"\x7f", b"\x80" * 4 + b"\x01"])
def test_a_huge_gap_is_refused_before_anything_is_made_of_it(places: bytes) -> None:
    blob = blob_of(GAPS, places, 1)
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="reaches coordinate"):
            decode_segment(blob, 1000, 1, 0, TAKEN[:0])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_counts_of_the_plan_are_held_against_the_length_before_anything_is_made() -> None:
    tracemalloc.start()
    try:
        for weights, vectors in ((10**12, 0), (0, 10**12), (10**9, 10**9)):
            with pytest.raises(MessageError, match="expected at most"):
                decode_segment(BLOB, 3000, weights, vectors, TAKEN)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


BITMAP_POSITIONS, BITMAP_CODES, _ = segment(61, 30)
BLOBS = {
    "gaps": (BLOB, (3000, 100, 3, TAKEN)),
    "bitmap": (encode_segment(BITMAP_POSITIONS, BITMAP_CODES, 61, TAKEN[:0]), (61, 30, 0, TAKEN[:0])),
    "all": (encode_segment(np.arange(30), CODES[:30], 30, TAKEN[:0], np.ones(2, dtype=np.float32)),
            (30, 30, 2, TAKEN[:0])),
}  # fmt: skip


def test_a_bitmap_must_not_name_what_is_behind_its_end() -> None:
    blob, (d, weights, vectors, taken) = BLOBS["bitmap"]
    assert blob[1] == BITMAP
    packing, data = sections_of(blob)[2]
    spoiled = bytearray(zlib.decompress(data, -15) if packing else data)
    spoiled[0] &= spoiled[0] - 1  # one coordinate less
    with pytest.raises(MessageError, match="bitmap names 29"):
        decode_segment(blob_of(BITMAP, bytes(spoiled), 30), d, weights, vectors, taken)
    spoiled[7] |= 0x80  # bit 63 of 61: the count is right again
    with pytest.raises(MessageError, match="bitmap names 30 coordinates of 61"):
        decode_segment(blob_of(BITMAP, bytes(spoiled), 30), d, weights, vectors, taken)


def test_a_section_that_would_unpack_to_much_more_is_stopped_at_its_bound() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(200_000_000)) + bomb.flush()
    sections = [(0, b""), (0, b""), (1, data), (0, bytes(30)), (0, bytes(30)), (0, b""), (0, b"")]
    blob = bytes([2, BITMAP]) + b"".join(struct.pack("<BI", packing, len(part)) + part for packing, part in sections)
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="section 2 of a model segment"):
            decode_segment(blob, 61, 30, 0, TAKEN[:0])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BLOBS)
def test_every_shorter_blob_is_refused(name: str) -> None:
    blob, (d, weights, vectors, taken) = BLOBS[name]
    for length in range(len(blob)):
        with pytest.raises(MessageError):
            decode_segment(blob[:length], d, weights, vectors, taken)


@pytest.mark.parametrize("name", BLOBS)
@given(st.data())
def test_damaged_blobs_raise_nothing_else(name: str, data: st.DataObject) -> None:
    whole, (d, weights, count, taken) = BLOBS[name]
    blob = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        blob[data.draw(st.integers(0, min(len(blob) - 1, 300)))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(2, len(blob)))
    blob[at:at] = data.draw(st.binary(max_size=3))
    try:
        positions, codes, vectors = decode_segment(bytes(blob), d, weights, count, taken)
    except MessageError:
        return
    assert (positions.size, codes.size, vectors.size) == (weights, weights, count)
    assert (np.diff(positions) > 0).all()
    assert 0 <= positions[0] <= positions[-1] < d
    assert not np.isin(positions, taken).any()


# --------------------------------------------------------------------------- widths

#: Two layers of 8 channels between 4 inputs and 3 outputs, with biases; the second is flattened, two places a channel.
NARROWABLE = ParameterTable(
    (
        Parameter("a", (8, 4), Role.WEIGHT), Parameter("a.bias", (8,), Role.VECTOR),
        Parameter("b", (8, 8), Role.WEIGHT), Parameter("b.bias", (8,), Role.VECTOR),
        Parameter("c", (3, 16), Role.WEIGHT), Parameter("c.bias", (3,), Role.VECTOR),
    )
)  # fmt: skip
GROUPS = (
    ChannelGroup(8, 1, (Cut(0, 0), Cut(1, 0), Cut(2, 1))),
    ChannelGroup(8, 2, (Cut(2, 0), Cut(3, 0), Cut(4, 1, 0, 2))),
)
WIDTHS = (0.25, 0.5, 1.0)


def narrow_model(seed: int) -> tuple[list[bytes], list[Segment], np.ndarray, np.ndarray]:
    """Blobs of three widths, what the plan says of them, and the model's codes and vectors."""
    rng = np.random.default_rng(seed)
    d, v = NARROWABLE.weight_count, NARROWABLE.vector_count
    coded, vectors = code_values(rng.normal(size=d).astype(np.float32)), rng.normal(size=v).astype(np.float32)
    kept = nested_channels(rank_channels(np.abs(rng.normal(size=d)), NARROWABLE, GROUPS), GROUPS, WIDTHS[:2])
    writer, blobs, segments = SegmentWriter(NARROWABLE, GROUPS), [], []
    taken, vectors_taken = np.zeros(d, dtype=bool), np.zeros(v, dtype=bool)
    for width, own in zip(WIDTHS, (*kept, ()), strict=True):
        weights_exist, vectors_exist = (
            coordinates(NARROWABLE, GROUPS, own) if own else (np.ones(d, bool), np.ones(v, bool))
        )
        free = np.flatnonzero(weights_exist & ~taken)
        positions = np.sort(rng.permutation(free)[: max(1, free.size // 2)])
        elements = np.flatnonzero(vectors_exist & ~vectors_taken)
        blobs.append(writer.write(positions, coded[positions], vectors[elements], width, own))
        segments.append(planned(positions.size, elements.size, width))
        taken[positions], vectors_taken[elements] = True, True
    return blobs, segments, coded, vectors


@pytest.mark.parametrize("seed", range(5))
def test_widths_there_and_back(seed: int) -> None:
    blobs, segments, coded, vectors = narrow_model(seed)
    reader = SegmentReader(NARROWABLE)
    held, elements = [], []
    for blob, segment_of_plan in zip(blobs, segments, strict=True):
        part = reader.read(blob, segment_of_plan)
        assert np.array_equal(part.codes, coded[part.positions])
        assert np.array_equal(part.vectors, vectors[part.vector_positions])
        assert part.exists[part.positions].all()
        held.extend(part.positions.tolist())
        elements.extend(part.vector_positions.tolist())
    assert reader.groups == GROUPS
    assert len(set(held)) == len(held)
    assert sorted(elements) == list(range(vectors.size))
    assert part.kept is None


def test_a_narrow_model_has_the_channels_its_width_keeps() -> None:
    blobs, segments, *_ = narrow_model(0)
    reader = SegmentReader(NARROWABLE)
    counts = []
    for blob, segment_of_plan in zip(blobs[:2], segments[:2], strict=True):
        kept = reader.read(blob, segment_of_plan).kept
        assert kept is not None
        counts.append([int(channels.sum()) for channels in kept])
    assert counts == [[2, 2], [4, 4]]


def test_channels_other_than_the_width_keeps_are_refused() -> None:
    blobs, segments, *_ = narrow_model(0)
    groups = msgspec.msgpack.encode(GROUPS)
    every = tuple(np.ones(8, dtype=bool) for _ in GROUPS)
    for bitmap in (pack_channels(every), bytes(2), b"\x03\x03", bytes(3)):  # too many, none, two of one half, too long
        with pytest.raises(MessageError, match=r"channel group|of a model segment|bitmap"):
            SegmentReader(NARROWABLE).read(blob_of(GAPS, b"", 0, groups, bitmap), planned(0, 4, 0.25))
    reader = SegmentReader(NARROWABLE)
    reader.read(blobs[0], segments[0])
    with pytest.raises(MessageError, match="those of a smaller width among them"):
        first = sections_of(blobs[0])[1][1]
        reader.read(blob_of(GAPS, b"", 0, b"", bytes(byte ^ 0xFF for byte in first)), planned(0, 8, 0.5))
    with pytest.raises(MessageError, match="expected a wider one"):
        reader.read(blob_of(GAPS, b"", 0, b"", bytes(2)), planned(0, 8, 0.125))


def test_channel_groups_that_do_not_fit_the_table_are_refused() -> None:
    outside = msgspec.msgpack.encode((ChannelGroup(9, 1, (Cut(0, 0),)),))
    for groups in (outside, b"\xff", b""):
        with pytest.raises(MessageError, match="group"):
            SegmentReader(NARROWABLE).read(blob_of(GAPS, b"", 0, groups, bytes(2)), planned(0, 0, 0.25))


def test_a_narrow_model_says_what_is_cut_in_no_more_groups_than_there_may_be() -> None:
    """A device that chose width 0.25 for its cost would otherwise train a whole model, or count for minutes."""
    table = ParameterTable((Parameter("w", (1200, 1), Role.WEIGHT),))
    many = tuple(ChannelGroup(1, 1, (Cut(0, 0, place),)) for place in range(1025))
    for groups, bitmap in (((), b""), (many, b"\xff" * 128 + b"\x01")):
        blob = blob_of(GAPS, b"", 0, msgspec.msgpack.encode(groups), bitmap)
        with pytest.raises(MessageError, match="channel groups, expected 1 to 1024"):
            SegmentReader(table).read(blob, planned(0, 0, 0.25))
