"""Opened sums into the next model: FedAvg by segment (docs/protocol.md §4.6, §6.4). numpy only.

Each segment is averaged over those who contributed to it, weighted by their numbers of examples (McMahan et al. 2017,
algorithm 1, restricted to the segment's coordinates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ProtocolError
from fedpruneshare.sparse.parameters import ParameterTable, Role
from fedpruneshare.sparse.support import Support

#: Averaged variances are kept above this, so that a norm layer never divides by zero.
VARIANCE_FLOOR = 1e-5


@dataclass(frozen=True)
class SegmentSum:
    """An opened segment: Σw, number of contributors, and Σ v·w/max_weight of its values and vector elements."""

    weight: int
    contributors: int
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]


def apply_update(
    model: tuple[NDArray[np.float32], NDArray[np.float32]],
    support: Support,
    opened: Mapping[int, SegmentSum],
    table: ParameterTable,
    max_weight: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Model (weights float32[d], vectors float32[v]) + opened segments -> the next model, same shapes.

    Segments that were not opened keep their values, coordinates outside all rungs become zero.
    Raises `ProtocolError` if a segment is not of the plan's size, a weight sum contradicts its contributors, or the
    result is not finite as float32.
    """
    old_weights, old_vectors = model
    _check_sizes(support, opened, table)
    weights = np.zeros(old_weights.size, dtype=np.float64)
    vectors = old_vectors.astype(np.float64)
    for index, positions in enumerate(support.segments):
        weights[positions] = old_weights[positions]
        if index not in opened:
            continue
        segment = opened[index]
        _check_weight(index, segment, max_weight)
        weights[positions] += segment.values * max_weight / segment.weight
        if segment.vectors.size:
            vectors += segment.vectors * max_weight / segment.weight
    with np.errstate(over="ignore"):  # what overflows is named below
        new = weights.astype(np.float32), _floor_variances(vectors, table).astype(np.float32)
    if not all(np.isfinite(part).all() for part in new):
        raise ProtocolError("the averaged model is not finite, expected finite numbers")
    return new


def _check_sizes(support: Support, opened: Mapping[int, SegmentSum], table: ParameterTable) -> None:
    """A sum of length one would be stretched over a whole segment without a word."""
    for index, segment in opened.items():
        if index not in range(len(support.segments)):
            raise ProtocolError(f"sum of segment {index}, expected 0 to {len(support.segments) - 1}")
        found = segment.values.size, segment.vectors.size
        expected = support.segments[index].size, table.vector_count if index == 0 else 0
        if found != expected:
            raise ProtocolError(f"segment {index}: {found} values and vector elements, expected {expected}")


def _check_weight(index: int, segment: SegmentSum, max_weight: int) -> None:
    lowest, highest = max(segment.contributors, 1), segment.contributors * max_weight
    if not lowest <= segment.weight <= highest:
        raise ProtocolError(f"segment {index}: weight sum {segment.weight}, expected {lowest} to {highest}")


def _floor_variances(vectors: NDArray[np.float64], table: ParameterTable) -> NDArray[np.float64]:
    bounds = table.vector_bounds()
    for index, parameter in enumerate(table.vectors()):
        if parameter.role is Role.VARIANCE:
            own = slice(int(bounds[index]), int(bounds[index + 1]))
            vectors[own] = np.maximum(vectors[own], VARIANCE_FLOOR)
    return vectors
