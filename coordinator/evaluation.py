"""Scoring a model with onnxruntime: no torch on the coordinator (docs/protocol.md §4.6).

The graph comes with the task's bundle, so with somebody's file: a service runs it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.metrics import METRICS, Targets, evaluation_loss
from fedpruneshare.sparse.local_model import LocalModel, ModelRunner
from fedpruneshare.sparse.onnx_codec import build_model

_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """The bundle's metric, and the loss: mean cross entropy in nats for classes, mean squared error for values."""

    metric: float
    loss: float


class Evaluator:
    """Scores named arrays on a test set of inputs float32[N, ...].

    Targets are int64[N] with outputs [N, classes], or float32[N] or [N, m] with outputs of that shape.
    `runner`: what the model runs in; without one it is this process, which is for graphs of one's own.
    Raises `ModelFileError` on construction for an unknown metric, targets of another kind than the metric's, or a test
    set without pairs.
    """

    def __init__(
        self,
        template: bytes,
        inputs: NDArray[np.float32],
        targets: Targets,
        metric: str = "accuracy",
        runner: ModelRunner | None = None,
    ) -> None:
        if metric not in METRICS:
            raise ModelFileError(f"metric {metric!r}, expected one of {list(METRICS)}")
        if not 0 < len(targets) == len(inputs):
            raise ModelFileError(
                f"{len(inputs)} test inputs and {len(targets)} targets, expected as many, at least one"
            )
        self._metric = METRICS[metric]
        if np.issubdtype(targets.dtype, np.integer) != (self._metric.targets == "classes"):
            raise ModelFileError(
                f"test targets are {targets.dtype}, but metric {metric!r} is one of {self._metric.targets}"
            )
        self._template, self._inputs, self._targets = template, inputs, targets
        self._runner = runner or LocalModel()

    def score(self, arrays: Mapping[str, NDArray[np.float32]]) -> Evaluation:
        """Evaluate. Raises `ModelFileError` if the model does not load or an output is not finite."""
        return self.score_file(build_model(self._template, arrays))

    def score_file(self, model: bytes) -> Evaluation:
        """As `score`, for the bytes of a whole ONNX file."""
        outputs = self._outputs(model)
        loss = evaluation_loss(outputs, self._targets)
        return Evaluation(self._metric.score(outputs, self._targets), loss)

    def _outputs(self, model: bytes) -> NDArray[np.float64]:
        self._runner.load(model)
        starts = range(0, len(self._inputs), _BATCH)
        batches = [self._runner.run(self._inputs[start : start + _BATCH]) for start in starts]
        try:
            return np.concatenate(batches).astype(np.float64)
        except ValueError as error:  # a single number, or batches that do not fit together
            raise ModelFileError(f"the model does not run: {error}") from None
