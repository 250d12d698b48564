"""Packing at its boundaries, and what a refused digit may say (docs/protocol.md §5.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import PlanError, SharingError
from fedpruneshare.sharing.digits import DigitPacking, shift, unshift, zero_point
from fedpruneshare.sharing.field import CHUNK, F31, F61, Field


def test_a_refused_digit_is_named_by_its_place_alone() -> None:
    """The value is part of a device's update."""
    with pytest.raises(SharingError, match="digit 1 is out of range, expected 0 to 15") as raised:
        DigitPacking(4, 10).pack(np.array([3, 16, 777, 4242], dtype="<u4"))
    assert "777" not in str(raised.value)
    assert "4242" not in str(raised.value)


fields = st.sampled_from([F31, F61])


@given(st.integers(1, 16), st.integers(1, 5000), st.integers(1, 600), st.booleans(), fields, st.integers(0, 30))
def test_the_largest_sum_comes_back_and_one_digit_more_would_not_fit(
    bits: int, devices: int, weight: int, is_power_of_two: bool, field: Field, count: int
) -> None:
    largest = devices * weight * (2**bits - 1)
    if largest >= field.p:
        with pytest.raises(PlanError, match="reach the modulus"):
            DigitPacking(bits, devices, weight, is_power_of_two, field)
        return
    packing = DigitPacking(bits, devices, weight, is_power_of_two, field)
    full = sum(largest * packing.radix**place for place in range(packing.digits))
    assert full < field.p <= full + largest * packing.radix**packing.digits
    assert packing.radix > largest
    top = packing.pack(np.full(count, 2**bits - 1, dtype="<u4"))
    summed = (top.astype(object) * devices * weight).astype(field.word_type)
    assert all(int(a) * devices * weight == int(b) for a, b in zip(top, summed, strict=True))  # no sum has wrapped
    assert packing.unpack(summed, count).tolist() == [largest] * count


@pytest.mark.parametrize(("bits", "most", "is_power_of_two"), [(8, 128, True), (4, 68, True), (4, 214 // 15, False)])
def test_one_device_more_costs_a_digit(bits: int, most: int, is_power_of_two: bool) -> None:
    """N_max and N_max + 1 of the figures the field quotes: 2 digits of 8 bits, 3 or 4 of 4 bits."""
    fits = DigitPacking(bits, most, is_power_of_two=is_power_of_two)
    assert DigitPacking(bits, most + 1, is_power_of_two=is_power_of_two).digits == fits.digits - 1


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("is_power_of_two", [False, True])
def test_any_count_comes_back(count: int, is_power_of_two: bool) -> None:
    values = np.random.default_rng(count).integers(0, 16, count).astype("<u2")
    packing = DigitPacking(4, 10, is_power_of_two=is_power_of_two)
    assert packing.unpack(packing.pack(values), count).tolist() == values.tolist()


@given(st.integers(2, 16), st.integers(1, 40), st.data())
def test_shifted_sums_are_sums(bits: int, devices: int, data: st.DataObject) -> None:
    q = zero_point(bits)
    rows = [data.draw(st.lists(st.integers(-q, q), min_size=5, max_size=5)) for _ in range(devices)]
    digits = [shift(np.array(row, dtype=np.int32), bits) for row in rows]
    assert all(int(row.max()) <= 2 * q for row in digits)
    total = np.sum(digits, axis=0, dtype=np.uint32)
    assert unshift(total, bits, devices).tolist() == [sum(column) for column in zip(*rows, strict=True)]


def test_a_value_out_of_range_is_named_by_its_place_alone() -> None:
    with pytest.raises(SharingError, match="value 2 is out of range, expected -7 to 7") as raised:
        shift(np.array([1, -7, 4242], dtype=np.int32), 4)
    assert "4242" not in str(raised.value)
    with pytest.raises(SharingError, match="expected signed integers"):
        shift(np.array([1.0]), 4)
