"""Scoring a model with onnxruntime: no torch on the coordinator (docs/protocol.md §4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.onnx_codec import build_model

_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """The metric (accuracy, 0..1) and the mean cross entropy in nats."""

    metric: float
    loss: float


class Evaluator:
    """Scores named arrays on a test set: inputs float32[N, ...], targets int64[N], outputs logits [N, classes].

    Raises `ModelFileError` on construction for an unknown metric or a test set without pairs.
    """

    def __init__(
        self, template: bytes, inputs: NDArray[np.float32], targets: NDArray[np.int64], metric: str = "accuracy"
    ) -> None:
        if metric != "accuracy":
            raise ModelFileError(f"metric {metric!r}, expected 'accuracy'")
        if not 0 < len(targets) == len(inputs):
            raise ModelFileError(
                f"{len(inputs)} test inputs and {len(targets)} targets, expected as many, at least one"
            )
        self._template, self._inputs, self._targets = template, inputs, targets

    def score(self, arrays: Mapping[str, NDArray[np.float32]]) -> Evaluation:
        """Evaluate. Raises `ModelFileError` if the model does not load or an output is not finite."""
        return self.score_file(build_model(self._template, arrays))

    def score_file(self, model: bytes) -> Evaluation:
        """As `score`, for the bytes of a whole ONNX file."""
        logits = self._logits(model)
        wanted = int(self._targets.max()) + 1
        if logits.ndim != 2 or len(logits) != len(self._targets) or logits.shape[1] < wanted:
            expected = f"{len(self._targets)} rows of at least {wanted} classes"
            raise ModelFileError(f"the model's output is of shape {logits.shape}, expected {expected}")
        if not np.isfinite(logits).all():
            raise ModelFileError("the model's output is not finite, expected finite numbers")
        right = logits.argmax(axis=1) == self._targets
        return Evaluation(float(right.mean()), _cross_entropy(logits, self._targets))

    def _logits(self, model: bytes) -> NDArray[np.float64]:
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


def _cross_entropy(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(targets.size), targets]).mean())
