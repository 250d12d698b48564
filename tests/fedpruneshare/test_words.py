"""Layout of a segment's words: lengths, order, and sums that cannot carry (docs/protocol.md §6.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sharing_reference as reference

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.messages import MAX_DEVICES, Coding
from fedpruneshare.sharing.field import F31, check_canonical, modadd
from fedpruneshare.sharing.prg import Prg, Seed
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme
from fedpruneshare.words import SegmentWords, WordLayout

CODING = {"value_bits": 4, "vector_bits": 16, "max_weight": 512, "max_devices": 10, "tail_words": 0}


def layout(**changes: Any) -> WordLayout:
    return WordLayout(Coding(weight_clips=(1.0,), vector_clips=(1.0,), **{**CODING, **changes}))


def segment(weight: int, vectors: list[int], values: list[int]) -> SegmentWords:
    return SegmentWords(weight, np.array(vectors, dtype="<u4"), np.array(values, dtype="<u4"))


codings = st.fixed_dictionaries(
    {
        "value_bits": st.integers(2, 16),
        "vector_bits": st.integers(2, 16),
        "max_weight": st.integers(1, 2**18),
        "max_devices": st.integers(1, MAX_DEVICES),
        "tail_words": st.integers(0, 16),
    }
).filter(lambda c: c["max_weight"] * c["max_devices"] < F31.p)


@given(codings, st.integers(0, 50), st.integers(0, 50), st.data())
def test_one_upload_there_and_back(coding: dict[str, int], vectors: int, values: int, data: st.DataObject) -> None:
    own = layout(**coding)
    wide, narrow = st.integers(0, 2 ** coding["vector_bits"] - 1), st.integers(0, 2 ** coding["value_bits"] - 1)
    weight = data.draw(st.integers(1, coding["max_weight"]))
    elements = data.draw(st.lists(wide, min_size=vectors, max_size=vectors))
    numbers = data.draw(st.lists(narrow, min_size=values, max_size=values))
    packed = own.pack(segment(weight, elements, numbers))
    check_canonical(packed)
    assert packed.tolist() == reference.segment(weight, elements, numbers, coding)
    assert packed.size == own.words(vectors, values)
    back = own.unpack(packed, vectors, values)
    assert (back.weight, back.vectors.tolist(), back.values.tolist()) == (weight, elements, numbers)


@given(codings, st.integers(0, 40), st.integers(0, 40))
def test_every_device_at_its_largest_neither_wraps_nor_carries(
    coding: dict[str, int], vectors: int, values: int
) -> None:
    own, devices = layout(**coding), coding["max_devices"]
    high, low = 2 ** coding["vector_bits"] - 1, 2 ** coding["value_bits"] - 1
    top = own.pack(segment(coding["max_weight"], [high] * vectors, [low] * values))
    total = top.astype(np.uint64) * devices
    assert total.max() < F31.p
    back = own.unpack(total.astype("<u4"), vectors, values)
    assert back.weight == devices * coding["max_weight"]
    assert set(back.vectors.tolist()) <= {devices * high}
    assert set(back.values.tolist()) <= {devices * low}


def test_the_order_of_the_words() -> None:
    packed = layout(tail_words=2).pack(segment(77, [3], [5]))
    assert packed.tolist() == [77, 3, 5, 0, 0]
    assert packed.dtype == np.dtype("<u4")


def test_a_segment_of_nothing_still_has_its_weight() -> None:
    assert layout().pack(segment(1, [], [])).tolist() == [1]
    assert layout(tail_words=16).words(0, 0) == 17


@pytest.mark.parametrize(("weight", "devices", "fits"), [(2**24 - 1, 128, True), (2**24 - 1, 129, False)])
def test_the_sum_of_weights_stays_below_the_modulus(weight: int, devices: int, fits: bool) -> None:
    assert (weight * devices < F31.p) == fits
    if fits:
        assert layout(max_weight=weight, max_devices=devices).words(0, 1) == 2
    else:
        with pytest.raises(PlanError, match=r"max_weight = 129 x 16777215 reaches the modulus"):
            layout(max_weight=weight, max_devices=devices)


@pytest.mark.parametrize("devices", [1, 10, MAX_DEVICES])
def test_the_largest_sum_of_weights_that_fits_exactly(devices: int) -> None:
    largest = (F31.p - 1) // devices
    assert layout(max_weight=largest, max_devices=devices)
    with pytest.raises(PlanError, match="reaches the modulus"):
        layout(max_weight=-(-F31.p // devices), max_devices=devices)


@pytest.mark.parametrize("weight", [-1, 0, 513])
def test_a_weight_outside_the_plan_is_refused(weight: int) -> None:
    with pytest.raises(SharingError, match="expected 1 to 512"):
        layout().pack(segment(weight, [], [1]))


@pytest.mark.parametrize(("vectors", "values"), [([65_536], [1]), ([1], [16])])
def test_vectors_and_values_have_their_own_range(vectors: list[int], values: list[int]) -> None:
    assert layout().pack(segment(1, [65_535], [15])).size == 3
    with pytest.raises(SharingError, match="expected 0 to"):
        layout().pack(segment(1, vectors, values))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_sum_of_another_length_is_refused(change: int) -> None:
    expected = layout(tail_words=1).words(4, 9)
    with pytest.raises(SharingError, match=f"{expected + change} words, expected {expected}"):
        layout(tail_words=1).unpack(np.zeros(expected + change, dtype="<u4"), 4, 9)


def test_counts_that_share_a_length_are_told_apart_by_the_padding() -> None:
    """Two values less in a word: what was in their places must have been zero."""
    packed = layout().pack(segment(1, [], [1, 2, 3]))
    assert layout().words(0, 3) == layout().words(0, 1)
    with pytest.raises(SharingError, match="more than its digits"):
        layout().unpack(packed, 0, 1)


def test_a_segment_shows_sizes_only() -> None:
    shown = repr(segment(4321, [98_765], [12_345, 6]))
    assert shown == "SegmentWords(vectors=1, values=2)"


@pytest.mark.parametrize("prg", list(Prg))
def test_a_sum_of_shared_segments_opens_to_the_sum_of_what_was_packed(prg: Prg) -> None:
    own, scheme, rng = layout(), SharingScheme(3, 2, 1), np.random.default_rng(4)
    uploads = [
        SegmentWords(int(w), rng.integers(0, 2**16, 21).astype("<u4"), rng.integers(0, 16, 50).astype("<u4"))
        for w in rng.integers(1, 513, 10)
    ]
    sums = {x: Accumulator(own.words(21, 50)) for x in (1, 2, 3)}
    plain = np.zeros(own.words(21, 50), dtype="<u4")
    for device, upload in enumerate(uploads):
        packed, seed = own.pack(upload), Seed(bytes([device]) * 32)
        modadd(plain, packed, out=plain)
        sums[1].add_seed(prg, seed, b"d")
        for x, share in scheme.split(packed, {1: seed}, prg, b"d").items():
            sums[x].add(share)
    for points in ((1, 2), (1, 3), (2, 3), (1, 2, 3)):
        opened = scheme.open({x: sums[x].export() for x in points})
        assert np.array_equal(opened, plain)
        total = own.unpack(opened, 21, 50)
        assert total.weight == sum(upload.weight for upload in uploads)
        assert np.array_equal(total.vectors, sum(upload.vectors for upload in uploads))
        assert np.array_equal(total.values, sum(upload.values for upload in uploads))
