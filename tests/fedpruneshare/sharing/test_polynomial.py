"""Whichever way leads from some points to another, the value is the polynomial's (docs/protocol.md §5.5)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sharing_reference as reference

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.field import CHUNK, F31, F61, Field, Words
from fedpruneshare.sharing.polynomial import interpolate, lagrange_weights

fields = pytest.mark.parametrize("field", [F31, F61], ids=lambda field: field.name)


def rows_of(coefficients: list[list[int]], points: tuple[int, ...], field: Field) -> list[Words]:
    """Values of several polynomials at each point."""
    return [
        np.array([sum(c * x**i for i, c in enumerate(row)) % field.p for row in coefficients], dtype=field.word_type)
        for x in points
    ]


@fields
@given(data=st.data())
def test_interpolation_is_that_of_integers(field: Field, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 7))
    points = tuple(sorted(data.draw(st.sets(st.integers(1, 16), min_size=k, max_size=k))))
    at = data.draw(st.integers(-8, 17))
    element = st.sampled_from([0, 1, field.p - 1]) | st.integers(0, field.p - 1)
    coefficients = data.draw(st.lists(st.lists(element, min_size=k, max_size=k), max_size=4))
    rows = rows_of(coefficients, points, field)
    found = interpolate(points, at, rows, np.empty(len(coefficients), dtype=field.word_type), field)
    assert found.tolist() == [sum(c * at**i for i, c in enumerate(row)) % field.p for row in coefficients]


@fields
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("points", [(1, 2), (1, 3), (1, 2, 3), (2, 3, 4), (1, 2, 4), (1, 2, 3, 4, 5)])
def test_both_ways_agree_also_into_one_of_the_rows(points: tuple[int, ...], size: int, field: Field) -> None:
    """Consecutive points are walked, others multiplied; the weights are the judge of both."""
    draw = np.random.default_rng(size)
    rows = [draw.integers(0, field.p, size, dtype=field.word_type) for _ in points]
    places = sorted({0, size // 2, size - 1} & set(range(size)))
    for at in (0, -1, points[-1] + 1):
        known = [{x: int(row[place]) for x, row in zip(points, rows, strict=True)} for place in places]
        expected = [reference.interpolate(values, at, field.p) for values in known]
        for target in (None, *range(len(points))):
            given_rows = [row.copy() for row in rows]
            out = np.empty(size, dtype=field.word_type) if target is None else given_rows[target]
            assert interpolate(points, at, given_rows, out, field) is out
            assert out[places].tolist() == expected


@pytest.mark.parametrize("points", [(1, 1), (1, 2, 1), (1, 2**31), (3, 3 + reference.P)])
def test_one_point_twice_is_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(SharingError, match="expected distinct ones"):
        lagrange_weights(points, 0)


def test_weights_depend_on_the_field() -> None:
    for points in combinations(range(1, 6), 3):
        weights = {field.name: lagrange_weights(points, 0, field.p) for field in (F31, F61)}
        for field in (F31, F61):
            assert sum(weights[field.name]) % field.p == 1  # of the constant 1
        assert min(weights["F31"]) >= 0
    assert lagrange_weights((1, 3), 0, F31.p) != lagrange_weights((1, 3), 0, F61.p)


def test_arrays_of_other_lengths_are_refused() -> None:
    rows = [np.zeros(3, dtype="<u4"), np.zeros(2, dtype="<u4")]
    with pytest.raises(SharingError, match="expected one length"):
        interpolate((1, 2), 0, rows, np.zeros(3, dtype="<u4"))
