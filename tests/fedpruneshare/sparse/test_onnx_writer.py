"""What is written without onnx is, byte for byte, what onnx writes; and what is no ONNX file is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import TABLE, arrays, forward, template

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse import onnx_codec
from fedpruneshare.sparse.onnx_codec import build_model, decode_update, read_model
from fedpruneshare.sparse.onnx_writer import SPARSE_ABOVE, read_facts, write_model, write_update
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.update import SparseUpdate

FACTS = {"round_id": "7", "task": "größer"}


def as_onnx_writes(update: SparseUpdate, table: ParameterTable) -> bytes:
    def sparse(name: str, places: np.ndarray, values: np.ndarray, size: int) -> onnx.SparseTensorProto:
        order = np.argsort(places)
        dense = helper.make_tensor(
            name, TensorProto.FLOAT, [order.size], values[order].astype("<f4").tobytes(), raw=True
        )
        indices = helper.make_tensor(f"{name}_indices", TensorProto.INT64, [order.size], places[order])
        return helper.make_sparse_tensor(dense, indices, [size])

    graph = helper.make_graph([], "fedpruneshare-update", [], [])
    graph.sparse_initializer.append(sparse("values", update.positions, update.values, table.weight_count))
    graph.sparse_initializer.append(sparse("vectors", update.vector_positions, update.vectors, table.vector_count))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = {"round_id": update.round_id, "table": update.table.hex(), "rung": update.rung, "weight": update.weight}
    helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    return bytes(model.SerializeToString(deterministic=True))


def update_of(table: ParameterTable, count: int, vectors: int, seed: int = 0) -> SparseUpdate:
    rng = np.random.default_rng(seed)
    return SparseUpdate(
        round_id=2**40 + seed,
        table=table.digest(),
        rung=3,
        weight=321,
        positions=rng.permutation(table.weight_count)[:count],
        values=rng.normal(size=count).astype(np.float32),
        vector_positions=rng.permutation(table.vector_count)[:vectors],
        vectors=rng.normal(size=vectors).astype(np.float32),
    )


@given(st.integers(0, 144), st.integers(0, 28), st.integers(0, 2**31))
def test_an_update_has_the_bytes_that_onnx_writes(count: int, vectors: int, seed: int) -> None:
    update = update_of(TABLE, count, vectors, seed)
    data = write_update(update, TABLE)
    assert data == as_onnx_writes(update, TABLE)
    found = decode_update(data, TABLE)
    assert (found.round_id, found.rung, found.weight) == (update.round_id, update.rung, update.weight)
    order = np.argsort(update.positions)
    np.testing.assert_array_equal(found.positions, update.positions[order])
    np.testing.assert_array_equal(found.values, update.values[order])


def test_large_coordinates_and_several_chunks() -> None:
    table = ParameterTable((Parameter("w", (2**17, 2**14), Role.WEIGHT, 0), Parameter("b", (3,), Role.VECTOR)))
    edges = [0, 127, 128, 2**14 - 1, 2**14, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1]
    places = np.unique([*edges, *np.random.default_rng(0).integers(0, 2**31, 200_000)])
    update = SparseUpdate(
        1, table.digest(), 0, 1, places, np.ones(places.size, np.float32), np.arange(3), np.zeros(3, np.float32)
    )
    data = write_update(update, table)
    assert data == as_onnx_writes(update, table)
    np.testing.assert_array_equal(decode_update(data, table).positions, places)


def with_facts(model: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(model)
    helper.set_model_props(proto, FACTS)
    return bytes(proto.SerializeToString(deterministic=True))


@pytest.mark.parametrize("zeros", [0.0, 0.65, 0.75, 0.9, 1.0])
def test_a_model_has_the_bytes_that_onnx_writes(zeros: float) -> None:
    named = arrays(zeros=zeros)
    data = write_model(template(), named, FACTS)
    assert data == with_facts(build_model(template(), named))
    onnx.checker.check_model(onnx.load_from_string(data))
    assert read_facts(data) == FACTS
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(data)
    assert session.run(None, {"x": x})[0] == pytest.approx(forward(named, x), rel=1e-4, abs=1e-4)
    assert session.get_modelmeta().custom_metadata_map == FACTS
    assert set(read_model(data, TABLE, 100_000)) == set(named)


def test_weights_read_in_a_branch_only_are_filled_in_and_others_left_out() -> None:
    model = onnx.ModelProto.FromString(template())
    shape = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    gemm = helper.make_node("Gemm", ["v", "second.weight", "second.bias"], ["z"], transB=1)
    branches = [helper.make_graph([gemm], name, [], [shape]) for name in ("one", "other")]
    del model.graph.node[3]
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]))
    named = {**arrays(zeros=0.9), "unused": np.ones(3, np.float32)}
    data = write_model(model.SerializeToString(deterministic=True), named, {})
    assert data == build_model(model.SerializeToString(), named)
    assert set(read_model(data, TABLE, 100_000)) == set(arrays())


def test_facts_take_the_place_of_those_of_the_template() -> None:
    data = write_model(with_facts(template()), arrays(), {"round_id": "8"})
    assert read_facts(data) == {"round_id": "8"}


def test_a_template_with_weights_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"already holds 'first\.bias'"):
        write_model(write_model(template(), arrays(), {}), arrays(), {})


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\x3a", b"\x3a\x05ab", b"\x3b\x01", b"\x00\x00", b"\x3a\x02\x08"])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"not an ONNX file|0 graphs"):
        write_model(data, arrays(), {})


@given(st.data())
def test_damage_is_refused_or_read_but_nothing_else_is_raised(data: st.DataObject) -> None:
    damaged = bytearray(with_facts(template()))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_facts, lambda given: write_model(given, arrays(), {})):
        try:
            read(bytes(damaged))
        except ModelFileError:
            continue


def test_both_writers_draw_the_same_line_and_this_one_needs_no_onnx() -> None:
    assert SPARSE_ABOVE == onnx_codec.SPARSE_ABOVE
    program = "import sys, fedpruneshare.sparse.onnx_writer; sys.exit('onnx' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=250, check=False).returncode == 0
