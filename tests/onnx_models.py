"""A tiny ONNX template built by hand, so that codec and coordinator are tested without torch."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

TABLE = ParameterTable(
    (
        Parameter("first.weight", (12, 8), Role.WEIGHT, 0),
        Parameter("first.bias", (12,), Role.VECTOR),
        Parameter("norm.running_var", (12,), Role.VARIANCE),
        Parameter("norm.steps", (), Role.COUNTER),
        Parameter("second.weight", (4, 12), Role.WEIGHT, 0),
        Parameter("second.bias", (4,), Role.VECTOR),
    )
)


def template() -> bytes:
    """x [N, 8] -> Gemm, Relu, divide by the variance, Gemm -> [N, 4]; weights are named but absent."""
    nodes = [
        helper.make_node("Gemm", ["x", "first.weight", "first.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Div", ["r", "norm.running_var"], ["v"]),
        helper.make_node("Gemm", ["v", "second.weight", "second.bias"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def arrays(seed: int = 0, zeros: float = 0.0) -> dict[str, np.ndarray]:
    """Random arrays of the table; that share of each weight is zero."""
    rng = np.random.default_rng(seed)
    made = {p.name: rng.normal(size=p.shape).astype(np.float32) for p in TABLE.parameters if p.role is not Role.COUNTER}
    made["norm.running_var"] = np.abs(made["norm.running_var"]) + 0.5
    for parameter in TABLE.weights():
        flat = made[parameter.name].reshape(-1)
        flat[rng.permutation(flat.size)[: round(zeros * flat.size)]] = 0.0
    return made


def forward(named: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The same model in numpy."""
    hidden = np.maximum(x @ named["first.weight"].T + named["first.bias"], 0) / named["norm.running_var"]
    return hidden @ named["second.weight"].T + named["second.bias"]
