"""Run a model in this process: one that this party put together itself, of a graph that passed the fence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.model_fence import FenceLimits, check_model


@dataclass(frozen=True)
class ModelInput:
    """One input of a model, as onnxruntime describes it; a size that is left open is None."""

    name: str
    kind: str
    shape: tuple[int | None, ...]


class ModelRunner(Protocol):
    """What runs models: `LocalModel` here, `contained_model.ContainedModel` in a process of its own."""

    def load(self, model: bytes) -> list[ModelInput]:
        """Take this model in place of the one before; returns what it takes. Raises `ModelFileError`."""

    def run(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        """The first output for the first input. Raises `ModelFileError`."""


class LocalModel:
    """One model at a time, in one thread of this process."""

    def __init__(self, fence: FenceLimits | None = None) -> None:
        self._fence = fence or FenceLimits()
        self._session: Any = None

    def load(self, model: bytes) -> list[ModelInput]:
        """Take this model in place of the one before; returns what it takes. Raises `ModelFileError`."""
        import onnxruntime  # a third of a second; a device has it for `device predict` only

        check_model(model, self._fence)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise ModelFileError(f"the model does not run: {_first_line(error)}") from None
        found = [
            ModelInput(one.name, one.type, tuple(size if isinstance(size, int) else None for size in one.shape))
            for one in self._session.get_inputs()
        ]
        if not found:
            raise ModelFileError("the model takes nothing, expected one input")
        return found

    def run(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        """The first output for the first input. Raises `ModelFileError`."""
        if self._session is None:
            raise RuntimeError("no model was loaded")
        try:
            return np.asarray(self._session.run(None, {self._session.get_inputs()[0].name: inputs})[0])
        except Exception as error:  # as above
            raise ModelFileError(f"the model does not run: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]
