"""The task of synthetic devices: one linear layer with as many weights as the scenario says, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.rng import stream
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from testbed.engines import SYNTHETIC_TASK

_MOST_OUTPUTS: Final = 10
_EXAMPLES: Final = 20


def write_bundle(values: int, seed: int, path: Path) -> None:
    """Write a task bundle of exactly `values` weights; its test examples and classes are random numbers."""
    outputs = next(count for count in range(_MOST_OUTPUTS, 0, -1) if values % count == 0)
    inputs = values // outputs
    table = ParameterTable(
        (Parameter("layer.weight", (outputs, inputs), Role.WEIGHT, 0), Parameter("layer.bias", (outputs,), Role.VECTOR))
    )
    rng = stream(seed, "synthetic", "bundle")
    bundle = Bundle(
        # "full" is what there is of it: no sample stands in for anything.
        Manifest(SYNTHETIC_TASK, table, (inputs,), _EXAMPLES, outputs, seed, "full"),
        _template(inputs, outputs),
        rng.standard_normal(values).astype(np.float32),
        np.zeros(outputs, dtype=np.float32),
        rng.standard_normal((_EXAMPLES, inputs)).astype(np.float32),
        rng.integers(0, outputs, _EXAMPLES),
    )
    bundle.save(path)


def _template(inputs: int, outputs: int) -> bytes:
    from onnx import TensorProto, helper

    node = helper.make_node("Gemm", ["input", "layer.weight", "layer.bias"], ["output"], transB=1)
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", inputs])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", outputs])
    graph = helper.make_graph([node], "model", [source], [target])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))
