"""Updates that are not shared keep every number, and say nothing but numbers (docs/protocol.md §5.10)."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from builders import plan

from fedpruneshare.errors import SharingError
from fedpruneshare.plain import PlainLayout


def layout(value_bits: int, vector_bits: int) -> PlainLayout:
    return PlainLayout(msgspec.structs.replace(plan().coding, value_bits=value_bits, vector_bits=vector_bits))


@pytest.mark.parametrize(("vectors", "values"), [(0, 1), (3, 7), (4, 8), (0, 0)])
def test_float32_arrives_as_it_was_sent(vectors: int, values: int) -> None:
    draw = np.random.default_rng(1)
    sent = draw.normal(size=vectors).astype(np.float32), draw.normal(size=values).astype(np.float32)
    words = layout(32, 32).pack(17, *sent)
    assert words.size == layout(32, 32).words(vectors, values) == 1 + vectors + values
    found = layout(32, 32).unpack(words, vectors, values)
    assert found.weight == 17
    assert np.array_equal(found.vectors, sent[0])
    assert np.array_equal(found.values, sent[1])


@pytest.mark.parametrize(("vectors", "values"), [(0, 1), (3, 7), (4, 8)])
def test_two_float16_share_a_word(vectors: int, values: int) -> None:
    draw = np.random.default_rng(2)
    sent = draw.normal(size=vectors).astype(np.float32), draw.normal(size=values).astype(np.float32)
    words = layout(16, 16).pack(1, *sent)
    assert words.size == 1 + (vectors + 1) // 2 + (values + 1) // 2
    found = layout(16, 16).unpack(words, vectors, values)
    assert np.array_equal(found.values, sent[1].astype(np.float16))
    assert np.array_equal(found.vectors, sent[0].astype(np.float16))


def test_what_float16_cannot_hold_becomes_its_largest_number() -> None:
    words = layout(16, 16).pack(1, np.empty(0, np.float32), np.array([1e6, -1e6], np.float32))
    assert layout(16, 16).unpack(words, 0, 2).values.tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize("weight", [0, 2**24])
def test_a_weight_out_of_range_is_neither_sent_nor_taken(weight: int) -> None:
    nothing = np.empty(0, np.float32)
    with pytest.raises(SharingError, match="weight out of range"):
        layout(32, 32).pack(weight, nothing, nothing)
    with pytest.raises(SharingError, match="weight out of range"):
        layout(32, 32).unpack(np.array([weight], np.uint32), 0, 0)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    words = np.array([1, np.float32(number).view(np.uint32)], np.uint32)
    with pytest.raises(SharingError, match="not finite"):
        layout(32, 32).unpack(words, 0, 1)


def test_another_length_is_refused_and_no_repr_shows_a_number() -> None:
    words = layout(32, 32).pack(1, np.empty(0, np.float32), np.ones(3, np.float32))
    with pytest.raises(SharingError, match="of 4 words, expected 5"):
        layout(32, 32).unpack(words, 0, 4)
    assert repr(layout(32, 32).unpack(words, 0, 3)) == "PlainSegment(vectors=0, values=3)"
