"""Scoring a model with onnxruntime: no torch on the coordinator (docs/protocol.md §4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.metrics import METRICS, Targets, evaluation_loss
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
    Raises `ModelFileError` on construction for an unknown metric, targets of another kind than the metric's, or a test
    set without pairs.
    """

    def __init__(
        self, template: bytes, inputs: NDArray[np.float32], targets: Targets, metric: str = "accuracy"
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

    def score(self, arrays: Mapping[str, NDArray[np.float32]]) -> Evaluation:
        """Evaluate. Raises `ModelFileError` if the model does not load or an output is not finite."""
        return self.score_file(build_model(self._template, arrays))

    def score_file(self, model: bytes) -> Evaluation:
        """As `score`, for the bytes of a whole ONNX file."""
        outputs = self._outputs(model)
        loss = evaluation_loss(outputs, self._targets)
        return Evaluation(self._metric.score(outputs, self._targets), loss)

    def _outputs(self, model: bytes) -> NDArray[np.float64]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            starts = range(0, len(self._inputs), _BATCH)
            batches = [session.run(None, {name: self._inputs[start : start + _BATCH]})[0] for start in starts]
            return np.concatenate(batches).astype(np.float64)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise ModelFileError(f"the model does not run: {type(error).__name__}: {str(error)[:200]}") from None
