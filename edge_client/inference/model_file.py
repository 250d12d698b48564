"""The public model as this device holds it: one small file, written without torch or onnx whenever a round came in.

A device has what its rung has (docs/protocol.md §6.2, §6.7): the values of the support, all else zero, and perhaps only
some channels. The file says which, so that a graph can be put around it later (`rendering.py`). It is no secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError, PeerError, PlanError
from fedpruneshare.metrics import METRICS, MetricName
from fedpruneshare.plan import PlanView
from fedpruneshare.sparse.channels import Groups, Kept, check_groups, kept_indices, pack_channels, unpack_channels
from fedpruneshare.sparse.parameters import ParameterTable, Role
from fedpruneshare.storage import write_atomically

if TYPE_CHECKING:  # these bring torch
    from edge_client.local_round import Workplace
    from edge_client.receiving import ReceivedModel

MODEL_FILE: Final = "model.msgpack"
_MAX_FILE_BYTES: Final = 1 << 31


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model it is, and what it takes.

    `bundle` is the SHA-256 of the task's bundle; `input_shape` that of one example, after the task's transform().
    `model_version`: its number of applied rounds, as the plan said.
    """

    task: str
    bundle: Annotated[bytes, Meta(min_length=32, max_length=32)]
    metric: MetricName
    input_shape: tuple[Annotated[int, Meta(ge=1)], ...]
    is_transformed: bool
    round_id: Annotated[int, Meta(ge=1, lt=2**48)]
    rung: Annotated[int, Meta(ge=0, le=15)]
    width: Annotated[float, Meta(gt=0, le=1)]
    density: Annotated[float, Meta(gt=0, le=1)]
    model_version: Annotated[int, Meta(ge=0, lt=2**32)] = 0

    @property
    def has_classes(self) -> bool:
        """Whether the model gives a score per class, and not values."""
        return METRICS[self.metric].targets == "classes"


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """File format. `places`: bitmap of the coordinates that are not zero, then their values in `value_type`."""

    schema: Literal[1]
    facts: ModelFacts
    table: ParameterTable
    groups: Groups
    channels: bytes | None
    places: bytes
    value_type: Literal["<f2", "<f4"]
    values: bytes
    vectors: bytes


@dataclass(frozen=True)
class StoredModel:
    """Weights float32[d] and vectors float32[v] in the full model's places, zero where this device has nothing.

    `kept`: which channels of the model's channel `groups` exist (None: all). Raises `ModelFileError` for other shapes
    and values that are not finite.
    """

    facts: ModelFacts
    table: ParameterTable
    weights: NDArray[np.float32] = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)
    groups: Groups = field(default=(), repr=False)
    kept: Kept | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        expected = (
            ("weights", self.weights, self.table.weight_count),
            ("vectors", self.vectors, self.table.vector_count),
        )
        for name, array, count in expected:
            if array.dtype != np.float32 or array.shape != (count,):
                raise ModelFileError(f"{name} are {array.dtype}{list(array.shape)}, expected float32[{count}]")
            if not np.isfinite(array).all():
                raise ModelFileError(f"{name} hold a value that is not finite")

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The named arrays, only as wide as the model is."""
        full = self.table.unflatten(self.weights, self.vectors)
        if self.kept is None:
            return full
        return {
            parameter.name: full[parameter.name][np.ix_(*kept_indices(number, self.table, self.groups, self.kept))]
            for number, parameter in enumerate(self.table.parameters)
            if parameter.role is not Role.COUNTER
        }

    def outline(self) -> str:
        """Names the graph that fits: models of one table with arrays of the same shapes share it."""
        shapes = [] if self.kept is None else [(name, array.shape) for name, array in self.arrays().items()]
        return hashlib.sha256(self.table.digest() + msgspec.json.encode(shapes)).hexdigest()[:12]


def received_model(view: PlanView, received: ReceivedModel, work: Workplace) -> StoredModel:
    """What a device has after it received its rung of a round."""
    segment = view.plan.segments[received.rung]
    weights, vectors = received.full_size(work.table)
    facts = ModelFacts(
        task=work.task.name,
        bundle=view.plan.bundle,
        metric=work.task.metric,
        input_shape=work.dataset.inputs.shape[1:],
        is_transformed=work.task.is_transforming,
        round_id=view.plan.round_id,
        rung=received.rung,
        width=segment.width,
        density=segment.density,
        model_version=view.plan.model_version,
    )
    return StoredModel(facts, work.table, weights, vectors, received.groups, received.kept)


def save_model(folder: Path, model: StoredModel) -> bytes:
    """Write the model, whole or not at all, in place of the one before; returns the SHA-256 of the file."""
    is_there = model.weights != 0
    values = model.weights[is_there]
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    is_exact = bool((halves.astype(np.float32) == values).all())  # published values are float16 (§6.5)
    stored = _Stored(
        schema=1,
        facts=model.facts,
        table=model.table,
        groups=model.groups,
        channels=None if model.kept is None else pack_channels(model.kept),
        places=np.packbits(is_there, bitorder="little").tobytes(),
        value_type="<f2" if is_exact else "<f4",
        values=(halves if is_exact else values.astype("<f4")).tobytes(),
        vectors=model.vectors.astype("<f4").tobytes(),
    )
    data = msgspec.msgpack.encode(stored)
    write_atomically(folder / MODEL_FILE, data)
    return hashlib.sha256(data).digest()


def load_model(folder: Path) -> tuple[StoredModel, bytes]:
    """The model of a device's folder and the SHA-256 of its file.

    Raises `ModelFileError` where there is none yet, or anything but what `save_model` writes.
    """
    path = folder / MODEL_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(
            f"{path}: {error.strerror}, expected the model that a device keeps once it has received a round"
        ) from None
    if len(data) > _MAX_FILE_BYTES:
        raise ModelFileError(f"{path} has more than {_MAX_FILE_BYTES} bytes, expected at most as many")
    try:
        return _decoded(msgspec.msgpack.decode(data, type=_Stored)), hashlib.sha256(data).digest()
    except (msgspec.DecodeError, UnicodeDecodeError, PeerError) as error:
        raise ModelFileError(f"{path}: {error}") from None


def _decoded(stored: _Stored) -> StoredModel:
    count = stored.table.weight_count
    if len(stored.places) != -(-count // 8):
        raise ModelFileError(f"bitmap of {len(stored.places)} bytes, expected {-(-count // 8)} for {count} weights")
    bits = np.unpackbits(np.frombuffer(stored.places, dtype=np.uint8), bitorder="little")
    places = np.flatnonzero(bits)
    size = np.dtype(stored.value_type).itemsize
    if len(stored.values) != size * places.size or (places.size and places[-1] >= count):
        raise ModelFileError(f"{len(stored.values)} bytes of values for {places.size} of {count} weights")
    if len(stored.vectors) != 4 * stored.table.vector_count:
        raise ModelFileError(f"{len(stored.vectors)} bytes of vectors, expected {4 * stored.table.vector_count}")
    check_groups(stored.groups, stored.table)  # now that no axis of the table is longer than the file
    kept = None if stored.channels is None else unpack_channels(stored.channels, stored.groups)
    if kept is not None and not all(own.any() for own in kept):
        raise PlanError("a channel group keeps no channel, expected at least one")
    weights = np.zeros(count, dtype=np.float32)
    weights[places] = np.frombuffer(stored.values, dtype=stored.value_type)
    vectors = np.frombuffer(stored.vectors, dtype="<f4").astype(np.float32)
    return StoredModel(stored.facts, stored.table, weights, vectors, stored.groups, kept)
