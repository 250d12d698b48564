"""A device that goes and comes back: the same upload as long as it has it, another id when it has not (§4.2, §9.1).

The device is the product's own on brokers in memory; only receiving and training are replaced, and aggregators are
scripts that note the plaintext of every chunk they are sent.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES
from onnx_models import TABLE

from edge_client import outbox as outbox_module
from edge_client import service
from edge_client.datasets import Dataset
from edge_client.inference.model_file import ModelFacts, StoredModel
from edge_client.local_round import LocalResult
from edge_client.receiving import ReceivedModel
from edge_client.service import Device
from edge_client.settings import DeviceLimits, DeviceSettings, DeviceTask
from edge_client.training import TrainingResult
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import Decline, Receipt, RoundPlan, ShareUpload, Verdict
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import share_context
from fedpruneshare.topics import Role
from fedpruneshare.words import SegmentWords

DEVICE = DEVICES[0]
HOUR = 3600.0


class Script:
    """An aggregator: notes every chunk's plaintext by upload and chunk, and answers when it is told to."""

    def __init__(self, name: str, broker: MemoryBroker) -> None:
        self.name, self.link = name, MemoryLink(broker, name, LinkLimits())
        self.party = Party(builders.identity(name), builders.directory(), Role.AGGREGATOR)
        self.is_answering = False
        self.seen: dict[tuple[int, bytes, int], set[bytes]] = defaultdict(set)
        self.whole: list[bytes] = []

    async def start(self) -> None:
        await self.link.subscribe(self.party.topics.name("up", DEVICE), self._on_upload)
        await self.link.connect()

    async def _on_upload(self, delivery: Delivery) -> None:
        message = self.party.open("up", delivery.payload).message
        assert isinstance(message, ShareUpload)
        position = (message.upload_id, message.x, message.rung, message.prg, message.chunk, message.chunks)
        context = share_context("lab", message.plan, (DEVICE, self.name), position)
        plain = self.party.identity.unseal(message.sealed, context, message.suite, message.key)
        self.seen[message.round_id, message.upload_id, message.chunk].add(plain)
        chunks = {chunk for _, upload, chunk in self.seen if upload == message.upload_id}
        if len(chunks) == message.chunks and message.upload_id not in self.whole:
            self.whole.append(message.upload_id)
        if self.is_answering and message.upload_id in self.whole:
            receipt = self.party.sign(Receipt(message.round_id, message.upload_id, Verdict.ACCEPTED))
            await self.link.publish(self.party.topics.name("ack", DEVICE), receipt)


class World:
    """Brokers with a clock of their own, a plan on the control broker, scripted aggregators, and one device's store."""

    def __init__(self, folder: Path) -> None:
        self.now, self.folder = 0.0, folder
        names = ("control", *AGGREGATORS)
        self.brokers = {name: MemoryBroker(random.Random(name), lambda: self.now) for name in names}
        self.scripts = [Script(name, self.brokers[name]) for name in AGGREGATORS]
        self.coordinator = Party(builders.identity("coordinator"), builders.directory(), Role.COORDINATOR)
        self.theirs = MemoryLink(self.brokers["control"], "coordinator", LinkLimits())
        self.trained: list[int] = []
        self.declines: list[Decline] = []
        self.settings = DeviceSettings(
            PartySettings("key", "directory", "00" * 32), DeviceTask("t", 0, 1), str(folder),
            adaptive=False, limits=DeviceLimits(outbox_mib=1),
        )  # fmt: skip

    async def start(self) -> None:
        topics = self.coordinator.topics

        async def on_decline(delivery: Delivery) -> None:
            message = self.coordinator.open("decline", delivery.payload).message
            assert isinstance(message, Decline)
            self.declines.append(message)

        await self.theirs.subscribe(topics.name("decline", DEVICE), on_decline)
        await self.theirs.connect()
        for script in self.scripts:
            await script.start()

    async def publish(self, round_id: int = 1, **changes: Any) -> None:
        plan = builders.plan(round_id, table=TABLE.digest(), deadline_s=2 * HOUR, rungs=(0,), **changes)
        assert isinstance(plan, RoundPlan)
        topic = self.coordinator.topics.name("round")
        await self.theirs.publish(topic, self.coordinator.sign(plan), retain=True, expiry_s=2 * HOUR)

    def answer(self, is_answering: bool = True) -> None:
        for script in self.scripts:
            script.is_answering = is_answering

    @asynccontextmanager
    async def device(self) -> AsyncIterator[Device]:
        """The device at work; power is lost at the end."""
        control, *uplinks = (
            MemoryLink(broker, f"{DEVICE}-{name}", LinkLimits()) for name, broker in self.brokers.items()
        )
        party = Party(builders.identity(DEVICE), builders.directory(), Role.DEVICE)
        dataset = Dataset(np.zeros((200, 3), np.float32), np.zeros(200, np.int64))
        work: Any = SimpleNamespace(table=TABLE, dataset=dataset, task=SimpleNamespace(name="t"), model=None)
        device = Device(party, self.settings, work, (control, dict(zip(AGGREGATORS, uplinks, strict=True))))
        task = asyncio.create_task(device.run())
        try:
            yield device
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)
        assert condition(), what

    def uploads(self) -> list[list[bytes]]:
        """Ids that each aggregator has whole, in order."""
        return [script.whole for script in self.scripts]

    def check_one_polynomial_per_id(self) -> None:
        """What was sent again under an id is what was sent before under it, at every aggregator."""
        for script in self.scripts:
            assert all(len(contents) == 1 for contents in script.seen.values())


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "store")
    rng = np.random.default_rng(0)

    async def receive_model(*_: Any) -> list[bytes]:
        return []

    def train(_ready: Any, view: PlanView, *_: Any) -> LocalResult:
        made.trained.append(view.plan.round_id)
        update: Any = SimpleNamespace(rung=0, weight=7)
        return LocalResult(update, TrainingResult(200, 7, 0.5, 0.0), False)

    def encode(view: PlanView, *_: Any) -> np.ndarray:  # other numbers each time, as training again would give
        segment = view.plan.segments[0]
        vectors, values = (rng.integers(0, 15, n, np.uint32) for n in (segment.vectors, segment.weights))
        return view.layout.pack(SegmentWords(7, vectors, values))

    flat = np.zeros(TABLE.vector_count, np.float32)
    received = ReceivedModel((np.arange(0),), (np.zeros(0, np.uint16),), np.arange(flat.size), flat, (), None)
    facts = ModelFacts("t", bytes(32), "accuracy", (8,), False, 1, 0, 1.0, 1.0)
    stored = StoredModel(facts, TABLE, np.zeros(TABLE.weight_count, np.float32), flat)
    monkeypatch.setattr(service, "receive_model", receive_model)
    monkeypatch.setattr(service, "decode_model", lambda *_: received)
    monkeypatch.setattr(service, "received_model", lambda *_: stored)
    monkeypatch.setattr(service, "write_update", lambda *_: b"update")
    monkeypatch.setattr(service.local_round, "prepare", lambda *_: None)
    monkeypatch.setattr(service.local_round, "train", train)
    monkeypatch.setattr(service.local_round, "encode_words", encode)
    await made.start()
    return made


