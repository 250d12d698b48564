"""One device's `Rounds` on brokers in memory, a coordinator to speak to it, and work that only notes its rounds."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import builders
import msgspec

from edge_client.byte_ledger import ByteLedger
from edge_client.rounds import Rounds
from edge_client.settings import DeviceLimits
from fedpruneshare.directory import Directory, sign_directory
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import Decline, DirectoryChunk, Outcome, RoundPhase, RoundPlan, digest
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import Identity
from fedpruneshare.topics import Role

DEVICE = builders.DEVICES[0]


class Work:
    """Takes part until it is told to end, or raises what it was told to."""

    def __init__(self, ledger: ByteLedger) -> None:
        self.ledger = ledger
        self.taken: list[int] = []
        self.finished: list[int] = []
        self.ends_at = 0.0
        self.error: Exception | None = None
        self.is_long = False

    def accept(self, view: PlanView) -> PlanView:
        return view

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        self.taken.append(view.plan.round_id)
        self.ends_at = ends_at
        if self.error is not None:
            raise self.error
        if self.is_long:
            await asyncio.Event().wait()

    def finish(self, round_id: int) -> None:
        self.finished.append(round_id)

    def end_entry(self) -> None:
        self.ledger.end()


class LoneDevice:
    """The device, its coordinator, and the root of both."""

    def __init__(self, folder: Path, clock: Callable[[], float], directory: Directory) -> None:
        self.root, self.folder = Identity.generate("root"), folder
        self.party = Party(self.own_identity(), directory, Role.DEVICE, self._files(directory), clock)
        self.coordinator = Party(builders.identity("coordinator"), directory, Role.COORDINATOR)
        broker = MemoryBroker(random.Random(1), time.monotonic)
        links = {
            name: MemoryLink(broker, f"{DEVICE}-{name}", LinkLimits()) for name in ("control", *directory.aggregators)
        }
        self.links = links.pop("control"), links
        self.theirs = MemoryLink(broker, "coordinator", LinkLimits())
        self.work = Work(ByteLedger(folder))
        self.rounds = Rounds(self.party, DeviceLimits(), self.links, self.work.ledger, self.work)  # type: ignore[arg-type]
        self.declines: list[Decline] = []
        self.hellos = 0

    def own_identity(self) -> Identity:
        return builders.identity(DEVICE)

    def _files(self, directory: Directory) -> PartySettings:
        self.own_identity().save(self.folder / "device.key")
        (self.folder / "directory.json").write_bytes(sign_directory(directory, self.root))
        key = self.root.public()[0].signing.hex()
        return PartySettings(str(self.folder / "device.key"), str(self.folder / "directory.json"), key)

    async def publish_plan(self, plan: RoundPlan, expiry_s: float | None = None, *, retain: bool = True) -> None:
        topic = self.party.topics.name("round")
        await self.theirs.publish(topic, self.coordinator.sign(plan), retain=retain, expiry_s=expiry_s)

    async def close_round(self, round_id: int) -> None:
        outcome = self.coordinator.sign(Outcome(round_id, RoundPhase.APPLIED))
        await self.theirs.publish(self.party.topics.name("outcome"), outcome)

    async def publish_directory(self, directory: Directory, root: Identity | None = None) -> None:
        data = sign_directory(directory, root or self.root)
        half = len(data) // 2
        for chunk, piece in enumerate((data[:half], data[half:])):
            message = DirectoryChunk(directory.version, digest(data), chunk, 2, piece)
            topic = self.party.topics.name("directory", chunk)
            await self.theirs.publish(topic, self.coordinator.sign_with_oldest(message), retain=True)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.002)
        assert condition(), what

    async def settle(self) -> None:
        """Everything that was published has been handled: a plan of a later round would have been next."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def on_decline(self, delivery: Delivery) -> None:
        message = msgspec.msgpack.decode(msgspec.msgpack.decode(delivery.payload)[-1])
        self.declines.append(Decline(*message))


@asynccontextmanager
async def lone_device(
    folder: Path, clock: Callable[[], float] = time.time, **changes: Any
) -> AsyncIterator[LoneDevice]:
    """A device that is serving. `changes`: of its directory."""
    device = LoneDevice(folder, clock, builders.directory(**changes))
    await device.theirs.subscribe(device.party.topics.name("decline", DEVICE), device.on_decline)
    await device.theirs.connect()
    await device.rounds.listen()
    for link in (*device.links[1].values(), device.links[0]):
        await link.connect()
    serving = asyncio.create_task(device.rounds.serve())
    try:
        yield device
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await device.rounds.close()
        await device.theirs.close()
