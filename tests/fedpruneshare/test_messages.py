"""Messages are closed, bounded and exact (docs/protocol.md §1.3)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_examples import EXAMPLES

from fedpruneshare.errors import MessageError
from fedpruneshare.messages import (
    KIND_OF,
    KINDS,
    MAX_DEVICES,
    Attendance,
    Contribution,
    DealerCheck,
    Freeze,
    decode,
    digest,
    encode,
)

each_kind = pytest.mark.parametrize("kind", list(KINDS))


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == set(KINDS)
    assert all(KIND_OF[type(message)] == kind for kind, message in EXAMPLES.items())


@each_kind
def test_round_trip(kind: str) -> None:
    body = encode(EXAMPLES[kind])
    assert decode(kind, body) == EXAMPLES[kind]
    assert encode(decode(kind, body)) == body
    assert len(digest(body)) == 32


@each_kind
def test_anything_but_exactly_one_message_is_refused(kind: str) -> None:
    body = encode(EXAMPLES[kind])
    fields = msgspec.msgpack.decode(body)
    wrong = {
        "trailing byte": body + b"\0",
        "cut": body[:-1],
        "empty": b"",
        "one field more": msgspec.msgpack.encode([*fields, 1]),
        "no field": msgspec.msgpack.encode([]),
        "a map": msgspec.msgpack.encode({"round_id": 1}),
        "wrong type first": msgspec.msgpack.encode([{"a": 1}, *fields[1:]]),
        "nested deep": b"\x91" * 5000 + b"\x01",
    }
    for what, data in wrong.items():
        with pytest.raises(MessageError, match=kind):
            decode(kind, data)
            pytest.fail(what)


@each_kind
def test_the_size_is_bounded_before_anything_is_decoded(kind: str) -> None:
    limit = KINDS[kind][1]
    with pytest.raises(MessageError, match=f"{kind}: body of {limit + 1} bytes, expected at most {limit}"):
        decode(kind, b"\xc1" * (limit + 1))


@pytest.mark.parametrize(
    ("message", "place", "value"),
    [
        ("share-upload", 0, 0),
        ("share-upload", 0, -1),
        ("share-upload", 0, 1.5),
        ("share-upload", 0, True),
        ("share-upload", 1, bytes(31)),
        ("share-upload", 2, bytes(17)),
        ("share-upload", 3, 0),
        ("share-upload", 3, 17),
        ("share-upload", 4, 16),
        ("share-upload", 5, "rc4"),
        ("share-upload", 6, -1),
        ("share-upload", 7, 0),
        ("share-upload", 8, bytes(48)),
        ("receipt", 2, "delivered"),
        ("attendance", 2, [["Device 01", bytes(16), 1]]),
        ("attendance", 3, ["device/01"]),
        ("attendance", 3, ["#"]),
        ("freeze", 2, []),
        ("freeze", 4, []),
        ("refusal", 2, "x" * 501),
        ("outcome", 1, "DONE"),
        ("missing", 2, b""),
        ("hello", 1, 16),
        ("round-plan", 2, ""),
        ("round-plan", 13, 0.0),
        ("round-plan", 13, float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused(message: str, place: int, value: object) -> None:
    fields = msgspec.msgpack.decode(encode(EXAMPLES[message]))
    assert fields[place] != value
    fields[place] = value
    with pytest.raises(MessageError, match=message):
        decode(message, msgspec.msgpack.encode(fields))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(MessageError, match="unknown message kind 'pickle'"):
        decode("pickle", b"")


@given(st.sampled_from(list(KINDS)), st.data())
def test_damaged_bytes_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    body = bytearray(encode(EXAMPLES[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(kind, bytes(body))
    except MessageError:
        return
    assert KIND_OF[type(message)] == kind


def test_the_largest_cohort_with_the_longest_names_fits() -> None:
    """What is encoded is committed and sent: nobody could decode it if it were too large."""
    everyone = tuple(Contribution(f"{place:032}", bytes(16), 15) for place in range(MAX_DEVICES))
    names, last = tuple(f"{place:032}" for place in range(16)), 2**47
    for message in (
        Attendance(last, bytes(32), everyone, ()),
        DealerCheck(last, bytes(32), bytes(32), names, everyone),
        Freeze(last, bytes(32), names, everyone, tuple(range(16))),
    ):
        assert decode(KIND_OF[type(message)], encode(message)) == message
