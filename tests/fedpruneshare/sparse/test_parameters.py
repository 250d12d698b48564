"""The parameter table: flat vectors there and back, and a digest that names it (docs/protocol.md §6.1)."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from onnx_models import TABLE, arrays

from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role


def test_flat_vectors_follow_the_table() -> None:
    named = arrays()
    weights, vectors = TABLE.flatten(named)
    assert (weights.dtype, weights.size, vectors.dtype, vectors.size) == (np.float32, 12 * 8 + 4 * 12, np.float32, 28)
    assert np.array_equal(weights, np.concatenate([named[n].reshape(-1) for n in ("first.weight", "second.weight")]))
    expected = np.concatenate([named[n] for n in ("first.bias", "norm.running_var", "second.bias")])
    assert np.array_equal(vectors, expected)
    back = TABLE.unflatten(weights, vectors)
    assert set(back) == set(named)
    assert all(np.array_equal(back[name], named[name]) for name in named)


def test_bounds_say_which_tensor_owns_a_coordinate() -> None:
    assert TABLE.weight_bounds().tolist() == [0, 96, 144]
    assert TABLE.vector_bounds().tolist() == [0, 12, 24, 28]
    assert (TABLE.weight_count, TABLE.vector_count) == (144, 28)


def test_a_table_without_weights_or_vectors() -> None:
    empty = ParameterTable((Parameter("steps", (), Role.COUNTER),))
    weights, vectors = empty.flatten({})
    assert (weights.size, vectors.size, empty.weight_bounds().tolist()) == (0, 0, [0])
    assert empty.unflatten(weights, vectors) == {}


def test_wrong_arrays_are_named() -> None:
    named = arrays()
    with pytest.raises(ModelFileError, match=r"'first\.bias' has shape \(3,\), expected \(12,\)"):
        TABLE.flatten({**named, "first.bias": np.zeros(3, dtype=np.float32)})
    del named["second.weight"]
    with pytest.raises(ModelFileError, match=r"'second\.weight' is missing"):
        TABLE.flatten(named)
    with pytest.raises(ModelFileError, match=r"shape \(143,\), expected \(144,\)"):
        TABLE.unflatten(np.zeros(143, dtype=np.float32), np.zeros(28, dtype=np.float32))


def test_the_digest_covers_names_shapes_roles_and_order() -> None:
    first, *rest = TABLE.parameters
    changed = [
        (msgspec.structs.replace(first, name="other"), *rest),
        (msgspec.structs.replace(first, shape=(8, 12)), *rest),
        (msgspec.structs.replace(first, role=Role.VECTOR), *rest),
        (msgspec.structs.replace(first, channel_axis=1), *rest),
        (*rest, first),
        tuple(rest),
    ]
    assert len({TABLE.digest(), *(ParameterTable(parameters).digest() for parameters in changed)}) == 7
    assert msgspec.json.decode(msgspec.json.encode(TABLE), type=ParameterTable).digest() == TABLE.digest()
