"""Quotas of tensors: exactly as many as asked, within bounds, and Erdős–Rényi where nothing binds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.sparse.allocation import erk_quotas


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sums of dimensions, lowest, sizes) of one to six tensors."""
    shapes = draw(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=6))
    sizes = ints(*(int(np.prod(shape)) for shape in shapes))
    lowest = ints(*(draw(st.integers(0, int(size))) for size in sizes))
    return ints(*(sum(shape) for shape in shapes)), lowest, sizes


@given(layers(), st.integers(0, 10_000_000))
def test_quotas_add_up_within_their_bounds(bounds: tuple[np.ndarray, np.ndarray, np.ndarray], total: int) -> None:
    sums, lowest, sizes = bounds
    quotas = erk_quotas(total, sums, lowest, sizes)
    assert quotas.sum() == min(max(total, lowest.sum()), sizes.sum())
    assert (lowest <= quotas).all()
    assert (quotas <= sizes).all()
    assert np.array_equal(quotas, erk_quotas(int(quotas.sum()), sums, lowest, sizes))


@given(layers(), st.integers(0, 1000), st.integers(0, 1000))
def test_more_in_all_is_never_less_of_one_by_more_than_a_rounding(
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray], one: int, other: int
) -> None:
    sums, lowest, sizes = bounds
    fewer, more = (erk_quotas(total, sums, lowest, sizes) for total in sorted((one, other)))
    assert (more - fewer >= -1).all()


def test_small_layers_are_thinned_less() -> None:
    """LeNet-5's weights at one in ten: densities in proportion to the sum over the product of their dimensions."""
    shapes = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)]
    sums, sizes = ints(*(sum(shape) for shape in shapes)), ints(*(int(np.prod(shape)) for shape in shapes))
    quotas = erk_quotas(4419, sums, np.zeros(5, dtype=np.int64), sizes)
    assert quotas.sum() == 4419
    densities = quotas / sizes
    assert densities / (sums / sizes) == pytest.approx(np.full(5, 4419 / sums.sum()), rel=0.01)
    assert densities[0] > 0.6  # the first layer, of 150 weights
    assert densities[2] < 0.1  # the largest, of 30,720
    most = erk_quotas(20_000, sums, np.zeros(5, dtype=np.int64), sizes)
    assert most[0] == sizes[0]


def test_the_larger_fraction_gets_what_rounding_left_over() -> None:
    assert erk_quotas(4, ints(3, 3, 3), ints(0, 0, 0), ints(9, 9, 9)).tolist() == [2, 1, 1]
    assert erk_quotas(5, ints(2, 1, 1), ints(0, 0, 0), ints(9, 9, 9)).tolist() == [3, 1, 1]
    assert erk_quotas(2, ints(1, 1), ints(0, 2), ints(9, 9)).tolist() == [0, 2]
