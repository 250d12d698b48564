"""F09: disks that fail and files that are not what was written. An old good copy, or a clean stop; never a wrong model.

Failing: the i-th write, sync or rename of every file that is replaced in one step, and of the two databases. Damaged:
a bit, a cut, a page of zeros, nothing, or another version, in each file that is read again after a restart.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import DEVICES, directory, identity
from faults import store_scripts
from onnx_models import TABLE, arrays

from edge_client.inference.model_file import MODEL_FILE, ModelFacts, StoredModel
from edge_client.inference.slots import STATE_FILE, ModelSlots
from edge_client.outbox import Outbox, Upload
from edge_client.progress import Progress
from fedpruneshare import storage
from fedpruneshare.directory import sign_directory
from fedpruneshare.errors import FedPruneShareError, SettingsError, SignatureError, StoreError
from fedpruneshare.keys import Identity
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import Role

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

ROOT = Identity.generate("root")
ROOT_KEY = ROOT.public()[0].signing.hex()
STRACE = shutil.which("strace")
TESTS = Path(__file__).parents[1]


# --------------------------------------------------------------------------- files that are replaced in one step


class Disk:
    """Lets so many calls pass, then fails one by that number; counts them."""

    def __init__(self, fail_at: int, code: int) -> None:
        self.calls, self.fail_at, self.code = 0, fail_at, code

    def call(self, what: str) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.code, f"{os.strerror(self.code)} ({what})")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Every step of `storage.write_atomically` goes through here: open, write, sync, rename, sync of the folder."""
        real = {"open": os.open, "fsync": os.fsync, "replace": os.replace, "fdopen": os.fdopen}

        def guarded(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                self.call(name)
                return real[name](*arguments, **named)  # type: ignore[operator]

            return call

        def fdopen(*arguments: Any, **named: Any) -> Any:
            return _Writer(real["fdopen"](*arguments, **named), self)  # type: ignore[operator]

        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "fsync", "replace"):
                patch.setattr(storage.os, name, guarded(name))
            patch.setattr(storage.os, "fdopen", fdopen)
            yield


class _Writer:
    """A file whose writes the disk counts. Half of what a failing write was given gets there."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        try:
            self._disk.call("write")
        except OSError:
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            raise
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def upload(number: int) -> Upload:
    words = np.arange(number * 100, number * 100 + 400, dtype="<u4")
    return Upload(
        bytes([number] * 32),
        number,
        bytes([number] * 16),
        1,
        20,
        Prg("chacha20"),
        {1: bytes(32)},
        words[:0],
        b"",
        words,
    )


def stored_model(number: int) -> StoredModel:
    weights, vectors = TABLE.flatten(arrays(number))
    facts = ModelFacts("tiny", bytes(32), "accuracy", (8,), False, number, 1, 1.0, 0.5)
    return StoredModel(facts, TABLE, weights, vectors)


def party_settings(folder: Path) -> PartySettings:
    return PartySettings(str(folder / "key.json"), str(folder / "directory.json"), ROOT_KEY, str(folder / "store"))


def party_files(folder: Path) -> Party:
    """A device's key and directory on disk."""
    (folder / "store").mkdir(parents=True, exist_ok=True)
    identity(DEVICES[0]).save(folder / "key.json")
    (folder / "directory.json").write_bytes(sign_directory(directory(), ROOT))
    return Party.load(party_settings(folder), Role.DEVICE)


@dataclass(frozen=True)
class Kept:
    """Something that is kept: how it begins, what changes it from the old to the new, and how it is read again."""

    begin: Callable[[Path], Any]
    change: Callable[[Path], Any]
    read: Callable[[Path], Any]
    #: What may be there after a change that failed, besides old and new.
    also: tuple[Any, ...] = ()


def words_held(folder: Path) -> Any:
    held = Outbox(folder).held()
    return None if held is None else held.words.tolist()


def model_held(folder: Path) -> Any:
    found = ModelSlots(folder).newest()
    return None if found is None else found.weights.tobytes()


