"""Which operators a model may use, and constants that would make something huge (docs/protocol.md §6.6).

The list is of plain arithmetic on tensors. Loops, sequences, texts, images, random draws and everything a later
operator set brings are left out until somebody needs them.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.onnx_tree import Tree
from fedpruneshare.sparse.protobuf import packed_numbers

#: Operator sets of the standard domain: from the first with today's forms of Clip, Pad and Resize.
OPSETS: Final = range(11, 27)

ALLOWED_OPERATORS: Final = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf",
    "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool",
    "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu",
    "Pad", "Pow", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "RMSNormalization", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    "Xor",
})  # fmt: skip

#: operator -> inputs that, if they are constants, multiply to the size of what comes out.
_SHAPE_INPUTS: Final = {"ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Reshape": (1,), "Resize": (3,)}
#: operator -> inputs each number of which is a length.
_LENGTH_INPUTS: Final = {"Pad": (1,), "Range": (0, 1), "OneHot": (1,), "TopK": (1,), "Trilu": (1,)}
#: Attributes that are small in every net, and amplify: a window, its step, its border.
_WINDOWS: Final = {"kernel_shape", "pads", "strides", "dilations", "output_padding", "output_shape", "group"}
_MAX_WINDOW: Final = 65_536
_MAX_SHAPE_BYTES: Final = 4096
_INT64: Final = 7


def check_amounts(graph: Tree, elements: int) -> None:
    """Refuse windows over 65,536 and constant shapes over so many elements. Raises `ModelFileError`."""
    constants = _constants(graph)
    for node in graph.many("node"):
        operator, inputs = node.one("op_type", ""), node.many("input")
        for attribute in node.many("attribute"):
            numbers = [attribute.one("i", 0), *attribute.many("ints")]
            if attribute.one("name") in _WINDOWS and max(map(abs, numbers)) > _MAX_WINDOW:
                raise ModelFileError(f"{operator} with {attribute.one('name')} over {_MAX_WINDOW}, expected less")
        for place in _SHAPE_INPUTS.get(operator, ()):
            sizes = constants.get(inputs[place], []) if place < len(inputs) else []
            if math.prod(abs(size) for size in sizes if size) > elements:
                raise ModelFileError(f"{operator} to shape {sizes[:8]}, expected at most {elements} elements")
        for place in _LENGTH_INPUTS.get(operator, ()):
            lengths = constants.get(inputs[place], []) if place < len(inputs) else []
            if any(abs(length) > elements for length in lengths):
                raise ModelFileError(f"{operator} with lengths {lengths[:8]}, expected at most {elements}")


def _constants(graph: Tree) -> dict[str, list[int]]:
    """The small int64 constants of a graph, by name."""
    found = {tensor.one("name", ""): _numbers(tensor) for tensor in graph.many("initializer")}
    for node in graph.many("node"):
        if node.one("op_type") != "Constant" or len(node.many("output")) != 1:
            continue
        for attribute in node.many("attribute"):
            tensor = attribute.one("t")
            numbers = attribute.many("ints") or ([attribute.one("i")] if attribute.one("i") is not None else [])
            found[node.many("output")[0]] = _numbers(tensor) if tensor else numbers
    return found


def _numbers(tensor: Tree) -> list[int]:
    raw, packed = tensor.one("raw_data", b""), tensor.one("int64_data", memoryview(b""))
    if tensor.one("data_type") != _INT64 or max(len(raw), len(packed)) > _MAX_SHAPE_BYTES:
        return []
    return [int(number) for number in (np.frombuffer(raw, "<i8") if len(raw) else packed_numbers(packed))]
