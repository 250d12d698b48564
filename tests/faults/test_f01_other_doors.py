"""F01, the other doors: files and blobs that a role reads, damaged and rewritten. Errors by name, or the old one."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, keys
from faults import mutations
from onnx_models import TABLE, arrays, template

from aggregator.settings import AggregatorSettings
from coordinator.settings import CoordinatorSettings
from edge_client.adaptation.calibration import Calibration, LinkRate, load_calibration
from edge_client.adaptation.predictions import PredictionLog
from edge_client.byte_ledger import ByteLedger
from edge_client.inference.model_file import MODEL_FILE, ModelFacts, StoredModel, load_model, save_model
from edge_client.inference.predicting import read_inputs
from edge_client.inference.slots import STATE_FILE, ModelSlots
from edge_client.outbox import Outbox, Upload
from edge_client.progress import Progress
from edge_client.settings import DeviceSettings
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.directory import DeviceEntry, parse_directory, sign_directory
from fedpruneshare.errors import DataError, ModelFileError, PeerError, SettingsError, SignatureError
from fedpruneshare.keys import Identity
from fedpruneshare.link import Delivery
from fedpruneshare.messages import DirectoryChunk, Segment, digest
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.settings import load_settings, render_toml
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sparse.model_coding import SegmentReader, SegmentWriter
from fedpruneshare.topics import Role
from fedpruneshare.trust import DirectoryWatcher
from firmware_configs.provision import authority, bundles, enrolment
from testbed.scenario import load_scenario

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

TRIES = 400
GROWTH_MIB = 64
ROOT = Identity.generate("root")
ROOT_KEY = ROOT.public()[0].signing.hex()
Damage = Callable[[bytes, bytes, random.Random], bytes]
RNG = np.random.default_rng(0)


# --------------------------------------------------------------------------- damage by form


def json_field(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Well-formed JSON, one value somewhere another one."""
    tree = json.loads(data)
    node = tree
    while rng.random() < 0.7:
        inner = [
            value
            for value in (node.values() if isinstance(node, dict) else node)
            if value and isinstance(value, (dict, list))
        ]
        if not inner:
            break
        node = rng.choice(inner)
    place = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    blow = rng.randrange(4)
    if blow == 0:
        del node[place]
    elif blow == 1 and isinstance(node, dict):
        node["surplus"] = 1
    else:
        value = mutations.hostile_value(rng)
        node[place] = value.hex() if isinstance(value, bytes) else value
    with suppress(TypeError, ValueError):
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    return data[:-1]


