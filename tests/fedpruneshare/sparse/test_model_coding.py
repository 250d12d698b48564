"""Model segments: the shortest coding, read strictly (docs/protocol.md §6.5)."""

from __future__ import annotations

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


@given(st.data())
def test_damaged_blobs_raise_nothing_else(data: st.DataObject) -> None:
    blob = bytearray(BLOB)
    for _ in range(data.draw(st.integers(1, 5))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        positions, codes, vectors = decode_segment(bytes(blob), 3000, 100, 3, TAKEN)
    except MessageError:
        return
    assert (positions.size, codes.size, vectors.size) == (100, 100, 3)
    assert (np.diff(positions) > 0).all()
    assert 0 <= positions[0] <= positions[-1] < 3000
    assert not np.isin(positions, TAKEN).any()
