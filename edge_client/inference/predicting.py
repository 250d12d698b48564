"""What the device is in the field for: run a model on local input with onnxruntime, in one thread, without torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import DAMAGE
from fedpruneshare.errors import DataError, ModelFileError
from fedpruneshare.metrics import METRICS
from fedpruneshare.sparse.local_model import LocalModel, ModelRunner
from fedpruneshare.sparse.model_fence import FenceLimits, check_model

Floats = NDArray[np.float32]
_INPUT_NAMES: Final = ("inputs", "input", "x")
_WARM_UPS, _REPEATS = 5, 100


@dataclass(frozen=True)
class Prediction:
    """Of one example: the class and its share of the softmax; or the values."""

    label: int | None
    score: float | None
    values: tuple[float, ...] = field(default=())


class Predictor:
    """An ONNX model with one float32 input [N, …], loaded once.

    `runner`: what it runs in. The model that this device keeps is one it put together itself, around values that a plan
    vouches for, and runs in this process; any other file belongs into a `ContainedModel`.
    Raises `ModelFileError` for a file that the fence refuses, that does not load, or that takes something else.
    """

    def __init__(self, path: Path, runner: ModelRunner | None = None) -> None:
        self._runner, limits = runner or LocalModel(), FenceLimits()
        try:
            with path.open("rb") as file:
                model = file.read(limits.file_bytes + 1)
            self.facts: Mapping[str, str] = check_model(model, limits)
            inputs = self._runner.load(model)
        except OSError as error:
            raise ModelFileError(f"model {path}: {error.strerror}, expected an ONNX file") from None
        except ModelFileError as error:
            raise ModelFileError(f"model {path} does not load: {error}") from None
        if len(inputs) != 1 or inputs[0].kind != "tensor(float)" or len(inputs[0].shape) < 2:
            found = [f"{one.name} {one.kind}{list(one.shape)}" for one in inputs]
            raise ModelFileError(f"model {path} takes {found}, expected one float32 input [N, …]")
        self.shape: tuple[int | None, ...] = inputs[0].shape[1:]

    def run(self, inputs: Floats, batch_size: int = 64) -> Floats:
        """Outputs float32[N, …] of inputs float32[N, *shape], a batch at a time.

        Raises `DataError` for inputs of another shape, `ModelFileError` where the model fails or gives no numbers.
        """
        self._check(inputs)
        outputs = [self._batch(inputs[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]
        joined: Floats = np.concatenate(outputs)
        if not np.isfinite(joined).all():
            raise ModelFileError("the model's output is not finite, expected finite numbers")
        return joined

    def seconds_per_example(self, inputs: Floats, clock: Callable[[], float]) -> float:
        """Median over single examples, after some to warm up. Raises as `run`."""
        self._check(inputs)
        taken = []
        for turn in range(_WARM_UPS + _REPEATS):
            one = inputs[turn % len(inputs)][None]
            started = clock()
            self._batch(one)
            taken.append(clock() - started)
        return statistics.median(taken[_WARM_UPS:])

    def has_classes(self, outputs: Floats) -> bool:
        """Whether outputs are scores of classes, by the file's facts; without them two or more columns are."""
        name = self.facts.get("metric", "")
        if name in METRICS:
            return METRICS[name].targets == "classes"
        return outputs.ndim == 2 and outputs.shape[1] > 1

    def _check(self, inputs: Floats) -> None:
        fits = inputs.ndim == len(self.shape) + 1 and all(
            wanted in (None, found) for wanted, found in zip(self.shape, inputs.shape[1:], strict=True)
        )
        if not fits or inputs.dtype != np.float32 or not len(inputs):
            expected = ", ".join("N" if size is None else str(size) for size in (None, *self.shape))
            raise DataError(f"inputs are {inputs.dtype}{list(inputs.shape)}, expected float32[{expected}]")
        if not np.isfinite(inputs).all():
            raise DataError("inputs hold a value that is not finite")

    def _batch(self, inputs: Floats) -> Floats:
        outputs = self._runner.run(inputs)
        if not outputs.ndim or len(outputs) != len(inputs):
            raise ModelFileError(f"the model gives no output per example, expected {len(inputs)} rows")
        return outputs.astype(np.float32, copy=False)


def predictions(outputs: Floats, has_classes: bool) -> list[Prediction]:
    """Outputs [N, C] of classes -> the best class and its share of the softmax; other outputs -> their values."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    if not has_classes:
        return [Prediction(None, None, tuple(row.tolist())) for row in rows]
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [Prediction(int(row.argmax()), float(row.max())) for row in shares]


# --------------------------------------------------------------------------- input files


def read_inputs(path: Path, shape: tuple[int | None, ...]) -> Floats:
    """Examples from .npy, .npz or .csv as float32[N, …]; `shape` is that of one example.

    A .npy or .npz array of just that shape is one example; of an .npz the array `inputs` is taken, or the only one. A
    row of a .csv is one example, its numbers in C order, perhaps under a head line. Nothing is unpickled.
    Raises `DataError` with what was found and expected.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"input {path} is a {path.suffix or 'nameless'} file, expected one of {list(readers)}")
    try:
        array = readers[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"input {path}: {error.strerror or error}, expected a file that can be read") from None
    except DAMAGE as error:
        raise DataError(f"input {path} does not read: {_first_line(error)}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"input {path} holds {array.dtype}, expected real numbers")
    if path.suffix.lower() == ".csv":
        array = _shaped(array, shape, path)
    elif array.ndim == len(shape) and None not in shape and array.shape == shape:
        array = array[None]
    return np.ascontiguousarray(array, dtype=np.float32)


def _read_npy(path: Path) -> NDArray[Any]:
    array: Any = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, expected one array")
    return array


def _read_npz(path: Path) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
        name = next((name for name in _INPUT_NAMES if name in names), names[0] if len(names) == 1 else None)
        if name is None:
            raise ValueError(f"arrays {names[:8]}, expected one of {list(_INPUT_NAMES)} or a single one")
        array: NDArray[Any] = archive[name]
        return array


def _read_csv(path: Path) -> NDArray[Any]:
    with path.open(encoding="utf-8-sig") as file:
        head = file.readline()
        try:
            [float(cell) for cell in head.split(",")]
            file.seek(0)
        except ValueError:  # a head line
            if not head.strip():
                raise ValueError("its first line is empty, expected numbers") from None
        lines = [line for line in file if line.strip()]
    if not lines:
        raise ValueError("it has no row of numbers")
    rows: NDArray[Any] = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2)
    return rows


def _shaped(rows: NDArray[Any], shape: tuple[int | None, ...], path: Path) -> NDArray[Any]:
    if None in shape:
        raise DataError(f"input {path}: rows cannot be told apart for examples of {list(shape)}, expected a .npy file")
    sizes = [size for size in shape if size is not None]
    if rows.shape[1] != math.prod(sizes):
        found, by = f"{rows.shape[0]} rows of {rows.shape[1]} numbers", "×".join(map(str, sizes))
        raise DataError(f"input {path} has {found}, expected rows of {math.prod(sizes)} ({by})")
    return rows.reshape(-1, *sizes)


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]
