"""Real aggregators in virtual time, with a coordinator and devices that say exactly what a test has them say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builders import AGGREGATORS, DEVICES, directory, identity, view
from simulators.virtual_time import VirtualLoop, run
from simulators.whole_shares import split_upload

from aggregator.service import Aggregator
from aggregator.settings import AggregatorSettings
from edge_client.fresh_upload import new_upload
from edge_client.outbox import Upload
from fedpruneshare.directory import Directory, sign_directory
from fedpruneshare.floors import open_segments
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.chunks import cut
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import (
    Contribution,
    DirectoryChunk,
    Freeze,
    Message,
    Outcome,
    Receipt,
    RoundPhase,
    ShareUpload,
    SumShare,
    digest,
    encode,
)
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import Identity, seal, share_context, sum_context
from fedpruneshare.sharing.field import from_bytes
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import CHANNELS, Role

LIMITS = LinkLimits(publish_timeout_s=5.0)
COORDINATOR = "coordinator"
#: Virtual seconds after which everything that was said has been answered.
_QUIET_S = 3.5


@dataclass
class Lab:
    """One federation. `said`: what aggregators have told the coordinator; `receipts`: what they told devices."""

    folder: Path
    directory: Directory = field(default_factory=directory)
    said: list[tuple[str, Message]] = field(default_factory=list)
    receipts: list[tuple[str, str, Receipt]] = field(default_factory=list)
    aggregators: dict[str, Aggregator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        clock, names = loop.time, ("control", *self.directory.aggregators)
        self.brokers = {name: MemoryBroker(random.Random(name), clock) for name in names}
        self.root = identity("root")
        self._links: dict[tuple[str, str], MemoryLink] = {}
        self._parties: dict[str, Party] = {}

    # ------------------------------------------------------------------ parties

    def party(self, name: str, role: Role) -> Party:
        """A party; an aggregator has files, so that it can adopt directories."""
        if name not in self._parties:
            files = self._files(name) if role is Role.AGGREGATOR else None
            self._parties[name] = Party(identity(name), self.directory, role, files)
        return self._parties[name]

    @staticmethod
    def role(name: str) -> Role:
        """What a name of the test federation is."""
        kind = name.partition("-")[0]
        return {"device": Role.DEVICE, "aggregator": Role.AGGREGATOR}.get(kind, Role.COORDINATOR)

    def _files(self, name: str) -> PartySettings:
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        identity(name).save(home / "key.json")
        (home / "directory.json").write_bytes(sign_directory(self.directory, self.root))
        root_key = self.root.public()[0].signing.hex()
        return PartySettings(str(home / "key.json"), str(home / "directory.json"), root_key)

    async def link(self, broker: str, name: str) -> MemoryLink:
        """A connected link, made once."""
        if (broker, name) not in self._links:
            self._links[broker, name] = MemoryLink(self.brokers[broker], name, LIMITS)
            await self._links[broker, name].connect()
        return self._links[broker, name]

    async def start(self, *names: str, **settings: Any) -> None:
        """Start aggregators (by default all) on their stores, and listen to what they say."""
        await self._listen()
        for name in names or tuple(self.directory.aggregators):
            party = self.party(name, Role.AGGREGATOR)
            own = MemoryLink(self.brokers[name], name, LIMITS)
            control = MemoryLink(self.brokers["control"], name, LIMITS)
            nobody = PartySettings(key_file="", directory="", root_key="0" * 64)
            made = AggregatorSettings(party=nobody, store=str(self.folder / name / "store"), **settings)
            self.aggregators[name] = Aggregator(party, made, own, control)
            await self.aggregators[name].start()

    async def restart(self, name: str, **settings: Any) -> None:
        """Stop an aggregator wherever it is, and start a new process of it."""
        await self.aggregators[name].stop()
        self._parties.pop(name)
        await self.start(name, **settings)

    async def stop(self) -> None:
        """Stop everything."""
        for aggregator in self.aggregators.values():
            await aggregator.stop()
        for link in self._links.values():
            await link.close()

    async def _listen(self) -> None:
        control, party = await self.link("control", COORDINATOR), self.party(COORDINATOR, Role.COORDINATOR)
        for channel in ("attendance", "checked", "accepted", "sum"):

            async def on_message(delivery: Delivery, channel: str = channel) -> None:
                opened = party.take(channel, delivery)
                if opened is not None:
                    self.said.append((opened.sender, opened.message))

            await control.subscribe(party.topics.every(channel), on_message)

    @asynccontextmanager
    async def only(self, *names: str) -> Any:
        """The control broker reaches no other aggregators: what is said now they never hear."""
        others = [name for name in self.aggregators if name not in names]
        for name in others:
            self.brokers["control"].cut(name)
        yield
        await self.quiet()
        for name in others:
            self.brokers["control"].heal(name)

    # ------------------------------------------------------------------ what is said

    @staticmethod
    async def quiet() -> None:
        """Let everything be answered, reminders included."""
        await asyncio.sleep(_QUIET_S)

    async def say(self, channel: str, message: Message, *levels: int, signer: Identity | None = None) -> bytes:
        """The coordinator publishes a message; its digest."""
        party = self.party(COORDINATOR, Role.COORDINATOR)
        speaker = party if signer is None else Party(signer, self.directory, Role.COORDINATOR)
        topic, retained = party.topics.name(channel, *levels), CHANNELS[channel].retained
        link = await self.link("control", COORDINATOR)
        await link.publish(topic, speaker.sign(message), retain=retained, expiry_s=60.0 if channel == "round" else None)
        return digest(encode(message))

    async def open(self, view: PlanView) -> None:
        """Publish a plan, and let aggregators open its round."""
        await self.say("round", view.plan)
        await self.quiet()

    async def begin(self, *names: str) -> PlanView:
        """Start these aggregators, all of them if none is named, and open round 1."""
        await self.start(*names)
        current = view(1)
        await self.open(current)
        return current

    async def end(self, view: PlanView, phase: RoundPhase = RoundPhase.FAILED) -> None:
        """Publish the outcome of a round, and take its plan back."""
        control, topics = await self.link("control", COORDINATOR), self.party(COORDINATOR, Role.COORDINATOR).topics
        await control.publish(topics.name("round"), b"", retain=True)
        await self.say("outcome", Outcome(view.plan.round_id, phase, "as the test wants it"))
        await self.quiet()

    async def publish_directory(
        self, newer: Directory, root: Identity | None = None, signer: Identity | None = None
    ) -> None:
        """Publish a directory; devices and the coordinator of the test have it at once."""
        data = sign_directory(newer, root or self.root)
        pieces = cut(data, 64 * 1024)
        for index, piece in enumerate(pieces):
            part = DirectoryChunk(newer.version, digest(data), index, len(pieces), bytes(piece))
            await self.say("directory", part, index, signer=signer)
        await self.quiet()

    # ------------------------------------------------------------------ devices

    def words(self, view: PlanView, device: str, rung: int) -> np.ndarray:
        """What a device adds: the same words whenever it is asked."""
        draw = np.random.default_rng([view.plan.round_id, int(device[-2:])])
        return draw.integers(0, 1000, view.upload_words(rung)).astype(view.field.word_type)

    def make_upload(self, view: PlanView, device: str, rung: int) -> Upload:
        """A new upload of a device."""
        words = self.words(view, device, rung)
        return new_upload(view, rung, 1, words, Prg.CHACHA20)

    async def upload(
        self, view: PlanView, device: str, rung: int = 0, to: Sequence[str] = (), made: Upload | None = None
    ) -> Contribution:
        """A device sends a whole upload, every chunk once; aggregators are given time by `quiet` alone."""
        made = made or self.make_upload(view, device, rung)
        for name in to or tuple(self.directory.aggregators):
            for payload in self.payloads(view, device, made, name):
                await self.send(device, name, payload)
        return Contribution(device, made.upload_id, made.rung)

    async def send(self, device: str, aggregator: str, payload: bytes) -> None:
        """Publish bytes on a device's upload topic."""
        link = await self.ears(device, aggregator)
        await link.publish(self.party(device, Role.DEVICE).topics.name("up", device), payload)

    async def ears(self, device: str, aggregator: str) -> MemoryLink:
        """A device's link to an aggregator's broker, which notes the receipts that come."""
        is_new, party = (aggregator, device) not in self._links, self.party(device, Role.DEVICE)
        link = await self.link(aggregator, device)

        async def on_receipt(delivery: Delivery) -> None:
            opened = party.take("ack", delivery)
            if opened is not None and isinstance(opened.message, Receipt):
                self.receipts.append((opened.sender, device, opened.message))

        if is_new:
            await link.subscribe(party.topics.name("ack", device), on_receipt)
        return link

    def payloads(self, view: PlanView, device: str, made: Upload, aggregator: str) -> list[bytes]:
        """The signed chunks of an upload for one aggregator."""
        party, x = self.party(device, Role.DEVICE), view.plan.points[aggregator]
        key = party.sealing_keys(Role.AGGREGATOR, aggregator)
        pieces = cut(split_upload(view, device, made)[x], view.plan.chunk_bytes)
        payloads = []
        for index, piece in enumerate(pieces):
            position = (made.upload_id, x, made.rung, str(made.prg), index, len(pieces))
            context = share_context("lab", view.digest, (device, aggregator), position)
            sealed = seal(key, bytes(piece), context, made.suite)
            upload = ShareUpload(view.plan.round_id, view.digest, *position, made.suite, key.key_id, sealed)
            payloads.append(party.sign(upload))
        return payloads

    async def upload_all(self, view: PlanView, devices: Sequence[str] = DEVICES, rung: int = 0) -> list[Contribution]:
        """Several devices upload to every aggregator."""
        sent = [await self.upload(view, device, rung) for device in devices]
        await self.quiet()
        return sent

    # ------------------------------------------------------------------ what came of it

    def freeze(self, view: PlanView, sent: Sequence[Contribution], names: Sequence[str] = AGGREGATORS) -> Freeze:
        """The Freeze an honest coordinator would send for these uploads."""
        segments = open_segments(
            [c.rung for c in sent], view.rungs, view.plan.min_devices, view.plan.min_devices_segment
        )
        return Freeze(view.plan.round_id, view.digest, tuple(names), tuple(sent), segments or (0,))

    def heard(self, kind: type, name: str = "") -> list[Any]:
        """What aggregators (or one) have said, of one kind."""
        return [message for sender, message in self.said if isinstance(message, kind) and name in ("", sender)]

    def verdicts(self, device: str, aggregator: str = AGGREGATORS[0]) -> list[str]:
        """The verdicts on a device's uploads, in order."""
        return [str(r.verdict) for name, who, r in self.receipts if (name, who) == (aggregator, device)]

    def opened(self, view: PlanView, freeze: Freeze) -> np.ndarray:
        """The words of segment 0 of the sum, from the sums that came for a Freeze."""
        sums: dict[int, dict[int, bytes]] = {}
        for sender, message in self.said:
            if isinstance(message, SumShare) and message.freeze == digest(encode(freeze)):
                position = (message.x, message.chunk, message.chunks)
                context = sum_context("lab", message.freeze, (sender, COORDINATOR), position)
                data = identity(COORDINATOR).unseal(message.sealed, context, message.suite, message.key)
                sums.setdefault(message.x, {})[message.chunk] = data
        count = view.sum_bytes(freeze) // view.field.word_bytes
        whole = {
            x: from_bytes(b"".join(parts[i] for i in sorted(parts)), count, view.field) for x, parts in sums.items()
        }
        elements = view.segment_elements[0]
        first = {x: words[:elements] for x, words in list(whole.items())[: view.scheme.k]}
        return view.scheme.open(first, view.segment_words[0])

    def expected(self, view: PlanView, freeze: Freeze) -> np.ndarray:
        """The plain sum of segment 0."""
        size = view.segment_words[0]
        return np.sum([self.words(view, c.device_id, c.rung)[:size] for c in freeze.contributors], axis=0)


def play(folder: Path, scene: Callable[[Lab], Awaitable[None]], **changes: Any) -> Lab:
    """Run a scene in virtual time to its end. No step may fail unseen."""
    loop, made = VirtualLoop(), []

    async def whole() -> None:
        lab = Lab(folder, directory(**changes))
        made.append(lab)
        try:
            await scene(lab)
        finally:
            await lab.stop()

    run(loop, whole())
    assert not loop.errors, loop.errors
    lab: Lab = made[0]
    return lab


__all__ = ["Lab", "play"]
