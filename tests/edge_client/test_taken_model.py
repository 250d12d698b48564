"""A model that is taken while the power fails: the next one is held against what is on disk, by its own version."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import builders
import msgspec
import numpy as np
import pytest
from onnx_models import TABLE

from edge_client.inference.slots import ModelSlots
from edge_client.outbox import Outbox
from edge_client.receiving import ReceivedModel
from edge_client.service import Device
from edge_client.settings import GateSettings
from fedpruneshare import crash_points
from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import GateError
from fedpruneshare.plan import PlanView
from fedpruneshare.sparse.support import code_values

#: Honest rounds of fast growth: a third more a round, where the gate allows a half.
GROWTH, ALLOWED = 4 / 3, 1.5


def device(folder: Path) -> Device:
    """As much of a device as takes models, as it is after a start."""
    one = object.__new__(Device)
    task = SimpleNamespace(name="t", metric="accuracy", is_transforming=False)
    one._work = SimpleNamespace(table=TABLE, task=task, dataset=SimpleNamespace(inputs=np.zeros((1, 8))))  # type: ignore[assignment]
    one._settings = SimpleNamespace(gate=GateSettings(growth=ALLOWED))  # type: ignore[assignment]
    one._folder, one._outbox = folder, Outbox(folder / "outbox")
    one._worker = ThreadPoolExecutor(max_workers=1)
    one._known = one._last_model()
    return one


def view(version: int, round_id: int | None = None) -> PlanView:
    plan = builders.plan(round_id or version + 1)
    return SimpleNamespace(plan=msgspec.structs.replace(plan, model_version=version), rungs=1)  # type: ignore[return-value]


def model(version: int) -> ReceivedModel:
    weights = np.full(TABLE.weight_count, 0.2 * GROWTH**version, np.float32)
    vectors = np.zeros(TABLE.vector_count, np.float32)
    positions = np.arange(weights.size)
    return ReceivedModel((positions,), (code_values(weights),), np.arange(vectors.size), vectors, (), None)


def take(folder: Path, version: int, round_id: int | None = None) -> None:
    asyncio.run(device(folder)._take(view(version, round_id), model(version)))


def die_at(point: str, folder: Path, version: int, round_id: int | None = None) -> None:
    """Take a model in a process that is killed at a point."""
    child = os.fork()
    if child == 0:
        crash_points.observe(lambda reached: os.kill(os.getpid(), signal.SIGKILL) if reached == point else None)
        try:
            take(folder, version, round_id)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{point} was not reached"


POINTS = ("device.model-verified", "device.model-taken", "device.slot-switched.before", "device.slot-switched.after")


@pytest.mark.parametrize("point", [*POINTS, "device.model-stored"])
def test_after_a_loss_of_power_the_next_honest_model_is_taken(tmp_path: Path, point: str) -> None:
    """Of two rounds' growth, which one round may not have: by the wrong version it would be refused."""
    take(tmp_path, 1)
    die_at(point, tmp_path, 2)
    take(tmp_path, 3)
    known = device(tmp_path)._known
    assert known is not None and known.version == 3


def test_what_no_honest_round_does_is_refused_after_it_all_the_same(tmp_path: Path) -> None:
    take(tmp_path, 1)
    die_at("device.model-taken", tmp_path, 2)
    with pytest.raises(GateError, match="in 2 rounds"):
        asyncio.run(device(tmp_path)._take(view(3), model(6)))


def test_a_model_that_was_given_up_leaves_the_one_before_with_its_own_version(tmp_path: Path) -> None:
    take(tmp_path, 1)
    slots = ModelSlots(tmp_path)
    slots.confirm(slots.trial())  # type: ignore[arg-type]
    take(tmp_path, 2)
    slots.reject(slots.trial(), "gives numbers that are not finite")  # type: ignore[arg-type]
    known = device(tmp_path)._known
    assert known is not None and known.version == 1


def test_a_model_of_an_epoch_that_is_over_is_held_against_none(tmp_path: Path) -> None:
    """The root has begun anew, and power failed after that was noted, before its first model was kept."""
    take(tmp_path, 9)
    assert device(tmp_path)._known is not None
    die_at("device.model-taken", tmp_path, 1, ROUNDS_PER_EPOCH + 1)
    assert device(tmp_path)._known is None
    take(tmp_path, 9, ROUNDS_PER_EPOCH + 2)
