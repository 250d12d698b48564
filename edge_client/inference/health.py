"""Whether a model works: its graph loads from bytes, and gives finite numbers for a few inputs."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.contained_model import ChildLimits, ContainedModel

_EXAMPLES: Final = 3
_LIMITS: Final = ChildLimits(request_s=60.0)


def check_health(graph: bytes, input_shape: tuple[int, ...]) -> None:
    """Run it in a process of its own, which may end as it likes. `input_shape`: of one example.

    Raises `ModelFileError` where it does not load, does not run, or gives anything but finite numbers.
    """
    with ContainedModel(_LIMITS) as model:
        model.load(graph)
        for inputs in _inputs((_EXAMPLES, *input_shape)):
            outputs = model.run(inputs)
            if not outputs.ndim or len(outputs) != len(inputs):
                raise ModelFileError(f"the model gives no output per example, expected {len(inputs)} rows")
            if not np.isfinite(outputs).all():
                raise ModelFileError("the model's output is not finite, expected finite numbers")


def _inputs(shape: tuple[int, ...]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Small, usual and large numbers; never constants, which a model may well divide by the spread of."""
    drawn = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return [drawn * np.float32(factor) for factor in (0.1, 1.0, 3.0)]
