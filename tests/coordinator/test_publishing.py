"""What is retained on the control broker; nothing older ever overwrites it (docs/protocol.md §2, §5.11, §7.1)."""

from __future__ import annotations

import asyncio
import math
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import DEVICES, directory, identity, plan

from coordinator.publishing import Announcement, Publisher
from coordinator.seeds import SeedLetters
from coordinator.store import RoundStore
from fedpruneshare.directory import DeviceEntry, Directory, party_keys, write_directory
from fedpruneshare.errors import SignatureError
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink, Weather
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import ChecksumSeed, DirectoryChunk, ModelChunk, Outcome, RoundPhase, Suite, digest, encode
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.sealing import Identity, checksum_seed_context
from fedpruneshare.sharing.checksum import commitment
from fedpruneshare.topics import Role
from fedpruneshare.trust import watch_directory

SEED = bytes(range(32))
LIMITS = LinkLimits(publish_timeout_s=30.0, reconnect_min_s=0.01, reconnect_max_s=0.05)
ROOT = Identity.generate("root")


class Desk:
    """A control broker, the coordinator's publisher on it, and what a newcomer would find there."""

    def __init__(self, folder: Path, weather: Weather | None = None, found: Directory | None = None) -> None:
        self.broker = MemoryBroker(random.Random(1), time.monotonic, weather or Weather())
        self.link = MemoryLink(self.broker, "coordinator", LIMITS)
        self.store = RoundStore(folder / "store", bytes(32))
        self.folder, self.party = folder, Party(identity("coordinator"), found or directory(), Role.COORDINATOR)
        if found is not None:
            self.party = self.load(found)
        self.publisher = Publisher(self.party, self.link, self.store, Backoff(random.Random(2), 0.01, 0.05))

    def load(self, found: Directory) -> Party:
        """A party with files, as a process has it."""
        self.put(found)
        identity("coordinator").save(self.folder / "coordinator.key")
        root_key = ROOT.public()[0].signing.hex()
        return Party.load(self.settings(root_key), Role.COORDINATOR)

    def settings(self, root_key: str, name: str = "coordinator") -> PartySettings:
        return PartySettings(str(self.folder / f"{name}.key"), str(self.folder / "directory.json"), root_key)

    def put(self, found: Directory) -> None:
        write_directory(self.folder / "directory.json", found, ROOT)

    def retained(self) -> dict[str, bytes]:
        prefix = "fps/v1/lab/"
        return {topic.removeprefix(prefix): stored.payload for topic, stored in self.broker._retained.items()}

    def messages(self, channel: str) -> dict[str, Any]:
        return {
            topic: self.party.open(channel, payload).message
            for topic, payload in self.retained().items()
            if topic.split("/")[0] == channel
        }

    def announcement(self, round_id: int, blobs: tuple[bytes, ...], **changes: Any) -> Announcement:
        made = plan(round_id, checksum=commitment(SEED), **changes)
        body = encode(made)
        letters = SeedLetters(self.party, made, digest(body), SEED)
        return Announcement(made, body, blobs, asyncio.get_running_loop().time() + 60.0, letters)


async def test_every_device_of_the_cohort_gets_the_seed_and_nobody_else_can_open_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.link.connect()
    said = desk.announcement(1, (b"a" * 3000, b"b"), cohort=DEVICES[:6])
    await desk.publisher.announce(said)
    found = desk.messages("seed")
    assert sorted(found) == [f"seed/{device}" for device in DEVICES[:6]]
    for device in DEVICES[:6]:
        message = found[f"seed/{device}"]
        assert isinstance(message, ChecksumSeed)
        assert (message.round_id, message.plan) == (1, digest(said.body))
        context = checksum_seed_context("lab", message.plan, ("coordinator", device))
        assert identity(device).unseal(message.sealed, context, message.suite, message.key) == SEED
    assert not any(SEED in payload for payload in desk.retained().values())
    assert SEED.hex() not in repr(said) + repr(said.letters)


