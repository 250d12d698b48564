"""ONNX files made to do harm, and files damaged at random: for the fence and for the process behind it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_models import arrays, template

from fedpruneshare.sparse.onnx_codec import build_model

Edit = Callable[[onnx.ModelProto], None]

DENSE = build_model(template(), arrays())
SPARSE = build_model(template(), arrays(zeros=0.9))
#: What an external tensor names; a test puts it where it could be read.
CANARY = "canary.bin"


def edited(edit: Edit, data: bytes = SPARSE) -> bytes:
    model = onnx.ModelProto.FromString(data)
    edit(model)
    return bytes(model.SerializeToString())


# --------------------------------------------------------------------------- tags and lengths, by hand


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def tagged(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model_of(graph: bytes) -> bytes:
    """IR version 8, that graph, operator set 17."""
    return b"\x08\x08" + tagged(7, graph) + tagged(8, b"\x10\x11")


# --------------------------------------------------------------------------- hand-made


def external(tensor: onnx.TensorProto, location: str = CANARY) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def constant_node(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


def floats(count: int = 1, name: str = "t") -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [count], [1.0] * count)


def external_initializer(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0])


def external_by_absolute_path(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0], "/etc/passwd")


def external_sparse_values(model: onnx.ModelProto) -> None:
    external(model.graph.sparse_initializer[0].values)


def external_sparse_indices(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].indices.ClearField("int64_data")
    external(model.graph.sparse_initializer[0].indices)


def external_attribute(model: onnx.ModelProto) -> None:
    tensor = floats()
    external(tensor)
    model.graph.node.append(constant_node(value=tensor))


def external_in_sub_graph(model: onnx.ModelProto) -> None:
    tensor = floats()
    external(tensor)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    branch = helper.make_graph([], "b", [], [z], initializer=[tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["q"], then_branch=branch, else_branch=branch))


def only_the_location(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def only_the_entry(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value=CANARY)


def two_to_the_forty(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**20, 2**20]


def product_that_wraps(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**32, 2**32]


def negative_axis(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1]


def many_axes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1] * 9


def empty_and_huge(model: onnx.ModelProto) -> None:
    """No data at all for 225 million elements, which a runtime expands."""
    sparse = model.graph.sparse_initializer[0]
    sparse.dims[:] = [2**17, 2**17]
    del sparse.indices.int64_data[:]
    sparse.indices.dims[:] = [0]
    sparse.values.raw_data = b""
    sparse.values.dims[:] = [0]


def sparse_in_attribute(model: onnx.ModelProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(floats(), indices, [2**30])
    model.graph.node.append(constant_node(sparse_value=sparse))


def index_out_of_range(model: onnx.ModelProto) -> None:
    indices = model.graph.sparse_initializer[0].indices
    indices.int64_data[-1] = 10**6


def negative_index(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].indices.int64_data[0] = -1


def index_twice(model: onnx.ModelProto) -> None:
    indices = model.graph.sparse_initializer[0].indices.int64_data
    indices[1] = indices[0]


def more_values_than_indices(model: onnx.ModelProto) -> None:
    values = model.graph.sparse_initializer[0].values
    values.dims[0] += 1
    values.raw_data += bytes(4)


def no_values(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].ClearField("values")


def raw_data_too_long(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data += bytes(4)


def not_a_number(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, "<f4").tobytes()


def infinite_sparse(model: onnx.ModelProto) -> None:
    values = model.graph.sparse_initializer[0].values
    values.raw_data = np.full(len(values.raw_data) // 4, -np.inf, "<f4").tobytes()


def not_a_number_as_halves(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="h", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[0, 0x7E00])
    )


def not_a_number_as_brain_float(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="h", data_type=TensorProto.BFLOAT16, dims=[1], raw_data=b"\xc0\x7f")
    )


def not_a_number_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("LeakyRelu", ["x"], ["q"], alpha=float("nan")))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", 17)]))


def training_graph(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.name = "t"


def local_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="local", version=1)


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def training_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "ai.onnx.preview.training"


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["q"], body=body))


def graph_in_another_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["q"], body=helper.make_graph([], "b", [], [])))


def image_decoder(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ImageDecoder", ["x"], ["q"]))


def random_draw(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["q"], shape=[2**20, 2**20]))


def deep(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["z"])
    for _ in range(6):
        z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
        branch = helper.make_graph([node], "b", [], [z])
        node = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def long_name(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "n" * 10_000


def name_with_nul(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = "first\0.bias"


def huge_text(model: onnx.ModelProto) -> None:
    model.doc_string = "d" * 70_000


def runtime_options(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="ort_config", value='{"session_options": {"enable_profiling": 1}}')


def fact_twice(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.metadata_props.add(key="task", value="hapt")


def weight_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def two_stores(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.extend([1.0] * 12)


def wrong_store(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.double_data.extend([1.0] * 12)


def texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))


def part_of_a_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 3


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def old_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 5


def future_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 900


def future_format(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def huge_shape_by_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(constant_node(value=helper.make_tensor("v", TensorProto.INT64, [2], [2**20, 2**20])))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["c"], ["q"]))


def huge_expansion(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("e", TensorProto.INT64, [1], [2**40]))
    model.graph.node.append(helper.make_node("Expand", ["x", "e"], ["q"]))


def huge_padding(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["x", "first.weight"], ["q"], pads=[2**30] * 4))


def huge_input(model: onnx.ModelProto) -> None:
    for place in (0, 1):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 2**30


def sequence_input(model: onnx.ModelProto) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    model.graph.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(element)))


#: name -> (file, what the refusal says)
HAND_MADE: dict[str, tuple[bytes, str]] = {
    edit.__name__: (edited(edit), text)
    for edit, text in (
        (external_initializer, "data outside the file"),
        (external_by_absolute_path, "data outside the file"),
        (external_sparse_values, "data outside the file"),
        (external_sparse_indices, "data outside the file"),
        (external_attribute, "data outside the file"),
        (external_in_sub_graph, "data outside the file"),
        (only_the_location, "points outside the file"),
        (only_the_entry, "data outside the file"),
        (two_to_the_forty, "expected at most 8 axes"),
        (product_that_wraps, "expected at most 8 axes"),
        (negative_axis, "expected at most 8 axes"),
        (many_axes, "expected at most 8 axes"),
        (empty_and_huge, "tensors of 1717986.* elements"),
        (sparse_in_attribute, "sparse tensor in a node"),
        (index_out_of_range, "ascending, unique and below"),
        (negative_index, "ascending, unique and below"),
        (index_twice, "ascending, unique and below"),
        (more_values_than_indices, "one linear index each"),
        (no_values, "lacks its values"),
        (raw_data_too_long, "bytes of raw_data"),
        (not_a_number, "not finite"),
        (infinite_sparse, "not finite"),
        (not_a_number_as_halves, "not finite"),
        (not_a_number_as_brain_float, "not finite"),
        (not_a_number_attribute, "not a number"),
        (function, "holds functions"),
        (training_graph, "training graphs"),
        (local_domain, "domain 'local'"),
        (foreign_operator, r"domain 'com\.microsoft'"),
        (training_domain, r"domain 'ai\.onnx\.preview\.training'"),
        (loop, "'Loop' holds a graph"),
        (graph_in_another_operator, "'Relu' holds a graph"),
        (image_decoder, "operator 'ImageDecoder'"),
        (random_draw, "operator 'RandomNormal'"),
        (deep, "nests more than 4 deep"),
        (long_name, "expected at most 512"),
        (name_with_nul, "no NUL"),
        (huge_text, "text of 70000 bytes"),
        (runtime_options, "ort_config"),
        (fact_twice, "metadata twice"),
        (weight_twice, "twice"),
        (two_stores, "raw_data and float_data"),
        (wrong_store, "holds double_data"),
        (texts, "texts in a tensor"),
        (part_of_a_tensor, "part of another"),
        (unknown_type, "type 99"),
        (old_operators, r"operator sets \[5\]"),
        (future_operators, r"operator sets \[900\]"),
        (future_format, "IR version 99"),
        (huge_shape_by_constant, "ConstantOfShape to shape"),
        (huge_expansion, "Expand to shape"),
        (huge_padding, "pads over"),
        (huge_input, "expected at most 8 axes"),
        (sequence_input, "sequences"),
    )
} | {
    "empty file": (b"", "not an ONNX file"),
    "two graphs": (SPARSE + tagged(7, b""), "graph twice"),
    "a field of tomorrow": (SPARSE + tagged(777, b"x"), "unknown field 777"),
    "a length over the end": (model_of(b"")[:3] + varint(2**40), "does not end"),
    "a length that wraps": (b"\x3a" + b"\xff" * 9 + b"\x01", "does not end"),
    "a group": (b"\x3b", "of kind 3"),
    "a number that never ends": (b"\x08" + b"\xff" * 4000, "does not end"),
    "a million empty nodes": (model_of(b"\x0a\x00" * (1 << 20)), "fields"),
    "a name that is no text": (SPARSE.replace(b"first.bias", b"\xff" * 10), "UTF-8"),
    "packed numbers that do not end": (
        model_of(tagged(5, tagged(1, b"\xff\xff") + tagged(8, b"t"))),
        "do not end",
    ),
    "nesting without meaning": (b"", "not an ONNX file"),
}


def _nesting(levels: int) -> bytes:
    graph = b""
    for _ in range(levels):  # attribute g of a node of a graph
        graph = tagged(1, tagged(4, b"If") + tagged(5, tagged(6, graph)))
    return model_of(graph)


HAND_MADE["nesting without meaning"] = (_nesting(2000), "deep")


# --------------------------------------------------------------------------- what no fence can see


def growing(levels: int) -> bytes:
    """x joined with itself, and the result again: 2^levels times the input."""
    nodes = [helper.make_node("Concat", [f"h{i}", f"h{i}"], [f"h{i + 1}"], axis=1) for i in range(levels)]
    x = helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info(f"h{levels}", TensorProto.FLOAT, None)
    return _whole(helper.make_graph(nodes, "g", [x], [y]))


def slow(products: int, side: int = 700) -> bytes:
    """Products of large matrices that the input makes: minutes of work."""
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [side, side])
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1),
        helper.make_node("Expand", ["m", "s"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{i}", f"h{i}"], [f"h{i + 1}"]) for i in range(products)),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info(f"h{products}", TensorProto.FLOAT, None)
    return _whole(helper.make_graph(nodes, "g", [x], [y], initializer=[shape]))


def _whole(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


# --------------------------------------------------------------------------- damaged at random


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four blows: bits, bytes, cuts, splices, growth, lengths and tags that lie."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(len(out))
        blow = rng.randrange(8)
        if blow == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif blow == 1:
            out[at] = rng.randrange(256)
        elif blow == 2:
            del out[at:]
        elif blow == 3:
            del out[at : at + rng.randint(1, 40)]
        elif blow == 4:
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + rng.randint(1, 200)]
        elif blow == 5:
            out[at : at + 1] = varint(rng.choice([0, 2**31, 2**40, 2**63, 2**64 - 1]))
        elif blow == 6:
            out[at:at] = tagged(rng.randint(1, 30), bytes(rng.randint(0, 20)))
        else:
            out[: min(at, 200)] = other[: min(at, 200)]
    return bytes(out)
