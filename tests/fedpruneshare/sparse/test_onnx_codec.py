"""Sparse ONNX that everybody can load, and a reader that trusts nothing (docs/protocol.md §6.6)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import TABLE, arrays, forward, template

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.onnx_codec import build_model, decode_update, read_model
from fedpruneshare.sparse.onnx_writer import write_update
from fedpruneshare.sparse.update import SparseUpdate

SPARSE = build_model(template(), arrays(zeros=0.9))


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options).run(None, {"x": x})[0]


def edited(edit: Callable[[onnx.ModelProto], None], data: bytes = SPARSE) -> bytes:
    model = onnx.ModelProto.FromString(data)
    edit(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("zeros", "sparse"), [(0.0, 0), (0.65, 0), (0.75, 2), (0.9, 2), (1.0, 2)])
def test_mostly_zero_weights_become_sparse(zeros: float, sparse: int) -> None:
    named = arrays(zeros=zeros)
    data = build_model(template(), named)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    assert len(model.graph.sparse_initializer) == sparse
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    dense = build_model(template(), named, sparse_above=1.0)
    assert np.array_equal(run(data, x), run(dense, x))
    assert run(data, x) == pytest.approx(forward(named, x), rel=1e-4, abs=1e-4)
    assert (len(data) < len(dense)) == (zeros >= 0.75)
    back = read_model(data, TABLE, 100_000)
    assert set(back) == set(named)
    assert all(np.array_equal(back[name], named[name]) for name in named)


def test_the_same_arrays_give_the_same_bytes() -> None:
    assert build_model(template(), arrays(zeros=0.9)) == SPARSE


def test_a_template_with_weights_is_refused() -> None:
    with pytest.raises(ModelFileError, match="already holds"):
        build_model(build_model(template(), arrays()), arrays())
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        build_model(b"\xff\xff\xff", arrays())


def test_a_weight_the_graph_needs_must_be_there() -> None:
    named = arrays()
    del named["second.bias"]
    with pytest.raises(ModelFileError, match=r"needs 'second\.bias'"):
        build_model(template(), named)


def branching(model: onnx.ModelProto) -> None:
    """y is what the first branch makes of a weight that only the branch reads."""
    shape = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["v", "second.weight", "second.bias"], ["z"], transB=1)], kind, [], [shape]
        )
        for kind in ("Gemm", "Gemm")
    ]
    del model.graph.node[3]
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]))


def test_weights_read_in_a_branch_are_filled_in() -> None:
    named = arrays(zeros=0.9)
    data = build_model(edited(branching, template()), named)
    onnx.checker.check_model(onnx.load_from_string(data))
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    assert run(data, x) == pytest.approx(forward(named, x), rel=1e-4, abs=1e-4)
    assert set(read_model(data, TABLE, 100_000)) == set(named)


# --------------------------------------------------------------------------- hostile files


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def external_in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].indices.data_location = TensorProto.EXTERNAL


def external_in_attribute(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="x")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", 17)]))


def foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def indices_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        indices = model.graph.sparse_initializer[0].indices
        values = np.array(onnx.numpy_helper.to_array(indices))
        indices.CopyFrom(onnx.numpy_helper.from_array(change(values), indices.name))

    return edit


def set_at(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


def huge_dims(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].dims[:] = [15_000, 15_000]


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def unknown(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].values.name = "stranger"


def short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def not_a_number(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, dtype="<f4").tobytes()


def subgraph(*nodes: onnx.NodeProto) -> tuple[onnx.GraphProto, onnx.NodeProto]:
    """A branch and the node that holds it."""
    branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
    return branch, helper.make_node("If", ["x"], ["q"], then_branch=branch, else_branch=branch)


def foreign_domain_in_branch(model: onnx.ModelProto) -> None:
    model.graph.node.append(subgraph(helper.make_node("F", ["x"], ["z"], domain="com.example"))[1])


def nested(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["z"])
    for _ in range(6):
        node = subgraph(node)[1]
    model.graph.node.append(node)


def huge(name: str) -> onnx.SparseTensorProto:
    """An empty sparse tensor of 15,000 × 15,000: a few bytes here, 900 MB where it is expanded."""
    values = helper.make_tensor(name, TensorProto.FLOAT, [0], [])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [0], []), [15_000, 15_000])


def huge_in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=huge("c")))


def huge_in_branch(model: onnx.ModelProto) -> None:
    branch, _ = subgraph()
    branch.sparse_initializer.append(huge("w"))
    model.graph.node.append(helper.make_node("If", ["x"], ["q"], then_branch=branch, else_branch=branch))


def two_storages(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.extend([1.0] * 12)


def two_storages_of_indices(model: onnx.ModelProto) -> None:
    indices = model.graph.sparse_initializer[0].indices
    indices.raw_data = np.array(indices.int64_data, dtype="<i8").tobytes()


def part(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 3


def large_stranger(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.INT64, [9000], range(9000)))


def many_indices(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].indices.dims[0] = 2**40


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (external, "outside the file"),
        (external_in_sparse, "outside the file"),
        (external_in_attribute, "outside the file"),
        (function, "functions"),
        (foreign_domain, "com.example"),
        (huge_dims, "expected"),
        (twice, "twice"),
        (unknown, "'stranger'"),
        (short, "holds 47 bytes of raw_data, expected 48"),
        (not_a_number, "not finite"),
        (many_indices, "axes and 2.35 elements"),
        (foreign_domain_in_branch, "com.example"),
        (nested, "nests more than"),
        (huge_in_attribute, "sparse tensor in a node or sub-graph"),
        (huge_in_branch, "sparse tensor in a node or sub-graph"),
        (two_storages, "holds raw_data and float_data"),
        (two_storages_of_indices, "holds raw_data and int64_data"),
        (part, "part of another"),
        (large_stranger, "'s' is not in the parameter table"),
        (indices_of(lambda v: v[::-1].copy()), "ascending"),
        (indices_of(set_at(1, 0)), "ascending"),
        (indices_of(set_at(-1, 10_000)), "below"),
        (indices_of(set_at(0, -1)), "below"),
        (indices_of(lambda v: v.astype(np.int32)), "INT64"),
        (indices_of(lambda v: np.stack([v // 8, v % 8], axis=1)), "one linear index each"),
        (indices_of(lambda v: v[:-1]), "one linear index each"),
    ],
)
def test_hostile_files_are_refused(edit: Callable[[onnx.ModelProto], None], text: str) -> None:
    read_model(SPARSE, TABLE, 100_000)
    with pytest.raises(ModelFileError, match=text):
        read_model(edited(edit), TABLE, 100_000)


def test_the_notorious_small_file_is_refused() -> None:
    """Some 150 bytes that pass the checker and make onnxruntime take 1.5 GiB."""
    graph = helper.make_graph([], "g", [], [], sparse_initializer=[huge("first.weight")])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    assert len(data) < 200
    with pytest.raises(ModelFileError, match=r"tensors of 225000000 elements"):
        read_model(data, TABLE, 100_000)


def test_a_graphs_own_small_constants_pass() -> None:
    def constant(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]))

    assert set(read_model(edited(constant), TABLE, 100_000)) == set(arrays())


def test_a_file_above_the_bound_is_not_parsed() -> None:
    with pytest.raises(ModelFileError, match="expected at most 10"):
        read_model(SPARSE, TABLE, 10)


@given(st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(SPARSE)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        named = read_model(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), TABLE, 100_000)
    except ModelFileError:
        return
    check_named(named)


def check_named(named: dict[str, np.ndarray]) -> None:
    shapes = {p.name: p.shape for p in TABLE.parameters}
    assert all(array.shape == shapes[name] and np.isfinite(array).all() for name, array in named.items())


def damaged_copies(data: bytes, count: int) -> Iterator[bytes]:
    """Copies with one to three bytes changed, every fifth cut short as well."""
    rng = np.random.default_rng(count)
    for index in range(count):
        copy = np.frombuffer(data, dtype=np.uint8).copy()
        places = rng.integers(copy.size, size=rng.integers(1, 4))
        copy[places] = rng.integers(256, size=places.size)
        yield copy.tobytes()[: int(rng.integers(1, copy.size)) if index % 5 == 0 else None]


def count_refused(read: Callable[[bytes], object], data: bytes, count: int = 2000) -> int:
    """Anything other than `ModelFileError` is let through and fails the test."""
    refused = 0
    for copy in damaged_copies(data, count):
        try:
            read(copy)
        except ModelFileError:
            refused += 1
    return refused


def test_two_thousand_damaged_models() -> None:
    refused = count_refused(lambda data: check_named(read_model(data, TABLE, 100_000)), SPARSE)
    assert 500 < refused < 2000  # a changed weight is still a model


def test_two_thousand_damaged_updates() -> None:
    def read(data: bytes) -> None:
        found = decode_update(data, TABLE)
        assert found.positions.size == found.values.size
        assert np.isfinite(found.values).all()

    assert 500 < count_refused(read, write_update(update(), TABLE)) < 2000


def test_two_thousand_damaged_templates() -> None:
    branches = edited(branching, template())
    assert 500 < count_refused(lambda data: build_model(data, arrays()), branches) < 2000


def test_damaged_headers_that_a_bound_lets_through_stay_small() -> None:
    """Nothing a file claims is allocated before it is compared with the table."""
    tracemalloc.start()
    try:
        count_refused(lambda data: read_model(data, TABLE, 100_000), SPARSE, 300)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [b"first.bias", b"Relu", b"tiny"])
def test_a_name_that_is_no_text_is_refused(text: bytes) -> None:
    """Protobuf hands such a name over as bytes: no `str` equals it, and sorting the two together fails."""
    assert text in SPARSE
    spoiled = SPARSE.replace(text, b"\xff" + text[1:])
    with pytest.raises(ModelFileError, match="expected UTF-8 text"):
        read_model(spoiled, TABLE, 100_000)
    with pytest.raises(ModelFileError, match="expected UTF-8 text"):
        build_model(template().replace(text, b"\xff" + text[1:]), arrays())


@pytest.mark.parametrize("text", [b"round_id", b"320", b"vectors"])
def test_facts_that_are_no_text_are_refused(text: bytes) -> None:
    data = write_update(update(), TABLE)
    assert text in data
    with pytest.raises(ModelFileError, match="expected UTF-8 text"):
        decode_update(data.replace(text, b"\xff" + text[1:]), TABLE)


# --------------------------------------------------------------------------- updates


def update(seed: int = 0) -> SparseUpdate:
    rng = np.random.default_rng(seed)
    positions = rng.permutation(TABLE.weight_count)[:30].astype(np.int64)
    values = rng.normal(size=30).astype(np.float32)
    elements, vectors = np.arange(28), rng.normal(size=28).astype(np.float32)
    return SparseUpdate(7, TABLE.digest(), 1, 320, positions, values, elements, vectors)


def test_an_update_there_and_back() -> None:
    made = update()
    data = write_update(made, TABLE)
    onnx.checker.check_model(onnx.load_from_string(data))
    back = decode_update(data, TABLE)
    order = np.argsort(made.positions)
    assert (back.round_id, back.rung, back.weight) == (7, 1, 320)
    assert np.array_equal(back.positions, made.positions[order])
    assert np.array_equal(back.values, made.values[order])
    assert np.array_equal(back.vectors, made.vectors)
    assert np.array_equal(back.vector_positions, made.vector_positions)


def test_an_update_of_a_narrow_model_has_part_of_the_vectors() -> None:
    made = update()
    part = replace(made, vector_positions=np.array([3, 7, 20]), vectors=made.vectors[:3])
    back = decode_update(write_update(part, TABLE), TABLE)
    assert back.vector_positions.tolist() == [3, 7, 20]
    assert np.array_equal(back.vectors, made.vectors[:3])


def drop_fact(model: onnx.ModelProto) -> None:
    del model.metadata_props[0]


def other_table(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "table").value = "00" * 32


def fact(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        next(entry for entry in model.metadata_props if entry.key == key).value = value

    return edit


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", "many"), ("weight", "-5"), ("weight", "0"), ("round_id", "7\n"),
     ("weight", "9" * 5000), ("rung", "-1"), ("rung", "16"),
     ("rung", "\u0663"), ("round_id", "1_0"), ("round_id", " 7"), ("round_id", "07"), ("rung", "")],
)  # fmt: skip
def test_facts_are_plain_numbers_in_range(key: str, value: str) -> None:
    with pytest.raises(ModelFileError, match=f"update with {key} = "):
        decode_update(edited(fact(key, value), write_update(update(), TABLE)), TABLE)


def fact_twice(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="rung", value="3")


def renamed(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[1].values.name = "values"


def with_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["vectors"], ["y"]))


def cut(model: onnx.ModelProto) -> None:
    values = model.graph.sparse_initializer[1].values
    values.raw_data = values.raw_data[:-1]


def elsewhere(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].values.external_data.add(key="location", value="/etc/passwd")


def dense(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.sparse_initializer[1].values)


def folded(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer[0].dims[:] = [12, TABLE.weight_count // 12]


@pytest.mark.parametrize(
    "edit",
    [
        drop_fact,
        other_table,
        cut,
        elsewhere,
        indices_of(set_at(0, 5000)),
        fact_twice,
        renamed,
        with_node,
        folded,
        dense,
    ],
)
def test_what_is_no_update_is_refused(edit: Callable[[onnx.ModelProto], None]) -> None:
    with pytest.raises(ModelFileError):
        decode_update(edited(edit, write_update(update(), TABLE)), TABLE)
