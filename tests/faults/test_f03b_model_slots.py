"""F03b: power cuts while a device takes up a new model: it then has the old one or the new one, whole, never neither.

A child process takes up models and is killed at a system call of it: each `fsync`, rename, create and write, before and
after. What it had not synced may or may not be on the disk afterwards: files are cut, emptied or left, and a rename
whose folder was not synced is undone or not, by a seed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import TABLE

from edge_client.inference.model_file import ModelFacts, StoredModel
from edge_client.inference.slots import ModelSlots

pytestmark = pytest.mark.faults

#: Steps of one power cut: before and after each system call that taking up and confirming a model consists of.
STEPS, SEEDS = 12, 25
OLD, NEW = 4, 5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: what is lost is decided here, not by a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fps-slots-") as folder:
        yield Path(folder)


def model(round_id: int) -> StoredModel:
    weights = np.full(TABLE.weight_count, round_id, np.float32)
    facts = ModelFacts("t", bytes(32), "accuracy", (8,), False, round_id, 0, 1.0, 1.0)
    return StoredModel(facts, TABLE, weights, np.full(TABLE.vector_count, round_id, np.float32))


class Disk:
    """Between a process and its files: counts steps, kills at one, and notes what was never synced."""

    def __init__(self, folder: Path, kill_at: int, notes: int) -> None:
        self._folder, self._left, self._notes = folder, kill_at, notes
        self._real: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "replace": os.replace, "rename": os.rename}

    def install(self) -> None:
        os.fsync = self._fsync  # type: ignore[assignment]
        os.replace = self._rename  # type: ignore[assignment]
        os.rename = self._rename  # type: ignore[assignment]

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._note(f"written {path}")
        self.step()
        self._real["fsync"](descriptor)
        self._note(f"synced {path}")
        self.step()

    def _rename(self, source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
        kept = f"{target}.before-rename"
        if os.path.exists(target):
            shutil.copyfile(target, kept)
        self.step()
        self._note(f"renamed {target}")
        self._real["replace"](source, target)
        self.step()

    def _note(self, line: str) -> None:
        os.write(self._notes, line.encode() + b"\n")


def lose(folder: Path, notes: list[str], rng: random.Random) -> None:
    """What a disk may have lost of it: contents that were not synced, and renames whose folder was not."""
    unsynced: set[str] = set()
    renamed: list[str] = []
    for note in notes:
        verb, path = note.split(" ", 1)
        if verb == "written":
            unsynced.add(path)
        elif verb == "renamed":
            renamed.append(path)
        elif os.path.isdir(path):
            renamed = [name for name in renamed if os.path.dirname(name) != path]
        else:
            unsynced.discard(path)
    for path in unsynced:
        if os.path.isfile(path):
            data = Path(path).read_bytes()
            Path(path).write_bytes(rng.choice([b"", data[: len(data) // 2], data, bytes(len(data))]))
    for path in reversed(renamed):
        if rng.random() < 0.5:
            before = Path(f"{path}.before-rename")
            before.replace(path) if before.exists() else Path(path).unlink(missing_ok=True)
    for leftover in folder.rglob("*.before-rename"):
        leftover.unlink()


def cut_while(work: Callable[[], None], folder: Path, kill_at: int, rng: random.Random) -> bool:
    """Run `work` in a child that is killed at its `kill_at`-th step; whether it was."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            disk = Disk(folder, kill_at, writer)
            disk.install()
            work()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        notes = pipe.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    lose(folder, notes, rng)
    return os.WIFSIGNALED(status)


def whole(folder: Path) -> tuple[int | None, int | None]:
    """Rounds of the confirmed model and the newest; either is read to its last byte."""
    slots = ModelSlots(folder)
    confirmed, newest = slots.confirmed(), slots.newest()
    if newest is not None:
        assert (newest.weights == newest.facts.round_id).all() and (newest.vectors == newest.facts.round_id).all()
    return (slots.load(confirmed).facts.round_id if confirmed else None, newest.facts.round_id if newest else None)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_device_that_loses_power_has_the_old_model_or_the_new_one(store: Path, seed: int) -> None:
    """At every step, and again at a second cut right after: the confirmed one stands whatever happens."""
    rng, killed = random.Random(seed), 0
    for step in range(STEPS):
        folder = store / f"{step}"
        slots = ModelSlots(folder)
        slots.confirm(slots.receive(model(OLD)))
        slots.receive(model(OLD + 10)) if seed % 2 else None  # a trial that the new one goes over
        killed += cut_while(lambda: ModelSlots(folder).receive(model(NEW)) and None, folder, step, rng)  # noqa: B023
        confirmed, newest = whole(folder)
        assert confirmed == OLD and newest in (OLD, NEW, OLD + 10)
        cut_while(lambda: ModelSlots(folder).receive(model(NEW + 1)) and None, folder, rng.randrange(STEPS), rng)  # noqa: B023
        assert whole(folder)[0] == OLD
        slots.receive(model(NEW + 2))  # and the device goes on
        assert whole(folder) == (OLD, NEW + 2)
    assert killed >= 8, "of the steps of taking up a model at least eight were cut"


@pytest.mark.parametrize("seed", range(8))
def test_power_lost_while_a_model_is_confirmed(store: Path, seed: int) -> None:
    """Confirmed is the old one or the new one; the old one while every use of the new one was cut short."""
    rng = random.Random(1000 + seed)

    def use() -> None:
        slots = ModelSlots(store / f"{step}")
        trial = slots.trial()
        if trial is not None and slots.begin_try(trial):
            slots.confirm(trial)

    for step in range(STEPS):
        folder = store / f"{step}"
        slots = ModelSlots(folder)
        slots.confirm(slots.receive(model(OLD)))
        slots.receive(model(NEW))
        cuts = sum(cut_while(use, folder, step, rng) for _ in range(3))
        confirmed, newest = whole(folder)
        assert confirmed in (OLD, NEW) and newest in (OLD, NEW)
        if cuts == 3:
            assert confirmed == OLD
        slots.receive(model(NEW + 1))
        use()
        assert whole(folder) == (NEW + 1, NEW + 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_first_model_is_whole_or_not_there(store: Path, seed: int) -> None:
    rng = random.Random(2000 + seed)
    for step in range(STEPS):
        folder = store / f"{step}"
        cut_while(lambda: ModelSlots(folder).receive(model(NEW)) and None, folder, step, rng)  # noqa: B023
        assert whole(folder) in ((None, None), (None, NEW))
        ModelSlots(folder).receive(model(NEW + 1))
        assert whole(folder) == (None, NEW + 1)
