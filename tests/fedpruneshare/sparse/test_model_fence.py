"""What stands between a model file of somebody else and the libraries that read it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from hostile_models import DENSE, HAND_MADE, SPARSE, edited, growing, slow
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import arrays, template

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.model_fence import FenceLimits, check_model
from fedpruneshare.sparse.onnx_codec import build_model
from fedpruneshare.sparse.onnx_writer import write_model
from fedpruneshare.sparse.protobuf import packed_numbers


@pytest.mark.parametrize("data", [template(), DENSE, SPARSE, growing(3), slow(2)])
def test_what_is_in_order_passes(data: bytes) -> None:
    assert check_model(data) == {}
    onnx.checker.check_model(onnx.load_from_string(DENSE))


def test_the_metadata_come_back() -> None:
    assert check_model(write_model(template(), arrays(), {"task": "hapt", "rung": "2"})) == {
        "task": "hapt",
        "rung": "2",
    }


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_hostile_file_is_refused_by_name(name: str) -> None:
    data, text = HAND_MADE[name]
    with pytest.raises(ModelFileError, match=text):
        check_model(data)


def test_a_refusal_costs_no_memory() -> None:
    """Nothing a file claims is allocated."""
    tracemalloc.start()
    try:
        for data, _ in HAND_MADE.values():
            if len(data) < 1 << 20:
                with pytest.raises(ModelFileError):
                    check_model(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_infinity_is_a_constant_and_no_weight() -> None:
    """Masks are made of it, as a single number or in a node."""

    def masks(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("low", TensorProto.FLOAT, [], [float("-inf")]))
        mask = helper.make_tensor("m", TensorProto.FLOAT, [2], [float("-inf"), 0.0])
        model.graph.node.append(helper.make_node("Constant", [], ["mask"], value=mask))

    check_model(edited(masks))


def test_limits_are_the_callers() -> None:
    with pytest.raises(ModelFileError, match="expected at most 100"):
        check_model(SPARSE, FenceLimits(file_bytes=100))
    with pytest.raises(ModelFileError, match="elements in an ONNX file, expected at most 50"):
        check_model(DENSE, FenceLimits(elements=50))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_packed_numbers_are_those_of_protobuf(numbers: list[int]) -> None:
    data = onnx.TensorProto(int64_data=numbers).SerializeToString()
    content = memoryview(data)[2 if len(data) < 130 else 3 :] if numbers else memoryview(b"")
    assert packed_numbers(content).tolist() == numbers


def test_a_template_is_fenced_before_it_is_built() -> None:
    with pytest.raises(ModelFileError, match="Loop"):
        build_model(HAND_MADE["loop"][0], arrays())
    assert np.isfinite(arrays()["second.bias"]).all()
