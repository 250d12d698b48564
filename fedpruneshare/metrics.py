"""How good a model is: the metrics a task may name, in numpy, for coordinator, device and report alike.

A bundle names one of them (docs/protocol.md §6.6). Those of classes compare scores with class numbers, those of values
compare numbers with numbers; each says which way is better.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError, SettingsError

MetricName = Literal["accuracy", "macro_f1", "auroc", "mse", "rmse", "mae", "r2"]
Floats = NDArray[np.float64]
Targets = NDArray[np.int64] | NDArray[np.float32]
_Measure = Callable[[Floats, NDArray[Any]], float]


@dataclass(frozen=True)
class Metric:
    """One metric: `score(outputs, targets)`, what targets it takes, and which way is better.

    `is_share`: it lies in 0..1 and is shown in per cent.
    """

    name: MetricName
    targets: Literal["classes", "values"]
    is_higher_better: bool
    is_share: bool
    _measure: _Measure

    def score(self, outputs: NDArray[Any], targets: Targets) -> float:
        """Outputs float[N, C] and targets int64[N]; or, of values, outputs and targets float[N, m] or [N].

        Raises `ModelFileError` for other shapes, for outputs that are not finite, and where the metric is undefined.
        """
        return self._measure(checked_outputs(outputs, targets), np.asarray(targets))

    def best(self, scores: list[float]) -> float:
        """The best of them."""
        return max(scores) if self.is_higher_better else min(scores)

    def show(self, score: float | None, digits: int = 1) -> str:
        """For a reader: per cent of a share, else four significant digits; nothing for None."""
        if score is None:
            return ""
        return f"{100 * score:.{digits}f} %" if self.is_share else f"{score:.4g}"


def metric(name: str) -> Metric:
    """The metric of that name. Raises `SettingsError` with the names there are and the nearest."""
    if name not in METRICS:
        near = difflib.get_close_matches(str(name), METRICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"metric is {name!r}, expected one of {list(METRICS)}{hint}")
    return METRICS[name]


def checked_outputs(outputs: NDArray[Any], targets: Targets) -> Floats:
    """Outputs as float64 in the shape that targets ask for: [N, C] for int64[N], else the targets' own shape."""
    found = np.asarray(outputs, dtype=np.float64)
    if np.issubdtype(targets.dtype, np.integer):
        wanted = int(targets.max()) + 1
        if found.ndim != 2 or len(found) != len(targets) or found.shape[1] < wanted:
            expected = f"{len(targets)} rows of at least {wanted} classes"
            raise ModelFileError(f"the model's output is of shape {found.shape}, expected {expected}")
    elif found.shape == targets.shape or {found.shape, targets.shape} == {(len(targets),), (len(targets), 1)}:
        found = found.reshape(targets.shape)
    else:
        raise ModelFileError(f"the model's output is of shape {found.shape}, expected {targets.shape} as the targets")
    if not np.isfinite(found).all():
        raise ModelFileError("the model's output is not finite, expected finite numbers")
    return found


def evaluation_loss(outputs: NDArray[Any], targets: Targets) -> float:
    """Mean cross entropy in nats for classes (int64[N]), mean squared error for values (float32)."""
    found = checked_outputs(outputs, targets)
    if not np.issubdtype(targets.dtype, np.integer):
        return _mse(found, targets)
    shifted = found - found.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(targets.size), np.asarray(targets)]).mean())


# --------------------------------------------------------------------------- classes


def _accuracy(outputs: Floats, targets: NDArray[np.int64]) -> float:
    return float((outputs.argmax(axis=1) == targets).mean())


def _macro_f1(outputs: Floats, targets: NDArray[np.int64]) -> float:
    """Mean over the classes that are there or were named of 2·hits / (named + there)."""
    named, count = outputs.argmax(axis=1), outputs.shape[1]
    hits = np.bincount(targets[named == targets], minlength=count)
    both = np.bincount(named, minlength=count) + np.bincount(targets, minlength=count)
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def _auroc(outputs: Floats, targets: NDArray[np.int64]) -> float:
    """One class against all others, mean over the classes; ranks of the softmax, ties counting half.

    With two classes both give the same area. Source: Hand and Till (2001) discuss the averages there are.
    """
    present = np.unique(targets)
    if len(present) < 2:
        raise ModelFileError(f"auroc of test targets of one class ({present[0]}), expected at least two")
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    if outputs.shape[1] == 2:  # of two far-apart scores the softmax would make ties
        shares = np.stack([outputs[:, 0] - outputs[:, 1], outputs[:, 1] - outputs[:, 0]], axis=1)
    return float(np.mean([_area(shares[:, c], targets == c) for c in present]))


def _area(scores: Floats, is_positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores higher than a negative (Mann-Whitney U)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(is_positive.sum())
    pairs = positives * (len(scores) - positives)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / pairs)


# --------------------------------------------------------------------------- values


def _mse(outputs: Floats, targets: NDArray[Any]) -> float:
    return float(np.mean((outputs - targets) ** 2))


def _rmse(outputs: Floats, targets: NDArray[Any]) -> float:
    return math.sqrt(_mse(outputs, targets))


def _mae(outputs: Floats, targets: NDArray[Any]) -> float:
    return float(np.abs(outputs - targets).mean())


def _r2(outputs: Floats, targets: NDArray[Any]) -> float:
    """1 − squared error / variance, mean over the columns; of a constant column 1 if it is met exactly, else 0."""
    wanted = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    missed = ((outputs.reshape(wanted.shape) - wanted) ** 2).sum(axis=0)
    spread = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=0)
    explained = 1 - missed / np.where(spread > 0, spread, 1)
    return float(np.where(spread > 0, explained, missed == 0).mean())


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        one.name: one
        for one in (
            Metric("accuracy", "classes", True, True, _accuracy),
            Metric("macro_f1", "classes", True, True, _macro_f1),
            Metric("auroc", "classes", True, True, _auroc),
            Metric("mse", "values", False, False, _mse),
            Metric("rmse", "values", False, False, _rmse),
            Metric("mae", "values", False, False, _mae),
            Metric("r2", "values", True, False, _r2),
        )
    }
)
"""By name."""
