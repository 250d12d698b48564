"""The task bundle: all the coordinator and the fleet need to know of a task, in one file, without torch.

A bundle is a zip of exactly six stored members (nothing compressed, no times, no extra fields), so the same contents
always give the same bytes and `digest` names them in a plan. Reading is strict: the only accepted bytes are those
`Bundle.encode` writes for what was read.

    manifest.json      Manifest
    template.onnx      the graph, its weights absent; they are put back by name (docs/protocol.md §6.6)
    weights.bin        float32[d], little-endian: initial prunable weights (docs/protocol.md §6.1)
    vectors.bin        float32[v]: initial biases, norms and float buffers
    test_inputs.bin    float32[N, *input_shape]
    test_targets.bin   int64[N] (classes), or float32[N, *target_shape] (values)
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError, PlanError
from fedpruneshare.metrics import METRICS, MetricName, Targets
from fedpruneshare.sparse.channels import Groups, check_groups
from fedpruneshare.sparse.parameters import ParameterTable

MEMBER_LIMITS_BYTES = MappingProxyType(
    {
        "manifest.json": 4 << 20,
        "template.onnx": 32 << 20,
        "weights.bin": 1 << 30,
        "vectors.bin": 64 << 20,
        "test_inputs.bin": 1 << 30,
        "test_targets.bin": 16 << 20,
    }
)
"""Largest size of each member; checked before anything is read into memory."""

FILE_LIMIT_BYTES = sum(MEMBER_LIMITS_BYTES.values()) + (64 << 10)
MAX_AXES, MAX_CLASSES = 8, 1 << 20
_MAX_LIST_BYTES = 4096
#: End of a zip file's list of members (APPNOTE 4.3.16); the sixth field is the size of the list.
_ZIP_END = struct.Struct("<4s4H2LH")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the binary members are. `input_shape` is that of one example; `seed` drew the initial weights.

    `classes`: how many scores the model gives, 0 where it gives values; `target_shape`: that of one example's values,
    () or (m,). `channel_groups`: how the model may be cut to a width (docs/protocol.md §6.7), none if it cannot be;
    `uncut_reason`: which channels stay whole, and why.
    """

    task: str
    table: ParameterTable
    input_shape: tuple[int, ...]
    test_count: int
    classes: int
    seed: int
    data_source: Literal["full", "fixture"]
    metric: MetricName = "accuracy"
    schema: Literal[2] = 2
    channel_groups: Groups = ()
    uncut_reason: str = ""
    target_shape: tuple[int, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class numbers (int64), and not values (float32)."""
        return METRICS[self.metric].targets == "classes"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle.

    `weights` float32[d], `vectors` float32[v], `test_inputs` float32[N, *input_shape], `test_targets` int64[N] in
    0..classes-1 or float32[N, *target_shape]. Raises `ModelFileError` where a part contradicts the manifest or is not
    finite.
    """

    manifest: Manifest
    template: bytes
    weights: NDArray[np.float32]
    vectors: NDArray[np.float32]
    test_inputs: NDArray[np.float32]
    test_targets: Targets

    def __post_init__(self) -> None:
        _check_manifest(self.manifest)
        table, count = self.manifest.table, self.manifest.test_count
        _check_array("weights", self.weights, "float32", (table.weight_count,))
        _check_array("vectors", self.vectors, "float32", (table.vector_count,))
        _check_array("test_inputs", self.test_inputs, "float32", (count, *self.manifest.input_shape))
        kind = "int64" if self.manifest.has_classes else "float32"
        _check_array("test_targets", self.test_targets, kind, (count, *self.manifest.target_shape))
        low, high = self.test_targets.min(), self.test_targets.max()
        if self.manifest.has_classes and (low < 0 or high >= self.manifest.classes):
            raise ModelFileError(f"test targets reach from {low} to {high}, expected 0 to {self.manifest.classes - 1}")
        if not self.template:
            raise ModelFileError("template.onnx is empty, expected an ONNX graph")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.encode()).digest()

    def encode(self) -> bytes:
        """The file's bytes: one encoding for one content."""
        members = {
            "manifest.json": msgspec.json.encode(self.manifest),
            "template.onnx": self.template,
            "weights.bin": self.weights.astype("<f4").tobytes(),
            "vectors.bin": self.vectors.astype("<f4").tobytes(),
            "test_inputs.bin": self.test_inputs.astype("<f4").tobytes(),
            "test_targets.bin": self.test_targets.astype(_target_type(self.manifest)).tobytes(),
        }
        for name, data in members.items():
            _check_size(name, len(data))
        return _zip(members)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(self.encode())
        partial.replace(path)

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read a bundle file. Raises `ModelFileError` for anything but a file `save` could have written."""
        try:
            with path.open("rb") as stream:
                data = stream.read(FILE_LIMIT_BYTES + 1)
        except OSError as error:
            raise ModelFileError(f"task bundle {path} cannot be read: {error.strerror}") from error
        try:
            return Bundle.decode(data)
        except ModelFileError as error:
            raise ModelFileError(f"task bundle {path}: {error}") from error

    @staticmethod
    def decode(data: bytes) -> Bundle:
        """Bytes of a bundle file -> bundle, strictly. Raises `ModelFileError`."""
        members = _unzip(data)
        try:
            manifest = msgspec.json.decode(members["manifest.json"], type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelFileError(f"manifest.json: {error}") from error
        _check_manifest(manifest)
        table, count, shape = manifest.table, manifest.test_count, manifest.input_shape
        bundle = Bundle(
            manifest,
            members["template.onnx"],
            _array("weights.bin", members, "<f4", (table.weight_count,)),
            _array("vectors.bin", members, "<f4", (table.vector_count,)),
            _array("test_inputs.bin", members, "<f4", (count, *shape)),
            _array("test_targets.bin", members, _target_type(manifest), (count, *manifest.target_shape)),
        )
        if bundle.encode() != data:
            raise ModelFileError("bytes differ from the one encoding of these contents: trailing or extra data")
        return bundle


def _check_manifest(manifest: Manifest) -> None:
    """Every size in range, so that no product below wraps and no length exceeds its limit."""
    parameters = manifest.table.parameters
    names = {parameter.name for parameter in parameters}
    if len(names) != len(parameters):
        raise ModelFileError(f"parameter table names {len(names)} arrays in {len(parameters)} rows, expected each once")
    for parameter in parameters:
        _check_shape(f"parameter {parameter.name!r}", parameter.shape, MEMBER_LIMITS_BYTES["weights.bin"] // 4)
        axis = parameter.channel_axis
        if axis is not None and not 0 <= axis < len(parameter.shape):
            raise ModelFileError(f"parameter {parameter.name!r} has channel axis {axis}, shape {parameter.shape}")
    _check_size("weights.bin", 4 * sum(math.prod(p.shape) for p in manifest.table.weights()))
    _check_size("vectors.bin", 4 * sum(math.prod(p.shape) for p in manifest.table.vectors()))
    if not manifest.table.weights():
        raise ModelFileError("parameter table has no prunable weight, expected at least one")
    try:
        check_groups(manifest.channel_groups, manifest.table)
    except PlanError as error:
        raise ModelFileError(str(error)) from None
    inputs = (manifest.test_count, *manifest.input_shape)
    _check_shape("test inputs", inputs, MEMBER_LIMITS_BYTES["test_inputs.bin"] // 4)
    _check_targets(manifest)
    if not 0 <= manifest.seed < 1 << 63:
        raise ModelFileError(f"manifest has seed {manifest.seed}, expected 0 or more")


def _check_targets(manifest: Manifest) -> None:
    shape, classes = manifest.target_shape, manifest.classes
    if manifest.has_classes and (shape or not 1 <= classes <= MAX_CLASSES):
        raise ModelFileError(f"manifest has {classes} classes and targets of {shape}, expected 1 or more and ()")
    if not manifest.has_classes and (len(shape) > 1 or classes):
        found = f"{classes} classes and targets of {shape}"
        raise ModelFileError(f"manifest has {found}, expected 0 and () or (m,): metric is {manifest.metric}")
    size = 8 if manifest.has_classes else 4
    _check_shape("test targets", (manifest.test_count, *shape), MEMBER_LIMITS_BYTES["test_targets.bin"] // size)


def _target_type(manifest: Manifest) -> str:
    return "<i8" if manifest.has_classes else "<f4"


def _check_shape(name: str, shape: tuple[int, ...], limit: int) -> None:
    if len(shape) > MAX_AXES or any(size < 1 for size in shape) or math.prod(shape) > limit:
        raise ModelFileError(f"{name} has shape {shape}, expected at most {MAX_AXES} axes and {limit} elements")


def _check_array(name: str, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ModelFileError(f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")
    if not np.isfinite(array).all():
        raise ModelFileError(f"{name} holds a value that is not finite")


def _check_size(name: str, size: int) -> None:
    if size > MEMBER_LIMITS_BYTES[name]:
        raise ModelFileError(f"{name} has {size} bytes, expected at most {MEMBER_LIMITS_BYTES[name]}")


def _array(name: str, members: dict[str, bytes], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(members[name]) != expected:
        raise ModelFileError(f"{name} has {len(members[name])} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(members[name], dtype=dtype).reshape(shape)


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the same bytes on every operating system
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _check_list_of_members(data: bytes) -> None:
    """Before `zipfile` makes an object of every member a file lists: the list is short, and ends the file."""
    signature, size = data[-_ZIP_END.size :][:4], 0
    if signature == b"PK\x05\x06":
        size = _ZIP_END.unpack(data[-_ZIP_END.size :])[5]
    elif b"PK\x05\x06" in data[-(1 << 16) - _ZIP_END.size :]:
        raise ModelFileError("not a readable zip file: trailing or extra data after its list of members")
    if size > _MAX_LIST_BYTES or data[-_ZIP_END.size - 20 :][:4] == b"PK\x06\x07":
        raise ModelFileError(f"members are {size} bytes of names, expected {list(MEMBER_LIMITS_BYTES)}")


def _unzip(data: bytes) -> dict[str, bytes]:
    if len(data) > FILE_LIMIT_BYTES:
        raise ModelFileError(f"more than {FILE_LIMIT_BYTES} bytes, expected at most as many")
    _check_list_of_members(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if names != list(MEMBER_LIMITS_BYTES):
                raise ModelFileError(f"members are {names[:10]}, expected {list(MEMBER_LIMITS_BYTES)}")
            for entry in entries:
                _check_size(entry.filename, entry.file_size)
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise ModelFileError(f"{entry.filename} is compressed, expected stored bytes")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        struct.error,
    ) as error:
        raise ModelFileError(f"not a readable zip file: {error}") from error