def toml_line(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One line of a settings file left out, doubled, or with another value."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition(" = ")[0]
    values = (
        "-1", "1e999", "nan", "1" * 5000, '"x"', "[[[[1]]]]", "true", '"\\u0000"', "{a = 1}", "0x7fffffffffffffff",
        "1979-05-27", '""', "[" * 3000, '"' + "y" * 10_000 + '"', "'''", "9223372036854775808",
    )  # fmt: skip
    blow = rng.randrange(4)
    if blow == 0:
        del lines[at]
    elif blow == 1:
        lines.insert(at, rng.choice(lines))
    else:
        lines[at] = f"{name} = {rng.choice(values)}"
    return "\n".join(lines).encode()


def number_text(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A number in a text made another one: shapes, lengths, counts."""
    found = list(re.finditer(rb"\d+", data[:400]))
    if not found:
        return mutations.flip(data, rng)
    at = rng.choice(found)
    return data[: at.start()] + rng.choice([b"-1", b"0", b"9" * 18, b"1e9", b"99999999999", b""]) + data[at.end() :]


# --------------------------------------------------------------------------- the doors


@dataclass(frozen=True)
class Door:
    """Good bytes, who reads them, which errors may come of it, and how they are damaged besides bytewise."""

    good: tuple[bytes, ...]
    read: Callable[[bytes], Any]
    errors: tuple[type[Exception], ...]
    damage: tuple[Damage, ...] = ()
    #: After the damage: what a knowing attacker would do, sign or count again.
    finish: Callable[[bytes], bytes] = field(default=lambda data: data)


def file_of(path: Path, read: Callable[[Path], Any], mode: int = 0o600) -> Callable[[bytes], Any]:
    def door(data: bytes) -> Any:
        path.write_bytes(data)
        path.chmod(mode)
        return read(path)

    return door


def directory_doors() -> dict[str, Door]:
    whole = directory(
        revoked={"ab" * 8: "device-77"},
        devices={"device-00": DeviceEntry(keys("device-00"))},
        issued_at=5,
        expires_at=2**31,
    )
    data = sign_directory(whole, ROOT)
    body = data.partition(b"\n")[2]

    def use(data: bytes) -> None:
        found = parse_directory(data, ROOT_KEY)
        for role, name in (
            (Role.DEVICE, "device-00"),
            (Role.AGGREGATOR, AGGREGATORS[0]),
            (Role.COORDINATOR, "coordinator"),
        ):
            with suppress(SignatureError):
                found.sealing_keys(role, name, 2**33)
            with suppress(SignatureError):
                found.signing_key(role, name, identity(name).public()[0].key_id, 2**33)

    def sign(body: bytes) -> bytes:
        domain = b"fedpruneshare/directory/1\0"
        return json.dumps({"signature": ROOT.sign(domain + body).hex()}).encode() + b"\n" + body

    errors = (SettingsError, SignatureError)
    return {
        "directory": Door((data,), use, errors, (number_text,)),
        "directory, signed": Door((body,), use, errors, (json_field,), sign),
    }


SETTINGS: dict[str, tuple[type, str]] = {
    "aggregator settings": (AggregatorSettings, "[floors]\nmin_devices = 3\nfreeze_quorum = 0\n"),
    "coordinator settings": (
        CoordinatorSettings,
        '[rounds]\ncount = 3\ndeadline_s = 5.0\n[pruning]\nrungs = [0.2, 1.0]\n[sharing]\nfield = "F31"\n',
    ),
    "device settings": (
        DeviceSettings,
        '[task]\nname = "hapt"\nindex = 0\ndevices = 3\n[limits]\nrung_max = 2\n[link]\nkeepalive_s = 60\n',
    ),
}


def settings_doors(folder: Path) -> dict[str, Door]:
    """The three roles' settings, a scenario, a calibration."""
    doors = {}
    for name, (kind, tables) in SETTINGS.items():
        head = 'store = "s"\nbundle = "b"\n' if kind is CoordinatorSettings else 'store = "s"\n'
        text = f'{head}[party]\nkey_file = "k"\ndirectory = "d"\nroot_key = "{ROOT_KEY}"\n{tables}'
        load_settings_of = file_of(folder / "settings.toml", lambda path, kind=kind: load_settings(path, kind))
        doors[name] = Door((text.encode(),), load_settings_of, (SettingsError,), (toml_line, number_text))
    scenario = (Path(__file__).parents[2] / "testbed/scenarios/demo.toml").read_bytes()
    scenario_of = file_of(folder / "scenario.toml", lambda path: load_scenario(str(path)))
    doors["scenario"] = Door((scenario,), scenario_of, (SettingsError,), (toml_line, number_text))
    measured = Calibration("pi4", "hapt", 32, {"1.0": 0.1}, 1e6, 1e6, {"aggregator-1": LinkRate(1e6, 0.01)}, 2.0, 5.0)
    calibration_of = file_of(folder / "calibration.toml", load_calibration)
    doors["calibration"] = Door(
        (render_toml(measured).encode(),), calibration_of, (SettingsError,), (toml_line, number_text)
    )
    return doors


def key_doors(folder: Path) -> dict[str, Door]:
    """Key files, requests, certificates, bundles of the provisioning."""
    path = folder / "key.json"
    stored = []
    for hybrid in (False, True):
        Identity.generate("device-00", hybrid=hybrid).rotated().save(path)
        stored.append(path.read_bytes())
    applicant = enrolment.Applicant("lab", "device-00", Role.DEVICE)
    request, _ = enrolment.make_request(folder / "enrol", applicant)
    csr = json.loads(json.loads(request)["request"])["csr"].encode()
    root = authority.Authority.create("lab")
    certificate = root.issue_client("device-00", Role.DEVICE).certificate
    archive = bundles._tar("device-00", {"key.json": b"{}", "conf/settings.toml": b"x"})
    return {
        "key file": Door(tuple(stored), file_of(path, Identity.load), (SettingsError,), (json_field,)),
        "key file open to all": Door(tuple(stored), file_of(path, Identity.load, 0o644), (SettingsError,)),
        "enrol request": Door((request,), enrolment._read, (SettingsError,), (json_field,)),
        "certificate request": Door((csr,), authority.read_request, (SettingsError,)),
        "certificate": Door((certificate,), authority.read_certificate, (SettingsError,)),
        "provisioning bundle": Door(
            (archive,), file_of(folder / "b.tar", bundles.read_bundle), (SettingsError,), (number_text,)
        ),
    }


def model_doors(folder: Path) -> dict[str, Door]:
    """Bundle, model segments, the stored model, its slots, input files."""
    weights, vectors = TABLE.flatten(arrays())
    inputs, targets = RNG.normal(size=(20, 8)).astype(np.float32), RNG.integers(0, 4, 20)
    whole = Bundle(Manifest("tiny", TABLE, (8,), 20, 4, 0, "fixture"), template(), weights, vectors, inputs, targets)
    facts = ModelFacts("tiny", bytes(32), "accuracy", (8,), False, 3, 1, 1.0, 0.5)
    stored = StoredModel(facts, TABLE, weights, vectors)
    save_model(folder, stored)
    slots = ModelSlots(folder / "slots")
    slots.confirm(slots.receive(stored))
    arrays_of = []
    for save in (np.save, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, inputs)  # type: ignore[operator]
        arrays_of.append(buffer.getvalue())
    csv = "\n".join(",".join(map(str, row)) for row in inputs).encode()
    doors = {
        "bundle": Door((whole.encode(),), Bundle.decode, (ModelFileError,), (number_text,)),
        "stored model": Door(
            ((folder / MODEL_FILE).read_bytes(),),
            file_of(folder / MODEL_FILE, lambda path: load_model(path.parent)),
            (ModelFileError,),
            (lambda data, other, rng: mutations.other_field(data, rng),),
        ),
        "model slots": Door(
            ((folder / "slots" / STATE_FILE).read_bytes(),),
            file_of(folder / "slots" / STATE_FILE, lambda path: ModelSlots(path.parent).newest()),
            (),
            (json_field,),
        ),
    }
    for suffix, data in (("npy", arrays_of[0]), ("npz", arrays_of[1]), ("csv", csv)):
        read = file_of(folder / f"x.{suffix}", lambda path: read_inputs(path, (8,)))
        doors[f"input .{suffix}"] = Door((data,), read, (DataError,), (number_text,))
    return doors | segment_doors()


def segment_doors() -> dict[str, Door]:
    """Model segments as the coordinator codes them, narrow ones too; the plan says how much each may hold."""
    codes = RNG.normal(size=TABLE.weight_count).astype("<f2").view(np.uint16)
    vectors = RNG.normal(size=TABLE.vector_count).astype(np.float32)
    places = np.sort(RNG.permutation(TABLE.weight_count)[:40])
    rest = np.setdiff1d(np.arange(TABLE.weight_count), places)
    writer = SegmentWriter(TABLE)
    blobs = [writer.write(places, codes[places], vectors), writer.write(rest, codes[rest], np.empty(0, np.float32))]
    segments = [
        Segment(count, elements, 1, 0.5, bytes(32), 1, bytes(32))
        for count, elements in ((40, TABLE.vector_count), (rest.size, 0))
    ]

    def first(blob: bytes) -> None:
        SegmentReader(TABLE).read(blob, segments[0])

    def second(blob: bytes) -> None:
        reader = SegmentReader(TABLE)
        reader.read(blobs[0], segments[0])
        reader.read(blob, segments[1])

    return {
        "model segment": Door((blobs[0],), first, (PeerError,)),
        "last model segment": Door((blobs[1],), second, (PeerError,)),
    }


def state_doors(folder: Path) -> dict[str, Door]:
    """What a device keeps beside its model: outbox, progress, ledger, corrections. Damage is its own, not an attack."""
    upload = Upload(
        bytes(32), 3, bytes(16), 1, 20, Prg("chacha20"), {1: bytes(32)}, np.zeros(0, "<u4"), b"", np.ones(300, "<u4")
    )
    outbox = Outbox(folder / "outbox")
    outbox.put(upload)
    outbox.progress.finish(2)
    kept = (folder / "outbox" / "upload.msgpack").read_bytes()
    progress = (folder / "outbox" / "progress-1").read_bytes()

    def held(path: Path) -> None:
        found = Outbox(path.parent).held()
        assert found is None or found.words.dtype in (np.dtype("<u4"), np.dtype("<u8"))

    def lone(path: Path) -> Any:
        (path.parent / "progress-2").unlink(missing_ok=True)
        return Progress(path.parent)

    def other(data: bytes, _: bytes, rng: random.Random) -> bytes:
        return mutations.other_field(data, rng)

    return {
        "outbox": Door((kept,), file_of(folder / "outbox" / "upload.msgpack", held), ()),
        "outbox, counted again": Door(
            (kept[32:],), file_of(folder / "outbox" / "upload.msgpack", held), (), (other,),
            lambda data: hashlib.sha256(data).digest() + data,
        ),
        "progress": Door(
            (progress,), file_of(folder / "progress" / "progress-1", lone), (SettingsError,), (number_text,)
        ),
        "ledger": Door(
            (b'{"round_id": 3, "status": "started", "ledger_bytes": 0}',),
            file_of(folder / "ledger.partial", lambda path: ByteLedger(path.parent)),
            (), (json_field,),
        ),
        "corrections": Door(
            (b'{"schema": 1, "corrections": {"train": {"ratio": 1.5, "recent": [1.0, 1.2]}}}',),
            file_of(folder / "corrections.json", lambda path: PredictionLog(path.parent)),
            (), (json_field,),
        ),
    }  # fmt: skip


def every_door(folder: Path) -> dict[str, Door]:
    for name in ("enrol", "progress", "slots"):
        (folder / name).mkdir(exist_ok=True)
    return directory_doors() | settings_doors(folder) | key_doors(folder) | model_doors(folder) | state_doors(folder)


NAMES = [
    "directory", "directory, signed", *SETTINGS, "scenario", "calibration", "key file", "key file open to all",
    "enrol request", "certificate request", "certificate", "provisioning bundle", "bundle", "stored model",
    "model slots", "input .npy", "input .npz", "input .csv", "model segment", "last model segment", "outbox",
    "outbox, counted again", "progress", "ledger", "corrections",
]  # fmt: skip


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Door]:
    found = every_door(tmp_path_factory.mktemp("doors"))
    assert list(found) == NAMES
    return found


# --------------------------------------------------------------------------- the attack


def knock(door: Door, count: int, rng: random.Random) -> Counter[str]:
    """How often each error was raised. Any other error ends the test, with the bytes that did it."""
    met = Counter[str]()
    for number in range(count):
        data, other = rng.choice(door.good), rng.choice(door.good)
        damage: Damage = mutations.damaged
        if door.damage and number % 2:
            damage = rng.choice(door.damage)
        data = door.finish(damage(data, other, rng))
        try:
            door.read(data)
        except door.errors as error:
            assert str(error)
            met[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {data[:2000]!r}") from error
        else:
            met["read"] += 1
    return met


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_by_name(doors: dict[str, Door], name: str) -> None:
    door, process = doors[name], psutil.Process()
    if name != "key file open to all":
        for data in door.good:
            door.read(door.finish(data))
    before = process.memory_info().rss
    met = knock(door, TRIES, random.Random(name))
    print(f"{name}: {dict(met)}")
    assert process.memory_info().rss - before < GROWTH_MIB << 20
    assert not door.errors or met["read"] < 0.9 * TRIES


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_by_name_for_long(doors: dict[str, Door], name: str) -> None:
    print(f"{name}: {dict(knock(doors[name], 50 * TRIES, random.SystemRandom()))}")


# --------------------------------------------------------------------------- a directory that comes in pieces


async def test_directory_chunks(tmp_path: Path) -> None:
    """From the coordinator, whose signature is in order: only what the root signed, whole and newer, is adopted."""
    settings = PartySettings("key.json", str(tmp_path / "directory.json"), ROOT_KEY, str(tmp_path))
    (tmp_path / "directory.json").write_bytes(sign_directory(directory(), ROOT))
    party = Party(identity(DEVICES[0]), directory(), Role.DEVICE, settings)
    coordinator = Party(identity("coordinator"), directory(), Role.COORDINATOR)
    rng, watcher = random.Random(6), DirectoryWatcher(party)
    newer = sign_directory(directory(version=2), ROOT)
    forged = sign_directory(directory(version=3, min_devices=9), Identity.generate("root"))
    elsewhere = sign_directory(directory(version=4, federation="lab2"), ROOT)
    process = psutil.Process()
    before = process.memory_info().rss
    for number in range(TRIES):
        whole = (newer, forged, elsewhere)[number % 3]
        data = mutations.damaged(whole, newer, rng) if whole is newer else whole
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 3)))
        pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        name = digest(data) if rng.random() < 0.8 else rng.randbytes(32)
        for index in rng.sample(range(len(pieces)), len(pieces)):
            chunks = len(pieces) if rng.random() < 0.9 else rng.choice([1, 65_536])
            message = DirectoryChunk(rng.choice([2, 3, 2**47]), name, index, chunks, pieces[index])
            await watcher.on_chunk(Delivery("fps/v1/lab/directory/0", coordinator.sign(message), True, None))
    assert party.directory == directory()
    assert process.memory_info().rss - before < GROWTH_MIB << 20
    await watcher.on_chunk(
        Delivery("fps/v1/lab/directory/0", coordinator.sign(DirectoryChunk(2, digest(newer), 0, 1, newer)), True, None)
    )
    assert party.directory.version == 2