async def test_an_hour_off_and_three_restarts_neither_lose_nor_double_an_upload(world: World) -> None:
    await world.publish()
    async with world.device():
        await world.until(lambda: all(len(ids) == 1 for ids in world.uploads()), "all chunks, and no receipt")
    for _ in range(2):
        world.now += HOUR / 2
        async with world.device() as device:
            await world.until(lambda: device._ledger.entry.up.resent, "something sent again")
    world.answer()
    async with world.device() as device:
        await world.until(lambda: device._outbox.last_round() == 1, "the receipts")
    assert world.trained == [1] and len({ids[0] for ids in world.uploads()}) == 1
    assert [len(ids) for ids in world.uploads()] == [1, 1, 1]
    world.check_one_polynomial_per_id()
    before = [len(script.seen) for script in world.scripts]
    async with world.device() as device:  # the plan still lies there
        await world.publish(2)
        await world.until(lambda: device._outbox.last_round() == 2, "the next round")
    assert world.trained == [1, 2]
    assert all(len(script.seen) > count for script, count in zip(world.scripts, before, strict=True))
    assert all(len({upload for number, upload, _ in script.seen if number == 1}) == 1 for script in world.scripts)


@pytest.mark.parametrize("damage", ["lost", "flipped", "cut", "of another version"])
async def test_without_its_outbox_a_device_gets_through_under_another_id(world: World, damage: str) -> None:
    await world.publish()
    async with world.device():
        await world.until(lambda: len(world.uploads()[0]) == 1, "an upload that nobody answers")
    path = world.folder / "outbox" / "upload.msgpack"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    contents = {"flipped": bytes(data), "cut": path.read_bytes()[:-100], "of another version": b"\x93abc"}
    path.unlink() if damage == "lost" else path.write_bytes(contents[damage])
    world.answer()
    async with world.device() as device:
        await world.until(lambda: device._outbox.last_round() == 1, "the receipts")
    assert world.trained == [1, 1] and len(world.uploads()[0]) == 2
    world.check_one_polynomial_per_id()


async def test_a_full_disk_is_declined_by_name_and_the_next_round_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    world.answer()
    with monkeypatch.context() as patched:
        patched.setattr(outbox_module, "write_atomically", full)
        await world.publish(1)
        async with world.device() as device:
            await world.until(lambda: world.declines, "a decline")
            patched.undo()
            await world.publish(2)
            await world.until(lambda: device._outbox.last_round() == 2, "the next round")
    assert [one.reason for one in world.declines] == [
        f"this device's disk: No space left on device: {world.folder}/outbox/upload.msgpack"
    ]
    assert world.uploads()[0] and not any(number == 1 for number, _, _ in world.scripts[0].seen)


async def test_an_upload_too_large_for_the_outbox_is_declined_by_name(world: World) -> None:
    base = builders.plan().segments[0]
    layout = builders.view().layout
    large = msgspec.structs.replace(base, weights=2_500_000, words=layout.words(base.vectors, 2_500_000))
    await world.publish(segments=(large,))
    async with world.device():
        await world.until(lambda: world.declines, "a decline")
    assert "MiB, expected at most limits.outbox_mib = 1" in world.declines[0].reason


async def test_a_model_older_than_one_taken_before_is_refused_also_after_a_restart(world: World) -> None:
    world.answer()
    await world.publish(1, model_version=8)
    async with world.device() as device:
        await world.until(lambda: device._outbox.last_round() == 1, "round 1")
    async with world.device() as device:
        await world.publish(2, model_version=7)
        await world.publish(3, model_version=8)
        await world.until(lambda: device._outbox.last_round() == 3, "round 3")
    assert world.trained == [1, 3]
