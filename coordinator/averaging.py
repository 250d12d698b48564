"""Opened sums into the next model: FedAvg by segment (docs/protocol.md §4.6, §6.4). numpy only.

Each segment is averaged over those who contributed to it, weighted by their numbers of examples (McMahan et al. 2017,
algorithm 1, restricted to the segment's coordinates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coordinator.settings import AveragingSettings
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
    _check_sizes(support, opened)
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
            vectors[support.vectors[index]] += segment.vectors * max_weight / segment.weight
    with np.errstate(over="ignore"):  # what overflows is named below
        new = weights.astype(np.float32), _floor_variances(vectors, table).astype(np.float32)
    if not all(np.isfinite(part).all() for part in new):
        raise ProtocolError("the averaged model is not finite, expected finite numbers")
    return new


# --------------------------------------------------------------------------- server optimisers


@dataclass(frozen=True)
class ServerMoments:
    """First and second moments of the opened means: float32[d + v], weights first; zero where nothing was opened."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]


def server_step(
    opened: Mapping[int, SegmentSum],
    support: Support,
    table: ParameterTable,
    max_weight: int,
    moments: ServerMoments | None,
    settings: AveragingSettings,
) -> tuple[dict[int, SegmentSum], ServerMoments | None]:
    """Turn opened means into the steps of the server optimiser: sums that `apply_update` adds as they are.

    FedAvg, FedAvgM (Hsu et al. 2019) and FedAdam (Reddi et al. 2021), coordinate by coordinate over what was opened; a
    segment that stayed closed keeps its moments, coordinates outside the support lose them. Buffers are averaged.
    """
    if settings.server_optimiser == "fedavg":
        if settings.server_learning_rate == 1.0:
            return dict(opened), None  # to the last bit what the sums say
        first = second = None
    else:
        size = table.weight_count + table.vector_count
        old = moments or ServerMoments(np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32))
        first, second = old.first.astype(np.float64), old.second.astype(np.float64)
    trained = _is_trained(table)
    stepped = {}
    for index, segment in opened.items():
        scale = max_weight / segment.weight
        values = _step(segment.values * scale, support.segments[index], first, second, settings)
        means = segment.vectors * scale
        if means.size:
            own = support.vectors[index]
            means = np.where(trained[own], _step(means, table.weight_count + own, first, second, settings), means)
        stepped[index] = replace(segment, values=values / scale, vectors=means / scale)
    if first is None or second is None:
        return stepped, None
    kept = np.concatenate([*support.segments, table.weight_count + np.arange(table.vector_count)])
    return stepped, ServerMoments(_only(first, kept), _only(second, kept))


def _step(
    mean: NDArray[np.float64],
    places: NDArray[np.int64],
    first: NDArray[np.float64] | None,
    second: NDArray[np.float64] | None,
    settings: AveragingSettings,
) -> NDArray[np.float64]:
    """The step at some coordinates; their moments are brought up to date in place."""
    rate, beta_1, beta_2 = settings.server_learning_rate, settings.beta_1, settings.beta_2
    if first is None or second is None:
        return rate * mean
    if settings.server_optimiser == "fedavgm":
        first[places] = beta_1 * first[places] + mean
        return rate * first[places]
    first[places] = beta_1 * first[places] + (1 - beta_1) * mean
    second[places] = beta_2 * second[places] + (1 - beta_2) * np.square(mean)
    return rate * first[places] / (np.sqrt(second[places]) + settings.tau)


def _is_trained(table: ParameterTable) -> NDArray[np.bool_]:
    """Which vector elements are trained parameters; the others are running means and variances."""
    roles = [np.full(parameter.size, parameter.role is Role.VECTOR) for parameter in table.vectors()]
    return np.concatenate([np.empty(0, dtype=np.bool_), *roles])


def _only(values: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float32]:
    kept = np.zeros(values.size, dtype=np.float32)
    kept[places] = values[places]
    return kept


# --------------------------------------------------------------------------- checks


def _check_sizes(support: Support, opened: Mapping[int, SegmentSum]) -> None:
    """A sum of length one would be stretched over a whole segment without a word."""
    for index, segment in opened.items():
        if index not in range(len(support.segments)):
            raise ProtocolError(f"sum of segment {index}, expected 0 to {len(support.segments) - 1}")
        found = segment.values.size, segment.vectors.size
        expected = support.segments[index].size, support.vectors[index].size
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