def confirmed(folder: Path, number: int) -> None:
    slots = ModelSlots(folder)
    slots.confirm(slots.receive(stored_model(number)))


def adopt(folder: Path) -> None:
    Party.load(party_settings(folder), Role.DEVICE).adopt(sign_directory(directory(version=2), ROOT))


KEPT = {
    "outbox": Kept(lambda at: Outbox(at).put(upload(1)), lambda at: Outbox(at).put(upload(2)), words_held),
    "progress": Kept(
        lambda at: Progress(at).finish(3), lambda at: Progress(at).finish(9), lambda at: Progress(at).reached.round_id
    ),
    "model slots": Kept(lambda at: confirmed(at, 1), lambda at: confirmed(at, 2), model_held),
    "directory": Kept(party_files, adopt, lambda at: Party.load(party_settings(at), Role.DEVICE).directory.version),
    "key file": Kept(
        lambda at: identity(DEVICES[0]).save(at / "key.json"),
        lambda at: identity(DEVICES[1]).save(at / "key.json"),
        lambda at: Identity.load(at / "key.json").ident,
    ),
}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", KEPT)
def test_a_change_that_fails_leaves_the_old_or_the_new(name: str, code: int, tmp_path: Path) -> None:
    kept, failed = KEPT[name], 0
    (tmp_path / "whole").mkdir()
    kept.begin(tmp_path / "whole")
    old = kept.read(tmp_path / "whole")
    kept.change(tmp_path / "whole")
    new = kept.read(tmp_path / "whole")
    assert old != new
    for number in range(1, 60):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept.begin(folder)
        disk = Disk(number, code)
        with disk.at_work(), suppress(OSError, FedPruneShareError):
            kept.change(folder)
        found = kept.read(folder)
        assert found in (old, new), number
        kept.change(folder)  # the disk takes it again
        assert kept.read(folder) == new
        assert not list(folder.rglob("*.part"))
        if disk.calls < number:
            break
        failed += 1
    print(f"{name}: {failed} calls failed")
    assert 4 < failed < 59


# --------------------------------------------------------------------------- databases on a disk that fails