async def test_seeds_of_devices_that_are_not_asked_again_are_cleared(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.link.connect()
    await desk.publisher.announce(desk.announcement(1, (b"a",), cohort=DEVICES[:6]))
    first = desk.retained()["seed/device-05"]
    await desk.publisher.announce(desk.announcement(2, (b"a",), cohort=DEVICES[4:]))
    assert sorted(desk.messages("seed")) == [f"seed/{device}" for device in DEVICES[4:]]
    assert desk.retained()["seed/device-05"] != first
    later = Publisher(desk.party, desk.link, desk.store, Backoff(random.Random(2)))  # after a restart
    later.remember(desk.announcement(2, (b"a",), cohort=DEVICES[4:]).body)
    await later.clear()
    assert [topic for topic in desk.retained() if topic.startswith(("seed", "model", "round"))] == []


async def test_the_plan_that_names_a_directory_stays_at_the_broker_that_is_left(tmp_path: Path) -> None:
    """Until then it is not left; and a device that comes later is told by that plan to look for the directory."""
    desk = Desk(tmp_path, found=directory())
    await desk.link.connect()
    await desk.publisher.announce(desk.announcement(1, (b"a",), directory_version=1))
    assert desk.broker._retained["fps/v1/lab/round"].until_s < math.inf
    desk.put(directory(version=2, coordinator=msgspec.structs.replace(directory().coordinator, port=1999)))
    assert desk.party.reload()
    leaving = asyncio.create_task(desk.publisher.leave(60.0))
    await desk.publisher.say_directory()
    assert not leaving.done(), "nobody has been told of a directory by the plan of the one before"
    await desk.publisher.announce(desk.announcement(2, (b"a",), directory_version=2))
    await asyncio.wait_for(leaving, 60)
    assert desk.broker._retained["fps/v1/lab/round"].until_s == math.inf


async def test_a_broker_where_nobody_can_be_told_is_left_all_the_same(tmp_path: Path) -> None:
    desk = Desk(tmp_path, found=directory())
    desk.put(directory(version=2))
    assert desk.party.reload()
    await asyncio.wait_for(desk.publisher.leave(0.05), 60)


async def test_an_older_announcement_never_overwrites_a_newer_one(tmp_path: Path) -> None:
    """The connection flaps while one round ends and the next begins: what is said again is the newest, whole."""
    desk = Desk(tmp_path, Weather(loss=0.3, delay_s=(0.0, 0.002)))
    repeats: list[asyncio.Task[None]] = []

    async def on_connect(first: bool) -> None:
        if not first:
            repeats.append(asyncio.create_task(desk.publisher.repeat()))

    desk.link.on_connect(on_connect)
    await desk.link.connect()
    rounds = [tuple(bytes([number, segment]) * 1600 for segment in range(3)) for number in range(1, 7)]
    for number, blobs in enumerate(rounds, 1):
        saying = asyncio.create_task(desk.publisher.announce(desk.announcement(number, blobs)))
        if number % 2:
            await saying
        else:  # overtaken on the way
            await asyncio.sleep(0.01)
    await saying
    desk.broker.weather = Weather()
    await asyncio.gather(*repeats)
    chunks = desk.messages("model")
    assert len(chunks) == 3 * 4
    for message in chunks.values():
        assert isinstance(message, ModelChunk)
        assert message.blob == digest(rounds[-1][message.segment])
    assert desk.messages("round")["round"].round_id == 6
    assert {message.round_id for message in desk.messages("seed").values()} == {6}
    assert repeats


async def test_a_shorter_model_leaves_no_chunk_of_a_longer_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.link.connect()
    await desk.publisher.announce(desk.announcement(1, (b"a" * 5000, b"b" * 5000, b"c" * 100)))
    await desk.publisher.announce(desk.announcement(2, (b"a" * 900, b"b" * 2000)))
    assert sorted(desk.messages("model")) == ["model/0/0", "model/1/0", "model/1/1"]


async def test_the_outcome_is_said_again_after_a_lost_connection_and_the_round_is_not(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.link.connect()
    await desk.publisher.announce(desk.announcement(1, (b"a",)))
    await desk.publisher.close(Outcome(1, RoundPhase.APPLIED))
    desk.broker._retained.clear()  # the broker has forgotten everything
    await desk.publisher.repeat()
    assert sorted(desk.retained()) == ["outcome"]


async def test_the_directory_in_force_lies_on_the_broker_before_any_plan(tmp_path: Path) -> None:
    many = {f"device-{number:04}": DeviceEntry(directory().devices[DEVICES[0]].keys) for number in range(600)}
    long = directory(devices=directory().devices | many)
    desk = Desk(tmp_path, found=long)
    adopted = Desk.settings(desk, ROOT.public()[0].signing.hex(), "device-01")
    identity("device-01").save(tmp_path / "device-01.key")
    device = Party.load(msgspec.structs.replace(adopted, keep=str(tmp_path / "store")), Role.DEVICE)
    order: list[str] = []

    async def note(delivery: Delivery) -> None:
        order.append(delivery.topic.split("/")[3])

    reader = MemoryLink(desk.broker, "device-01", LIMITS)
    await watch_directory(device, reader)
    await reader.subscribe("fps/v1/lab/round", note)
    await reader.connect()
    await desk.link.connect()
    await desk.publisher.announce(desk.announcement(1, (b"a",)))
    chunks = desk.messages("directory")
    assert len(chunks) > 1
    assert all(isinstance(part, DirectoryChunk) and part.version == 1 for part in chunks.values())
    # A newer, shorter one: surplus chunks go, and whoever listens has it in force at once.
    desk.put(directory(version=2, revoked={identity("device-02").public()[0].key_id.hex(): "device-02"}))
    assert desk.party.reload()
    await desk.publisher.say_directory()
    assert {part.version for part in desk.messages("directory").values()} == {2}
    assert len(desk.messages("directory")) < len(chunks)
    async with asyncio.timeout(60):
        while device.directory.version != 2:
            await asyncio.sleep(0.01)
    assert device.directory.is_revoked(Role.DEVICE, "device-02")
    assert order == ["round", "round"]  # aggregators answer it again, with keys that may be known only now
    await reader.close()


async def test_a_newer_directory_reaches_those_who_know_only_the_old_key(tmp_path: Path) -> None:
    """The coordinator's own key changes with it: chunks are signed by the old one, everything after by the new."""
    desk = Desk(tmp_path, found=directory())
    await desk.link.connect()
    old, rotated = identity("coordinator"), identity("coordinator").rotated()
    rotated.save(tmp_path / "coordinator.key")
    service = msgspec.structs.replace(directory().coordinator, keys=tuple(party_keys(k) for k in rotated.public()))
    desk.put(directory(version=2, coordinator=service))
    assert desk.party.reload()
    await desk.publisher.announce(desk.announcement(1, (b"a",)))
    bystander = Party(identity("device-01"), directory(), Role.DEVICE)
    assert bystander.open("directory", desk.retained()["directory/0"]).sender == old.ident
    with pytest.raises(SignatureError, match="is none of 'coordinator'"):
        bystander.open("round", desk.retained()["round"])
    assert Party(identity("device-01"), desk.party.directory, Role.DEVICE).open("round", desk.retained()["round"])
    # The plan names the version, so whoever lacks it waits for the chunks that lie beside it.


@pytest.mark.parametrize("suite", [Suite.X25519_CHACHA20, Suite.XWING_AES256])
def test_a_device_that_cannot_be_sealed_to_gets_no_seed_and_harms_nobody(suite: Suite) -> None:
    """One is revoked; with a hybrid suite, none of the others has the key for it."""
    gone = identity("device-02").public()[0].key_id.hex()
    party = Party(identity("coordinator"), directory(revoked={gone: "device-02"}), Role.COORDINATOR)
    letters = SeedLetters(party, plan(suites=(suite,)), bytes(32), SEED)
    others = [] if suite.is_hybrid else [device for device in DEVICES if device != "device-02"]
    assert sorted(letters.payloads(DEVICES)) == others
