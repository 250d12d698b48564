"""The parameter table: which named arrays a model has, and where each lives in the flat vectors.

A model is two flat float32 vectors and a few integer buffers (docs/protocol.md §6.1):
`weights` [d] (all prunable tensors, in table order, row-major) and `vectors` [v] (biases, norm scales and float
buffers, in table order). Integer buffers (counters) are kept by the device and never travel.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError


class Role(StrEnum):
    """What a named array is, and so how it travels."""

    WEIGHT = "weight"
    """Prunable: a coordinate of the nested supports."""
    VECTOR = "vector"
    """Bias or norm parameter: never pruned by density, 16-bit words in segment 0."""
    BUFFER = "buffer"
    """Float buffer (running mean): as a vector, but not trained."""
    VARIANCE = "variance"
    """Float buffer that must stay positive (`running_var`): as a buffer, with a floor after averaging."""
    COUNTER = "counter"
    """Integer buffer: not averaged, not on the wire."""


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named array. `shape` is the torch shape; `channel_axis` is the output-channel axis of a weight."""

    name: str
    shape: tuple[int, ...]
    role: Role
    channel_axis: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64)) if self.shape else 1


class ParameterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All arrays of a model in a fixed order (the order of the model's state dict)."""

    parameters: tuple[Parameter, ...]

    def weights(self) -> list[Parameter]:
        """Prunable tensors in order."""
        return [p for p in self.parameters if p.role is Role.WEIGHT]

    def vectors(self) -> list[Parameter]:
        """Everything that travels in 16-bit word groups, in order."""
        return [p for p in self.parameters if p.role in (Role.VECTOR, Role.BUFFER, Role.VARIANCE)]

    @property
    def weight_count(self) -> int:
        """d: number of prunable coordinates."""
        return sum(p.size for p in self.weights())

    @property
    def vector_count(self) -> int:
        """v: number of vector elements."""
        return sum(p.size for p in self.vectors())

    def weight_bounds(self) -> NDArray[np.int64]:
        """int64[T+1]: tensor i of `weights()` owns the flat coordinates [bounds[i], bounds[i+1])."""
        return _bounds(self.weights())

    def vector_bounds(self) -> NDArray[np.int64]:
        """int64[U+1]: the same for `vectors()`."""
        return _bounds(self.vectors())

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of the table: names the architecture in a plan."""
        return hashlib.sha256(b"fedpruneshare/table/1\0" + msgspec.json.encode(self)).digest()

    def flatten(self, arrays: dict[str, NDArray[np.generic]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Named arrays -> (weights float32[d], vectors float32[v]). Raises `ModelFileError` on a wrong one."""
        return _gather(self.weights(), arrays), _gather(self.vectors(), arrays)

    def unflatten(self, weights: NDArray[np.float32], vectors: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(weights float32[d], vectors float32[v]) -> named arrays (views, torch shapes)."""
        return {**_scatter(self.weights(), weights), **_scatter(self.vectors(), vectors)}


def _bounds(parameters: list[Parameter]) -> NDArray[np.int64]:
    return np.cumsum([0, *(p.size for p in parameters)], dtype=np.int64)


def _gather(parameters: list[Parameter], arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    flat = np.empty(sum(p.size for p in parameters), dtype=np.float32)
    start = 0
    for p in parameters:
        if p.name not in arrays:
            raise ModelFileError(f"parameter {p.name!r} is missing, found {sorted(arrays)}")
        array = arrays[p.name]
        if tuple(array.shape) != p.shape:
            raise ModelFileError(f"parameter {p.name!r} has shape {tuple(array.shape)}, expected {p.shape}")
        flat[start : start + p.size] = np.asarray(array, dtype=np.float32).reshape(-1)
        start += p.size
    return flat


def _scatter(parameters: list[Parameter], flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    expected = sum(p.size for p in parameters)
    if flat.shape != (expected,):
        raise ModelFileError(f"flat vector has shape {flat.shape}, expected ({expected},)")
    arrays: dict[str, NDArray[np.float32]] = {}
    start = 0
    for p in parameters:
        arrays[p.name] = flat[start : start + p.size].reshape(p.shape)
        start += p.size
    return arrays
