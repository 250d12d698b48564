"""Two model slots: what was seen to work is never written over, and what does not work never becomes the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import TABLE

from edge_client.inference import rendering
from edge_client.inference.health import check_health
from edge_client.inference.model_file import MODEL_FILE, ModelFacts, StoredModel
from edge_client.inference.rendering import ONNX_FILE, confirm_trial, refresh, template_path
from edge_client.inference.slots import MOST_TRIES, STATE_FILE, ModelSlots
from edge_client.settings import DeviceSettings, DeviceTask
from fedpruneshare.errors import ModelFileError
from fedpruneshare.party import PartySettings


def model(round_id: int) -> StoredModel:
    rng = np.random.default_rng(round_id)
    weights = rng.normal(size=TABLE.weight_count).astype(np.float16).astype(np.float32)
    facts = ModelFacts("t", bytes(32), "accuracy", (8,), False, round_id, 0, 1.0, 1.0)
    return StoredModel(facts, TABLE, weights, np.ones(TABLE.vector_count, np.float32))


def confirmed(folder: Path, round_id: int) -> ModelSlots:
    slots = ModelSlots(folder)
    slots.confirm(slots.receive(model(round_id)))
    return slots


def held(slots: ModelSlots) -> tuple[int | None, int | None]:
    """Rounds of the confirmed model and of the trial."""
    pair = slots.confirmed(), slots.trial()
    return tuple(slots.load(slot).facts.round_id if slot else None for slot in pair)  # type: ignore[return-value]


def test_a_confirmed_model_is_never_written_over(tmp_path: Path) -> None:
    slots = confirmed(tmp_path, 1)
    for round_id in range(2, 6):  # nobody tries them
        slots.receive(model(round_id))
        assert held(slots) == (1, round_id)
    slots.confirm(slots.trial())  # type: ignore[arg-type]
    assert held(ModelSlots(tmp_path)) == (5, None)
    slots.receive(model(6))
    assert held(slots) == (5, 6)


def test_before_any_is_confirmed_the_last_whole_one_stays_until_the_next_is_whole(tmp_path: Path) -> None:
    slots = ModelSlots(tmp_path)
    first, second = slots.receive(model(1)), slots.receive(model(2))
    assert first.place != second.place
    assert held(slots) == (None, 2)


def test_a_trial_that_ends_whatever_tries_it_is_given_up(tmp_path: Path) -> None:
    slots = confirmed(tmp_path, 1)
    trial = slots.receive(model(2))
    for _ in range(MOST_TRIES):
        assert ModelSlots(tmp_path).begin_try(trial)  # and the process died
    assert not ModelSlots(tmp_path).begin_try(trial)
    assert held(slots) == (1, None)


def test_a_verdict_on_a_model_that_was_replaced_since_counts_for_nothing(tmp_path: Path) -> None:
    slots = confirmed(tmp_path, 1)
    old = slots.receive(model(2))
    slots.receive(model(3))
    slots.confirm(old)
    slots.reject(old, "too late")
    assert not slots.begin_try(old)
    assert held(slots) == (1, 3)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "zeros"])
@pytest.mark.parametrize("which", ["trial", "confirmed"])
def test_a_damaged_slot_is_refused_and_the_other_one_taken(tmp_path: Path, which: str, damage: str) -> None:
    slots = confirmed(tmp_path, 1)
    slots.receive(model(2))
    slot = slots.trial() if which == "trial" else slots.confirmed()
    assert slot is not None
    path = slots.folder_of(slot) / MODEL_FILE
    data = bytearray(path.read_bytes())
    data[-9] ^= 64  # a value, so that the file still decodes
    changed = {"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b"", "zeros": bytes(len(data))}
    path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    with pytest.raises(ModelFileError):
        slots.load(slot)
    newest = slots.newest()
    assert newest is not None and newest.facts.round_id == (1 if which == "trial" else 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema":2}', bytes(100)])
def test_damaged_state_is_no_model_until_the_next_round(tmp_path: Path, content: bytes) -> None:
    slots = confirmed(tmp_path, 1)
    (tmp_path / STATE_FILE).write_bytes(content)
    assert held(slots) == (None, None) and slots.newest() is None
    slots.receive(model(2))
    assert held(slots) == (None, 2)


# --------------------------------------------------------------------------- the health check


@pytest.fixture
def settings(tmp_path: Path) -> DeviceSettings:
    return DeviceSettings(PartySettings("key", "directory", "00" * 32), DeviceTask("t", 0, 1), str(tmp_path))


def known_graph(monkeypatch: pytest.MonkeyPatch, folder: Path, bad_rounds: tuple[int, ...] = ()) -> None:
    """The graph is there; what is put around it gives numbers, but for some rounds."""
    template_path(folder, model(1)).write_bytes(b"graph")
    monkeypatch.setattr(rendering, "write_model", lambda graph, arrays, facts: facts["round_id"].encode())

    def check(graph: bytes, shape: tuple[int, ...]) -> None:
        if int(graph) in bad_rounds:
            raise ModelFileError("the model's output is not finite")

    monkeypatch.setattr(rendering, "check_health", check)
    monkeypatch.setattr(rendering, "read_facts", lambda data: {"source": _source(folder, int(data))})


def _source(folder: Path, round_id: int) -> str:
    slot = ModelSlots(folder).confirmed()
    return slot.digest if slot is not None and slot.round_id == round_id else ""


def test_predict_uses_the_newest_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: DeviceSettings
) -> None:
    known_graph(monkeypatch, tmp_path, bad_rounds=(3,))
    slots = ModelSlots(tmp_path)
    for round_id, used in ((1, b"1"), (2, b"2"), (3, b"2"), (4, b"4")):
        slots.receive(model(round_id))
        assert refresh(settings).read_bytes() == used
        assert slots.trial() is None
    (tmp_path / ONNX_FILE).write_bytes(b"5")
    assert refresh(settings).read_bytes() == b"4"


def test_a_first_model_that_does_not_work_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: DeviceSettings
) -> None:
    known_graph(monkeypatch, tmp_path, bad_rounds=(1,))
    ModelSlots(tmp_path).receive(model(1))
    with pytest.raises(ModelFileError, match="no model that works, expected the one that a device keeps"):
        refresh(settings)


def test_between_rounds_nothing_is_tried_without_a_graph(tmp_path: Path) -> None:
    slots = ModelSlots(tmp_path)
    slots.receive(model(1))
    confirm_trial(tmp_path)
    trial = slots.trial()
    assert trial is not None and trial.tries == 0


def test_health_is_finite_numbers_for_every_example() -> None:
    from onnx import TensorProto, helper

    def graph(operator: str) -> bytes:
        node = helper.make_node(operator, ["x"], ["y"])
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
        whole = helper.make_graph([node], "model", ends[:1], ends[1:])
        made = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    check_health(graph("Relu"), (4,))
    with pytest.raises(ModelFileError, match="not finite"):
        check_health(graph("Sqrt"), (4,))  # of negative numbers
    with pytest.raises(ModelFileError):
        check_health(b"no graph", (4,))
