from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import MessageError, ProtocolError
from fedpruneshare.link.chunks import Bitmap, Joiner, chunk_count, cut


@given(st.binary(max_size=300), st.integers(1, 64), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_join_to_the_same(payload: bytes, chunk_bytes: int, rng: random.Random) -> None:
    chunks = list(enumerate(cut(payload, chunk_bytes)))
    assert len(chunks) == chunk_count(len(payload), chunk_bytes)
    assert b"".join(chunk for _, chunk in chunks) == payload
    arriving = chunks * 2
    rng.shuffle(arriving)
    joiner = Joiner(len(payload), chunk_bytes, limit_bytes=300)
    came: set[int] = set()
    for number, chunk in arriving:
        assert joiner.add(number, bytes(chunk)) is (number not in came)
        came.add(number)
        assert joiner.missing() == sorted(set(range(len(chunks))) - came)
        assert joiner.is_complete is (len(came) == len(chunks))
    assert joiner.payload() == payload


def test_views_share_the_payload_and_cannot_change_it() -> None:
    payload = bytearray(b"abcdef")
    first, *_ = cut(payload, 4)
    payload[0] = ord("x")
    assert bytes(first) == b"xbcd"
    with pytest.raises(TypeError):
        first[0] = 1


@pytest.mark.parametrize(
    ("chunk", "data", "message"),
    [
        (3, b"zz", "chunk 3, expected 0 to 2"),
        (-1, b"zzzz", "chunk -1, expected 0 to 2"),
        (0, b"zzz", "chunk 0 of 3 bytes, expected 4"),
        (2, b"zzzz", "chunk 2 of 4 bytes, expected 2"),
        (2, b"", "chunk 2 of 0 bytes, expected 2"),
        (1, b"ZZZZ", "chunk 1 came twice with different bytes"),
    ],
)
def test_bad_chunk_is_refused_and_changes_nothing(chunk: int, data: bytes, message: str) -> None:
    joiner = Joiner(10, 4, limit_bytes=10)
    joiner.add(1, b"efgh")
    with pytest.raises(ProtocolError, match=message):
        joiner.add(chunk, data)
    assert joiner.missing() == [0, 2]
    joiner.add(0, b"abcd")
    joiner.add(2, b"ij")
    assert joiner.payload() == b"abcdefghij"


def test_incomplete_payload_is_not_given_out() -> None:
    with pytest.raises(RuntimeError, match="1 of 1 chunks are missing"):
        Joiner(10, 10, limit_bytes=10).payload()


def test_memory_is_bounded_before_the_first_chunk() -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        Joiner(1001, 10, limit_bytes=1000)


@pytest.mark.parametrize(("total", "chunk"), [(-1, 4), (4, 0)])
def test_impossible_sizes(total: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="expected at least 0 and 1"):
        chunk_count(total, chunk)


@given(st.integers(1, 200).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
def test_bitmap_round_trip(case: tuple[int, set[int]]) -> None:
    count, chunks = case
    bits = Bitmap.encode(chunks, count)
    assert len(bits) == -(-count // 8)
    assert Bitmap.decode(bits, count) == sorted(chunks)


def test_bitmap_is_little_endian() -> None:
    assert Bitmap.encode([0, 9], 10) == b"\x01\x02"


@pytest.mark.parametrize("bits", [b"\x01", b"\x01\x02\x00", b"\x00\x04", b"\x00\x80", b""])
def test_bitmap_of_another_length_or_with_spare_bits(bits: bytes) -> None:
    with pytest.raises(MessageError):
        Bitmap.decode(bits, 10)


def test_bitmap_of_a_chunk_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="chunk 10, expected 0 to 9"):
        Bitmap.encode([10], 10)
