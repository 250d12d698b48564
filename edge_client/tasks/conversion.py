"""Whatever a task's loader returns -> `Dataset`, or a reason why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from edge_client.datasets import Dataset
from fedpruneshare.errors import DataError, TaskError
from fedpruneshare.metrics import METRICS, Metric, Targets


def as_dataset(value: Any, where: str, metric: Metric = METRICS["accuracy"]) -> Dataset:
    """Convert a `Dataset`, a pair (inputs, targets) of arrays or tensors, or a torch data set of such pairs.

    `where` names the function it came from, for the message. Targets are what `metric` compares: class numbers, or
    values (whole numbers are values, too). Raises `TaskError` for anything else, for class numbers that are not whole,
    for wrong shapes and for values that are not finite.
    """
    if isinstance(value, Dataset):
        value = (value.inputs, value.targets)
    if isinstance(value, TensorDataset):
        value = value.tensors
    elif isinstance(value, TorchDataset):
        value = _stack(value, where)
    if not isinstance(value, tuple) or len(value) != 2:
        found = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
        raise TaskError(f"{where} returned {found}, expected a Dataset, a pair (inputs, targets) or a torch data set")
    inputs, targets = (_array(part, where) for part in value)
    if metric.targets == "classes" and not np.issubdtype(targets.dtype, np.integer):
        raise TaskError(
            f"{where} returned {targets.dtype} targets, expected class numbers (int64): metric is {metric.name}"
        )
    kind = "int64" if metric.targets == "classes" else "float32"
    as_kind: Targets = np.ascontiguousarray(targets).astype(kind, copy=False)
    try:
        return Dataset(np.ascontiguousarray(inputs, dtype=np.float32), as_kind)
    except DataError as error:
        raise TaskError(f"{where}: {error}") from error


def _stack(examples: TorchDataset[Any], where: str) -> tuple[Any, Any]:
    """A map-style torch data set, read once from end to end."""
    if not hasattr(examples, "__len__"):
        raise TaskError(f"{where} returned a torch data set without a length, expected a map-style one")
    pairs = [examples[i] for i in range(len(examples))]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise TaskError(f"{where} returned a torch data set that is empty or not made of (input, target) pairs")
    inputs = [_array(pair[0], where) for pair in pairs]
    shapes = {array.shape for array in inputs}
    if len(shapes) > 1:
        raise TaskError(f"{where} returned inputs of shapes {sorted(shapes)}, expected one shape")
    targets = [np.asarray(pair[1]) for pair in pairs]
    if len({target.shape for target in targets}) > 1:
        raise TaskError(f"{where} returned targets of several shapes, expected one")
    return np.stack(inputs), np.stack(targets)


def _array(part: Any, where: str) -> Any:
    array = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise TaskError(f"{where} returned {type(part).__name__}, expected numpy arrays or tensors of numbers")
    return array
