"""F13: model files of others. Refused by name, nothing outside opened, this process lives, the child stays small."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hostile_models import CANARY, DENSE, HAND_MADE, SPARSE, growing, mutated, slow
from onnx_models import TABLE, arrays, template

from edge_client.inference.predicting import Predictor
from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.contained_model import ChildLimits, ContainedModel
from fedpruneshare.sparse.local_model import LocalModel
from fedpruneshare.sparse.model_fence import check_model
from fedpruneshare.sparse.onnx_codec import build_model, decode_update, read_model
from fedpruneshare.sparse.onnx_writer import write_model, write_update
from fedpruneshare.sparse.update import SparseUpdate

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MUTATED = 2_000
#: With its libraries a child has some 150 MiB of addresses; 100 more keep all of it below 256 MiB.
SMALL = ChildLimits(memory_bytes=100 << 20, request_s=10.0)
CHILD_MIB = 256
LARGEST = 16 << 20
X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
_PLACES, _VALUES = np.arange(28), np.ones(28, np.float32)
UPDATE = write_update(SparseUpdate(7, TABLE.digest(), 1, 320, _PLACES, _VALUES, _PLACES, _VALUES), TABLE)

#: Every function that takes the bytes of a model file.
DOORS: dict[str, Callable[[bytes], object]] = {
    "fence": check_model,
    "model": lambda data: read_model(data, TABLE, LARGEST),
    "update": lambda data: decode_update(data, TABLE, LARGEST),
    "template": lambda data: build_model(data, arrays()),
    "this process": lambda data: LocalModel().load(data),
}


# --------------------------------------------------------------------------- who opens what


class Opened:
    """Names that this interpreter opens, sockets and processes it makes, while `is_on`. A hook cannot be taken off."""

    def __init__(self) -> None:
        self.is_on, self.events = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and event in (
            "open",
            "socket.connect",
            "subprocess.Popen",
            "os.system",
            "ctypes.dlopen",
            "import",
        ):
            self.events.append(f"{event} {arguments[:1]}")


@pytest.fixture(scope="module")
def interpreter() -> Opened:
    return Opened()


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Everything that opens or reads a file of a folder, in any language, as the kernel tells it (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, os.fsencode(folder), 0x1 | 0x20) >= 0  # IN_ACCESS, IN_OPEN
    seen: list[int] = []
    try:
        yield seen
        with suppress(BlockingIOError):
            seen.append(len(os.read(descriptor, 65_536)))
    finally:
        os.close(descriptor)


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What hostile files name lies in the working folder, ready to be read."""
    folder = tmp_path / "bait"
    folder.mkdir()
    (folder / CANARY).write_bytes(bytes(4096))
    monkeypatch.chdir(folder)
    return folder


def test_the_watch_sees_what_a_library_opens(bait: Path) -> None:
    """The same file without a fence, from a path: onnxruntime goes and reads what the model names."""
    (bait / "model.onnx").write_bytes(HAND_MADE["external_initializer"][0])
    with watched(bait) as seen, suppress(Exception):
        onnxruntime.InferenceSession(str(bait / "model.onnx"), providers=["CPUExecutionProvider"])
    assert seen


def test_hand_made_files_are_refused_at_every_door(bait: Path, interpreter: Opened) -> None:
    assert len(HAND_MADE) >= 30
    write_model(template(), arrays(), {})
    with watched(bait) as seen:
        interpreter.is_on, interpreter.events = True, []
        try:
            for data, text in HAND_MADE.values():
                for read in DOORS.values():
                    with pytest.raises(ModelFileError, match=text if read is check_model else None):
                        read(data)
        finally:
            interpreter.is_on = False
    assert interpreter.events == []
    assert seen == []


def test_hand_made_files_never_reach_the_process_behind_the_fence(bait: Path) -> None:
    with watched(bait) as seen, ContainedModel(SMALL) as model:
        for data, _ in HAND_MADE.values():
            with pytest.raises(ModelFileError):
                model.load(data)
    assert seen == []


def test_a_device_names_the_hostile_file(tmp_path: Path) -> None:
    for data, _ in HAND_MADE.values():
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(ModelFileError, match=r"model\.onnx does not load"):
            Predictor(tmp_path / "model.onnx")


# --------------------------------------------------------------------------- mutated files


def hunt(count: int, seed: int) -> tuple[int, int]:
    """(refused by the fence, passed it) of so many mutated files; what passes is loaded and run in a small process."""
    rng = random.Random(seed)
    bases = [template(), DENSE, SPARSE, UPDATE]
    refused, doors = 0, [read for name, read in DOORS.items() if name not in ("fence", "this process")]
    with ContainedModel(SMALL) as model:
        for _ in range(count):
            data = mutated(rng.choice(bases), rng.choice(bases), rng)
            try:
                check_model(data)
            except ModelFileError:
                refused += 1
                for read in doors:
                    with pytest.raises(ModelFileError):
                        read(data)
                continue
            for read in (*doors, lambda data: (model.load(data), model.run(X))):
                with suppress(ModelFileError):
                    read(data)
    return refused, count - refused


def check_hunt(count: int, seed: int, bait: Path, interpreter: Opened) -> None:
    write_model(template(), arrays(), {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watched(bait) as seen:
        interpreter.is_on, interpreter.events = True, []
        try:
            refused, passed = hunt(count, seed)
        finally:
            interpreter.is_on = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"seed {seed}: {refused} of {count} refused, {passed} harmless, {grown} MiB more")
    assert refused >= 0.7 * count
    assert grown < 64
    assert seen == []
    started = ("subprocess.Popen", "open (-1", "open (3", "open ('/dev/null'", "open ('/tmp/fps-model")
    assert [event for event in interpreter.events if not event.startswith(started)] == []


def test_mutated_files(bait: Path, interpreter: Opened) -> None:
    check_hunt(MUTATED, 13, bait, interpreter)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_mutated_files_for_long(bait: Path, interpreter: Opened) -> None:
    check_hunt(10 * MUTATED, random.SystemRandom().randrange(2**32), bait, interpreter)


# --------------------------------------------------------------------------- what runs away


@pytest.mark.parametrize(
    "data", [growing(24), growing(28), growing(40), slow(5000)], ids=["2^24", "2^28", "2^40", "minutes"]
)
def test_what_runs_away_ends_with_its_process(data: bytes) -> None:
    """The fence cannot see how large a result grows: the kernel bounds it, whoever asked is told, and goes on."""
    with ContainedModel(ChildLimits(SMALL.memory_bytes, 2.0)) as model:
        model.load(SPARSE)
        assert model._child is not None
        size = int(Path(f"/proc/{model._child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        assert size + SMALL.memory_bytes <= CHILD_MIB << 20
        with pytest.raises(ModelFileError):
            model.load(data)
            model.run(X)
        model.load(SPARSE)
        assert len(model.run(X)) == 5
