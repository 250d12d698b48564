"""Model segments: the shortest coding, read strictly (docs/protocol.md §6.5)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import MessageError
from fedpruneshare.sparse import model_coding
from fedpruneshare.sparse.model_coding import decode_segment, encode_segment
from fedpruneshare.sparse.support import code_values, derive_support

ALL, BITMAP, GAPS = 0, 1, 2


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
    ("d", "count", "coding", "position_bytes"),
    [(1000, 1000, ALL, 0), (1000, 500, BITMAP, 125), (8000, 80, GAPS, None), (100_000, 1, GAPS, None)],
)
def test_the_shortest_coding_is_chosen(d: int, count: int, coding: int, position_bytes: int | None) -> None:
    positions, codes, taken = segment(d, count)
    blob = encode_segment(positions, codes, d, taken)
    assert blob[:2] == bytes([1, coding])
    size = len(blob) - 2 - 2 * count
    assert size == position_bytes if position_bytes is not None else size < d / 8


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
    [b"", BLOB[:1], BLOB[:-1], BLOB + b"\0", b"\2" + BLOB[1:], BLOB[:1] + b"\7" + BLOB[2:], BLOB[:1] + b"\0" + BLOB[2:],
     BLOB[:1] + b"\1" + BLOB[2:], BLOB[:2] + b"\xff" * 6 + BLOB[8:], BLOB[:2] + b"\x80" + BLOB[3:]],
)  # fmt: skip
def test_anything_else_is_refused(wrong: bytes) -> None:
    with pytest.raises(MessageError):
        decode_segment(wrong, 3000, 100, 3, TAKEN)


def test_needless_and_endless_gap_bytes_are_refused() -> None:
    tail = np.zeros(1, dtype="<u2").tobytes()
    assert decode_segment(bytes([1, GAPS, 5]) + tail, 1000, 1, 0, TAKEN[:0])[0].tolist() == [5]
    for places in (bytes([0x85, 0x00]), bytes([0x85, 0x80, 0x00]), b"\xff" * 5 + b"\x01", bytes([0x85])):
        with pytest.raises(MessageError):
            decode_segment(bytes([1, GAPS]) + places + tail, 1000, 1, 0, TAKEN[:0])
    with pytest.raises(MessageError, match="reaches coordinate 1000"):
        decode_segment(bytes([1, GAPS]) + bytes([0xE8, 0x07]) + tail, 1000, 1, 0, TAKEN[:0])


def test_gaps_cannot_wrap_around_to_a_place_in_range() -> None:
    """These four gaps, plus one each, are 2^64 + 4: in 64 bits the last index is 3."""
    gaps = np.full(4, 2**62, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_coding, "_decode_gaps", lambda *_: gaps)
        with pytest.raises(MessageError, match="reaches coordinate"):
            decode_segment(bytes([1, GAPS]) + bytes(8), 1000, 4, 0, TAKEN[:0])


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
    assert blob[:2] == bytes([1, ALL if taken == d else GAPS])
    assert len(blob) == 2 + 8
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
    blob = bytes([1, GAPS]) + places + np.zeros(1, dtype="<u2").tobytes()
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
            with pytest.raises(MessageError, match="at least"):
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
    spoiled = bytearray(blob)
    spoiled[2] &= spoiled[2] - 1  # one coordinate less
    with pytest.raises(MessageError, match="bitmap names 29"):
        decode_segment(bytes(spoiled), d, weights, vectors, taken)
    spoiled[9] |= 0x80  # bit 63 of 61: the count is right again
    with pytest.raises(MessageError, match="bitmap names 30 coordinates of 61"):
        decode_segment(bytes(spoiled), d, weights, vectors, taken)


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
