"""A whole federation in one event loop: real coordinator, real aggregators, scripted devices, brokers with weather.

Only training is replaced: a device draws its integers instead of learning them, so that the sum is known exactly. All
messages, stores, rules and links' interfaces are those of the product. Time is simulated: who is late is so by the
weather and the seed, not by what else this machine does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity
from onnx_models import TABLE, arrays, template
from simulators import virtual_time
from simulators.virtual_time import VirtualLoop
from simulators.whole_shares import split_upload

import coordinator.service as coordinator_service
from aggregator.service import Aggregator
from aggregator.settings import AggregatorFloors, AggregatorSettings
from coordinator.evaluation import Evaluator
from coordinator.opening import Opening, Round, open_and_apply
from coordinator.planning import ModelState
from coordinator.publishing import Publisher
from coordinator.service import Coordinator
from coordinator.settings import CodingSettings, CoordinatorSettings, PruningSettings, RoundSettings, SharingSettings
from coordinator.workbench import Workbench
from edge_client.checksum_seed import fill_checksums, receive_seed
from edge_client.fresh_upload import new_upload
from edge_client.outbox import Upload
from edge_client.receiving import decode_model, receive_model
from edge_client.share_chunks import WholeShare
from edge_client.uploading import Courier, Parcel
from fedpruneshare import crash_points
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink, Weather
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Hello, Missing, Receipt, RoundPlan
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sparse.onnx_codec import build_model
from fedpruneshare.topics import Role
from fedpruneshare.words import SegmentWords

NOBODY = PartySettings(key_file="", directory="", root_key="0" * 64)
LIMITS = LinkLimits(publish_timeout_s=5.0, reconnect_min_s=0.01, reconnect_max_s=0.1)


def bench(folder: Path) -> Workbench:
    """A workbench of the tiny model."""
    weights, vectors = TABLE.flatten(arrays())
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(20, 8)).astype(np.float32), rng.integers(0, 4, 20)
    bundle = Bundle(Manifest("tiny", TABLE, (8,), 20, 4, 0, "fixture"), template(), weights, vectors, inputs, targets)
    folder.mkdir(parents=True, exist_ok=True)
    return Workbench(bundle, Evaluator(template(), inputs, targets), folder, CodingSettings())


def _clock() -> float:
    return time.monotonic()  # by the module's name each time: while it runs, that is simulated time


class CrashError(Exception):
    """The power went."""


@dataclass
class Federation:
    """Brokers, parties and what devices have uploaded: words by (device, upload id)."""

    folder: Path
    seed: int
    weather: Weather
    rounds: int = 2
    sharing: SharingSettings = field(default_factory=SharingSettings)
    coding: CodingSettings = field(default_factory=lambda: CodingSettings(chunk_bytes=1024))
    floors: AggregatorFloors = field(default_factory=AggregatorFloors)
    tamper: Callable[[str, dict[int, bytes]], dict[int, bytes]] = lambda device, shares: shares
    """What a device really sends: its name and the honest shares -> the shares."""
    spoil: Callable[[str, PlanView, np.ndarray], np.ndarray] = lambda device, view, words: words
    """The words a device really shares: its name, the plan and the honest words, with their checksums -> words."""
    absent: tuple[str, ...] = ()
    """Aggregators that never start."""
    deadline_s: float = 12.0
    max_failed: int = 0
    words_seed: int | None = None
    """Draw the same words for a device whatever else happens."""
    opened: list[tuple[Round, Opening]] = field(default_factory=list)
    uploaded: dict[tuple[str, bytes], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        names = ("control", *AGGREGATORS)
        self.brokers = {n: MemoryBroker(random.Random(f"{self.seed} {n}"), _clock, self.weather) for n in names}
        self.directory = directory()
        self.aggregators: dict[str, Aggregator] = {}
        self.links: list[MemoryLink] = []

    def link(self, broker: str, name: str) -> MemoryLink:
        self.links.append(MemoryLink(self.brokers[broker], name, LIMITS))
        return self.links[-1]

    def party(self, name: str, role: Role) -> Party:
        return Party(identity(name), self.directory, role, clock=time.time)

    # ------------------------------------------------------------------ services

    async def start_aggregator(self, name: str) -> None:
        """Start an aggregator on its store, for the first time or again."""
        settings = AggregatorSettings(party=NOBODY, store=str(self.folder / name), floors=self.floors)
        links = self.link(name, name), self.link("control", name)
        self.aggregators[name] = Aggregator(self.party(name, Role.AGGREGATOR), settings, *links)
        await self.aggregators[name].start()

    async def restart_aggregator(self, name: str) -> None:
        """Stop it wherever it is, and go on from its store."""
        await self.aggregators[name].stop()
        await self.start_aggregator(name)

    def settings(self) -> CoordinatorSettings:
        """Those of the coordinator."""
        return CoordinatorSettings(
            party=NOBODY,
            bundle="",
            store="",
            rounds=RoundSettings(
                count=self.rounds,
                cohort=10,
                deadline_s=self.deadline_s,
                grace_s=0.5 if self.absent else 6.0,  # nobody waits for it where all are there
                sum_timeout_s=12.0,
                wait_for_devices_s=10.0,
                max_failed=self.max_failed,
            ),
            pruning=PruningSettings(rungs=(0.25, 0.5, 1.0), dense_rounds=0, final_round=2),
            sharing=self.sharing,
            coding=self.coding,
        )

    def coordinator(self) -> Coordinator:
        """A coordinator on its store."""
        party = self.party("coordinator", Role.COORDINATOR)
        return Coordinator(
            party, self.settings(), self.link("control", "coordinator"), bench(self.folder / "coordinator")
        )

    # ------------------------------------------------------------------ a device

    async def device(self, name: str, rung: int) -> None:
        """Take part in every round until cancelled."""
        party, control = self.party(name, Role.DEVICE), self.link("control", name)
        plans: asyncio.Queue[PlanView] = asyncio.Queue()
        couriers: dict[str, Courier] = {}

        async def on_plan(delivery: Delivery) -> None:
            opened = party.take("round", delivery)
            if opened is not None and isinstance(opened.message, RoundPlan):
                await plans.put(check_plan(opened.message, opened.digest, self.directory))

        await control.subscribe(party.topics.name("round"), on_plan)
        await control.connect()
        uplinks = {aggregator: self.link(aggregator, name) for aggregator in AGGREGATORS}
        for aggregator, link in uplinks.items():

            async def on_ack(delivery: Delivery, aggregator: str = aggregator) -> None:
                opened = party.take("ack", delivery)
                if opened and aggregator in couriers and isinstance(opened.message, (Receipt, Missing)):
                    couriers[aggregator].answer(opened.message)

            await link.subscribe(party.topics.name("ack", name), on_ack)
            await link.connect()
        hello = (party.topics.name("hello", name), party.sign(Hello("simulated", rung)))
        await publish_until_taken(control, hello, Backoff(self.rng), retain=True)
        done, delivery = 0, None
        while True:
            view = await plans.get()
            if view.plan.round_id > done:
                done = view.plan.round_id
                if delivery:
                    delivery.cancel()
                delivery = asyncio.create_task(self._deliver(party, control, uplinks, (couriers, view, rung)))

    async def _deliver(self, party: Party, control: MemoryLink, uplinks: dict, work: tuple) -> None:  # type: ignore[type-arg]
        couriers, view, limit = work
        rung = max(r for r in view.plan.rungs if r <= limit)
        received = decode_model(view, TABLE, await receive_model(party, control, view, rung))
        assert sum(p.size for p in received.positions) == sum(s.weights for s in view.plan.segments[: rung + 1])
        words, upload_id = self._words(view, rung, party.ident), os.urandom(16)
        fill_checksums(view, words, await receive_seed(party, control, view, 30.0))
        words = self.spoil(party.ident, view, words)
        self.uploaded[party.ident, upload_id] = words
        upload = self._upload(view, upload_id, rung, words)
        shares = self.tamper(party.ident, split_upload(view, party.ident, upload))
        ends_at = asyncio.get_running_loop().time() + 60
        for aggregator, x in view.plan.points.items():
            parcel = Parcel(view, upload, aggregator, x, WholeShare(shares[x], view.plan.chunk_bytes), ends_at)
            backoff = Backoff(random.Random(0), cap_s=0.3)
            couriers[aggregator] = Courier(party, uplinks[aggregator], parcel, backoff, 2)
        await asyncio.gather(*(courier.deliver(lambda size, first: None) for courier in list(couriers.values())))

    def _upload(self, view: PlanView, upload_id: bytes, rung: int, words: np.ndarray) -> Upload:
        """As `new_upload` makes it, with the keystream algorithm drawn."""
        made = new_upload(view, rung, int(words[0]), words, self.rng.choice(list(Prg)))
        return replace(made, upload_id=upload_id)

    def _words(self, view: PlanView, rung: int, device: str) -> np.ndarray:
        drawn = self.rng.randrange(2**32)
        draw = np.random.default_rng(drawn if self.words_seed is None else [self.words_seed, int(device[-2:])])
        weight = int(draw.integers(1, 513))
        segments = [
            SegmentWords(
                weight,
                draw.integers(0, 2**16 - 1, s.vectors, np.uint32),
                draw.integers(0, 2**view.plan.coding.value_bits - 1, s.weights, np.uint32),
            )
            for s in view.plan.segments[: rung + 1]
        ]
        return np.concatenate([view.layout.pack(segment) for segment in segments])

    # ------------------------------------------------------------------ what came of it

    def _recording(self, current: Round, *rest: Any) -> Opening:
        opening = open_and_apply(current, *rest)
        self.opened.append((current, opening))
        return opening

    @property
    def bundle(self) -> bytes:
        """Digest of the task bundle."""
        return bench(self.folder / "coordinator").facts.bundle

    def rendered(self, model: ModelState) -> bytes:
        """`model.onnx` as it must be for a model."""
        made = bench(self.folder / "coordinator")
        return build_model(made.bundle.template, made.arrays(model))

    def outcomes(self) -> list[dict[str, Any]]:
        """The lines of the coordinator's rounds.jsonl."""
        lines = (self.folder / "coordinator" / "rounds.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def check_sums(self) -> None:
        """Opened words are the plain integer sum over their contributors, segment by segment, bit for bit."""
        for current, opening in self.opened:
            view = current.ledger.view
            assert opening.opened.words
            for segment, words in opening.opened.words.items():
                start, size = sum(view.segment_words[:segment]), view.segment_words[segment]
                total = np.zeros(size, dtype=np.uint64)
                for c in opening.opened.contributors:
                    if c.rung >= segment:
                        total += self.uploaded[c.device_id, c.upload_id][start : start + size]
                        total %= np.uint64(view.field.p)  # checksums are any elements; all other sums stay below
                assert np.array_equal(words, total)

    # ------------------------------------------------------------------ all of it

    def run(self, faults: bool = False, crash_before: str = "", crash_at: str = "") -> int:
        """Start everything, run all rounds, stop everything, in simulated time; the coordinator's exit code.

        `crash_before`: a decision (`dealer-check`, `freeze`) that the first coordinator commits and never sends;
        `crash_at`: a crash point that it does not get beyond. A second one goes on from its store.
        """
        loop = VirtualLoop()
        code: int = virtual_time.run(loop, self.live(faults, crash_before, crash_at))
        assert not loop.errors, loop.errors
        return code

    async def live(self, faults: bool = False, crash_before: str = "", crash_at: str = "") -> int:
        """The same in the loop, and at the time, of who calls it."""
        for name in AGGREGATORS:
            if name not in self.absent:
                await self.start_aggregator(name)
        devices = [asyncio.create_task(self.device(name, place % 3)) for place, name in enumerate(DEVICES)]
        nemesis = asyncio.create_task(self._nemesis()) if faults else None
        try:
            if crash_before or crash_at:
                crash_points.observe(lambda point: self._crash_at(crash_at, point))
                with pytest.raises(CrashError):
                    await self._coordinate(crash_before)
                crash_points.observe(None)
            return await self._coordinate()
        finally:
            crash_points.observe(None)
            for task in (*devices, *([nemesis] if nemesis else [])):
                task.cancel()
            await asyncio.gather(*devices, *([nemesis] if nemesis else []), return_exceptions=True)
            for aggregator in self.aggregators.values():
                await aggregator.stop()

    @staticmethod
    def _crash_at(wanted: str, point: str) -> None:
        if point == wanted:
            raise CrashError(point)

    async def _coordinate(self, crash_before: str = "") -> int:
        coordinator, send = self.coordinator(), Publisher.send

        async def send_or_crash(publisher: Publisher, decision: tuple[str, bytes] | None, within_s: float) -> None:
            if decision is not None and decision[0] == crash_before:
                raise CrashError
            await send(publisher, decision, within_s)

        try:
            with (
                patch.object(coordinator_service, "open_and_apply", self._recording),
                patch.object(Publisher, "send", send_or_crash),
            ):
                return await asyncio.wait_for(coordinator.run(), 600.0)
        finally:
            await coordinator.stop()

    async def _nemesis(self) -> None:
        """Restart a random aggregator every now and then."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.2, 1.0))
            await self.restart_aggregator(self.rng.choice(AGGREGATORS))