def check_cases(folder: Path, expected: dict[str, list[Any]]) -> Counter[str]:
    """What each process said is kept is there, to the byte, and nothing else is."""
    met = Counter[str]()
    for code in sorted(folder.glob("*.code")):
        role, log = code.stem.partition("-")[0], code.with_suffix(".log").read_text()
        lines, steps = log.splitlines(), expected[role]
        assert code.read_text() in ("0", "3", "4"), f"{code.stem}: {code.read_text()}\n{log}"
        met["failed" if any(not line.startswith("kept") for line in lines) else "whole"] += 1
        done = max((int(line.split()[1]) for line in lines if line.startswith("kept")), default=0)
        assert (done == len(steps) - 1) == (code.read_text() == "0")
        make, _, state = store_scripts.SCRIPTS[role]
        store = make(code.with_suffix(""))
        found = state(store)
        store.close()
        assert found in steps[done : done + 2], f"{code.stem}: after step {done}\n{log}"
    return met


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The states of whole stores, step by step."""
    return {role: store_scripts.states(role, tmp_path_factory.mktemp(role)) for role in store_scripts.SCRIPTS}


def sweep(folder: Path, *limits: int, under: tuple[str, ...] = ()) -> None:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [*under, sys.executable, "-m", "faults.store_scripts", str(folder), *map(str, limits)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what is asked of the disk counts here, not how long it takes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def test_files_that_may_not_grow(quick_disk: Path, expected: dict[str, list[Any]]) -> None:
    """Thirty places in each log where the next byte does not fit, until there is room again."""
    limits = [8192 + 4096 * place for place in range(30)]
    sweep(quick_disk / "cases", *limits)
    met = check_cases(quick_disk / "cases", expected)
    print(dict(met))
    assert met.total() == 2 * len(limits)
    assert met["failed"] > len(limits) / 2


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_calls_that_fail(quick_disk: Path, expected: dict[str, list[Any]]) -> None:
    """The i-th sync of a database fails with EIO, and the 6·i-th write says that the disk is full."""
    met = Counter[str]()
    for number in range(1, 37, 2):
        faults = (f"fdatasync:error=EIO:when={number}", f"pwrite64:error=ENOSPC:when={6 * number}")
        injected = [part for fault in faults for part in ("-e", f"inject={fault}")]
        trace = (str(STRACE), "-f", "-qq", "-o", str(quick_disk / "trace"), "-e", "trace=fdatasync,pwrite64", *injected)
        sweep(quick_disk / str(number), 0, under=trace)
        met += check_cases(quick_disk / str(number), expected)
    print(dict(met))
    assert met["failed"] > 24


# --------------------------------------------------------------------------- files that are damaged


def damages(data: bytes, other: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Ten ways in which a file comes back wrong. `other`: of another version, or of somebody else."""
    for _ in range(3):
        at = rng.randrange(len(data))
        yield f"bit at {at}", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    for size in (len(data) // 3, len(data) - 1, 1):
        yield f"cut to {size}", data[:size]
    page = min(4096, len(data))
    at = rng.randrange(len(data) - page + 1) // page * page
    yield f"zeros at {at}", data[:at] + bytes(page) + data[at + page :]
    yield "empty", b""
    yield "another version", other
    yield "all ones", b"\xff" * len(data)


def check_damage(path: Path, other: bytes, read: Callable[[], Any], good: tuple[Any, ...]) -> Counter[str]:
    """Each damage: one of the good states, or a stop by name; and the whole file is read again afterwards."""
    whole, met, rng = path.read_bytes(), Counter[str](), random.Random(path.name)
    first = read()
    assert first in good
    for name, data in damages(whole, other, rng):
        path.write_bytes(data)
        try:
            found = read()
        except (SettingsError, SignatureError, StoreError) as error:
            assert str(error)
            met[type(error).__name__] += 1
        else:
            assert found in good, f"{path.name}, {name}"
            met["good copy"] += 1
        path.write_bytes(whole)
    assert read() == first
    print(f"{path.name}: {dict(met)}")
    return met


def test_damaged_outbox(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(upload(1))
    path = tmp_path / "upload.msgpack"
    old = path.read_bytes()
    outbox.put(upload(2))
    check_damage(path, old, lambda: words_held(tmp_path), (upload(2).words.tolist(), upload(1).words.tolist(), None))
    path.write_bytes(old)
    assert outbox.get(upload(2).plan) is None  # an older upload is not taken for that of another plan


@pytest.mark.parametrize("lost", ["progress-1", "progress-2"])
def test_damaged_progress(lost: str, tmp_path: Path) -> None:
    """Either copy is enough; without both the device stops, and opens no round twice."""
    Progress(tmp_path).finish(3)
    old = (tmp_path / lost).read_bytes()
    Progress(tmp_path).finish(9)
    check_damage(tmp_path / lost, old, lambda: Progress(tmp_path).reached.round_id, (9,))
    for name in ("progress-1", "progress-2"):
        (tmp_path / name).write_bytes(b"\0" * 20)
    with pytest.raises(SettingsError, match="damaged"):
        Progress(tmp_path)


@pytest.mark.parametrize("name", [f"model-a/{MODEL_FILE}", f"model-b/{MODEL_FILE}", STATE_FILE])
def test_damaged_model_slots(name: str, tmp_path: Path) -> None:
    """One confirmed and one on trial: whichever is damaged, the other one is run, or none; never a third."""
    slots, models = ModelSlots(tmp_path), [stored_model(number) for number in (1, 2)]
    slots.confirm(slots.receive(models[0]))
    old = (tmp_path / STATE_FILE).read_bytes()
    slots.receive(models[1])
    other = (
        old
        if name == STATE_FILE
        else (tmp_path / f"model-{'b' if 'model-a' in name else 'a'}" / MODEL_FILE).read_bytes()
    )
    good = (*(model.weights.tobytes() for model in models), None)
    check_damage(tmp_path / name, other, lambda: model_held(tmp_path), good)


@pytest.mark.parametrize("name", ["key.json", "directory.json", "store/directory-in-force-key.json"])
def test_damaged_keys_and_directories(name: str, tmp_path: Path) -> None:
    """A party starts with its own key and a directory that the root signed, or does not start."""
    party_files(tmp_path).adopt(sign_directory(directory(version=2), ROOT))
    other = tmp_path / "other.json"
    Identity.generate(DEVICES[0]).save(other)
    others = {
        "key.json": other.read_bytes(),
        "directory.json": sign_directory(directory(version=9), identity("coordinator")),
    }

    def start() -> Any:
        party = Party.load(party_settings(tmp_path), Role.DEVICE)
        return party.ident, party.identity.public(), party.directory.version

    good = tuple((DEVICES[0], identity(DEVICES[0]).public(), version) for version in (1, 2))
    met = check_damage(tmp_path / name, others.get(name, b"{}"), start, good)
    assert met["SettingsError"] + met["SignatureError"] >= 7


def filled(role: str, folder: Path, steps: int) -> None:
    """A store after so many steps, its log not yet in the database."""
    command = (
        "import os, sys\nfrom pathlib import Path\nfrom faults import store_scripts\n"
        "make, steps, _ = store_scripts.SCRIPTS[sys.argv[1]]\nstore = make(Path(sys.argv[2]))\n"
        "[step(store) for step in steps[: int(sys.argv[3])]]\nos._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    arguments = [sys.executable, "-c", command, role, str(folder), str(steps)]
    subprocess.run(arguments, env=environment, timeout=60, check=True)


@pytest.mark.parametrize(("role", "steps"), [("aggregator", 9), ("coordinator", 11)])
@pytest.mark.parametrize("part", ["", "-wal"])
def test_damaged_databases(role: str, steps: int, part: str, tmp_path: Path, expected: dict[str, list[Any]]) -> None:
    """Killed in the middle, then damaged. A log that is cut is a commit that was not; a bit is noticed, or nothing.

    A bit in the log may cost the last commit, and one in the mark of the commit before it both: no more, in silence.
    """
    filled(role, tmp_path / "whole", steps)
    name, (make, _, state) = store_scripts.ABOUT[role], store_scripts.SCRIPTS[role]
    if not part:
        make(tmp_path / "whole").close()  # all of it in the database itself
    data, rng, met = (tmp_path / "whole" / f"{name}{part}").read_bytes(), random.Random(role), Counter[str]()
    cases = [("not at all", data), *damages(data, b"SQLite format 3\0" + bytes(4080), rng)]
    cases += [case for _ in range(12) for case in list(damages(data, b"", rng))[:3]]
    for number, (what, damaged) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / f"{name}{part}").write_bytes(damaged)
        try:
            store = make(folder)
            found = state(store)
            store.close()
        except (SettingsError, StoreError) as error:
            assert number, error
            met[type(error).__name__] += 1
            continue
        most_lost = 0 if number == 0 else 2 if part and what.startswith("bit") else steps
        assert found in expected[role][steps - most_lost : steps + 1], f"{role}{part}: {what}"
        met["a state that was"] += 1
    print(f"{role}{part}: {dict(met)}")
    assert met["a state that was"] and met["StoreDamagedError"] > 3


def test_a_damaged_journal_is_written_again(tmp_path: Path) -> None:
    """`rounds.jsonl` is for people: the database says what it says."""
    make, steps, _ = store_scripts.SCRIPTS["coordinator"]
    store = make(tmp_path)
    for step in steps:
        step(store)
    store.close()
    path = tmp_path / "rounds.jsonl"
    whole = path.read_bytes()
    assert [json.loads(line)["round"] for line in whole.splitlines()] == [1, 2]
    for _, data in damages(whole, b"{}", random.Random(1)):
        path.write_bytes(data)
        store = make(tmp_path)
        store.write_journal()
        store.close()
        assert path.read_bytes() == whole


def test_what_is_compared_is_not_all_the_same() -> None:
    assert len({hashlib.sha256(stored_model(number).weights.tobytes()).digest() for number in range(3)}) == 3
