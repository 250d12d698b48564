"""The stored public model comes back exactly, is small, needs neither torch nor onnx, and damage is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import builders
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import TABLE
from torch import nn

from edge_client.datasets import Dataset
from edge_client.inference.model_file import MODEL_FILE, ModelFacts, StoredModel, load_model, received_model, save_model
from edge_client.local_round import Workplace
from edge_client.receiving import ReceivedModel
from edge_client.tasks import load_task
from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.channels import ChannelGroup, Cut
from fedpruneshare.sparse.support import code_values

FACTS = ModelFacts("t", bytes(32), "accuracy", (8,), False, 3, 1, 1.0, 0.25)
#: The 12 hidden channels: rows of `first.weight`, its bias, the buffer, columns of `second.weight`.
GROUPS = (ChannelGroup(12, 1, (Cut(0, 0), Cut(1, 0), Cut(2, 0), Cut(4, 1))),)
KEPT = (np.arange(12) % 3 == 0,)


def stored(density: float = 0.25, halves: bool = True, **changed: object) -> StoredModel:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=TABLE.weight_count).astype(np.float16 if halves else np.float32).astype(np.float32)
    weights[rng.random(TABLE.weight_count) >= density] = 0.0
    vectors = rng.normal(size=TABLE.vector_count).astype(np.float32)
    parts = {"facts": FACTS, "table": TABLE, "weights": weights, "vectors": vectors, **changed}
    return StoredModel(**parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("halves", [True, False])
def test_it_comes_back_exactly(tmp_path: Path, density: float, halves: bool) -> None:
    model = stored(density, halves)
    digest = save_model(tmp_path, model)
    found, again = load_model(tmp_path)
    assert (found.facts, found.table, found.groups, found.kept, again) == (FACTS, TABLE, (), None, digest)
    np.testing.assert_array_equal(found.weights, model.weights)
    np.testing.assert_array_equal(found.vectors, model.vectors)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def test_values_beyond_float16_stay_float32(tmp_path: Path) -> None:
    model = stored()
    model.weights[:3] = (1e5, 1e-7, -1e30)
    save_model(tmp_path, model)
    np.testing.assert_array_equal(load_model(tmp_path)[0].weights, model.weights)


def test_published_values_take_two_bytes_and_the_others_a_bit(tmp_path: Path) -> None:
    save_model(tmp_path, stored(0.0))
    empty = (tmp_path / MODEL_FILE).stat().st_size
    save_model(tmp_path, stored(0.5))
    full = (tmp_path / MODEL_FILE).stat().st_size
    assert abs(full - empty - 2 * np.count_nonzero(stored(0.5).weights)) <= 2


def test_a_narrow_model_has_the_arrays_of_its_channels(tmp_path: Path) -> None:
    model = stored(groups=GROUPS, kept=KEPT)
    save_model(tmp_path, model)
    found, _ = load_model(tmp_path)
    assert found.groups == GROUPS
    assert found.kept is not None and np.array_equal(found.kept[0], KEPT[0])
    arrays, full = found.arrays(), TABLE.unflatten(model.weights, model.vectors)
    np.testing.assert_array_equal(arrays["first.weight"], full["first.weight"][::3])
    np.testing.assert_array_equal(arrays["second.weight"], full["second.weight"][:, ::3])
    np.testing.assert_array_equal(arrays["norm.running_var"], full["norm.running_var"][::3])
    np.testing.assert_array_equal(arrays["second.bias"], full["second.bias"])
    assert "norm.steps" not in arrays
    other = (np.arange(12) % 3 == 1,)
    assert found.outline() == stored(groups=GROUPS, kept=other).outline() != stored().outline()
    assert found.outline() != stored(groups=GROUPS, kept=(np.arange(12) % 2 == 0,)).outline()


def test_what_contradicts_the_table_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"weights are float32\[5\], expected float32\[144\]"):
        stored(weights=np.zeros(5, np.float32))
    with pytest.raises(ModelFileError, match=r"vectors are float64"):
        stored(vectors=np.zeros(TABLE.vector_count))
    with pytest.raises(ModelFileError, match="vectors hold a value that is not finite"):
        stored(vectors=np.full(TABLE.vector_count, np.inf, np.float32))


def test_before_the_first_round_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model\.msgpack: No such file.*once it has received a round"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 2, "msgpack"),
        (4, b"\xff\xff", "bitmap"),
        (5, bytes(17), "bitmap of 17 bytes, expected 18"),
        (5, b"\xff" * 18, "bytes of values for 144 of 144"),
        (6, "<f8", "msgpack"),
        (7, b"\x00\x7c" * 36, "not finite|bytes of values"),
        (8, b"123", "3 bytes of vectors, expected 112"),
        (8, b"", "0 bytes of vectors"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, place: int, value: object, reason: str) -> None:
    save_model(tmp_path, stored())
    path = tmp_path / MODEL_FILE
    parts = msgspec.msgpack.decode(path.read_bytes())
    parts[place] = value
    path.write_bytes(msgspec.msgpack.encode(parts))
    with pytest.raises(ModelFileError, match=reason):
        load_model(tmp_path)


@given(st.data())
def test_damage_is_refused_or_read_but_nothing_else_is_raised(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, stored(groups=GROUPS, kept=KEPT))
    damaged = bytearray((folder / MODEL_FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (folder / MODEL_FILE).write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        load_model(folder)
    except ModelFileError:
        return


def test_it_is_what_was_received_in_a_round(tmp_path: Path) -> None:
    plan = builders.view(round_id=9)
    task = load_task("hapt", tmp_path)
    work = Workplace(task, nn.Linear(1, 1), TABLE, Dataset(np.zeros((2, 8), np.float32), np.zeros(2, np.int64)))
    places, codes = np.array([5, 90]), code_values(np.array([0.5, -2.0], np.float32))
    vectors = np.ones(2, np.float32)
    received = ReceivedModel((places[:1], places[1:]), (codes[:1], codes[1:]), np.array([3, 4]), vectors, (), None)
    model = received_model(plan, received, work)
    segment = plan.plan.segments[1]
    expected = (9, 1, segment.width, segment.density, plan.plan.bundle)
    facts = model.facts
    assert (facts.round_id, facts.rung, facts.width, facts.density, facts.bundle) == expected
    assert (facts.task, facts.metric, facts.input_shape, facts.is_transformed) == (task.name, "accuracy", (8,), False)
    assert (model.weights[5], model.weights[90], np.count_nonzero(model.weights)) == (0.5, -2.0, 2)
    assert np.flatnonzero(model.vectors).tolist() == [3, 4]


def test_it_needs_neither_torch_nor_onnx() -> None:
    modules = "edge_client.inference.model_file, edge_client.inference.rendering, edge_client.commands.predict"
    program = f"import sys, {modules}\n"
    check = "sys.exit(str({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program + check], timeout=250, check=False, capture_output=True)
    assert done.stderr == b"set()\n"
