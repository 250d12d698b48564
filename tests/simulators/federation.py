"""A whole federation in one event loop: real coordinator, real aggregators, scripted devices, brokers with weather.

Only training is replaced: a device draws its integers instead of learning them, so that the sum is known exactly. All
messages, stores, rules and links' interfaces are those of the product.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from builders import AGGREGATORS, DEVICES, directory, identity
from onnx_models import TABLE, arrays, template

from aggregator.service import Aggregator
from aggregator.settings import AggregatorSettings
from coordinator.evaluation import Evaluator
from coordinator.service import Coordinator
from coordinator.settings import CodingSettings, CoordinatorSettings, PruningSettings, RoundSettings
from coordinator.workbench import Workbench
from edge_client.outbox import Upload
from edge_client.receiving import decode_model, receive_model
from edge_client.uploading import Courier, Parcel, split_upload
from fedpruneshare.bundle import Bundle, Manifest
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink, Weather
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Hello, Missing, Receipt, RoundPlan
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import PlanView, check_plan
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


@dataclass
class Federation:
    """Brokers, parties and what devices have uploaded: words by (device, upload id)."""

    folder: Path
    seed: int
    weather: Weather
    rounds: int = 2
    uploaded: dict[tuple[str, bytes], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        names = ("control", *AGGREGATORS)
        self.brokers = {n: MemoryBroker(random.Random(f"{self.seed} {n}"), time.monotonic, self.weather) for n in names}
        self.directory = directory()
        self.aggregators: dict[str, Aggregator] = {}
        self.links: list[MemoryLink] = []

    def link(self, broker: str, name: str) -> MemoryLink:
        self.links.append(MemoryLink(self.brokers[broker], name, LIMITS))
        return self.links[-1]

    def party(self, name: str, role: Role) -> Party:
        return Party(identity(name), self.directory, role)

    # ------------------------------------------------------------------ services

    async def start_aggregator(self, name: str) -> None:
        """Start an aggregator on its store, for the first time or again."""
        settings = AggregatorSettings(party=NOBODY, store=str(self.folder / name))
        links = self.link(name, name), self.link("control", name)
        self.aggregators[name] = Aggregator(self.party(name, Role.AGGREGATOR), settings, *links)
        await self.aggregators[name].start()

    async def restart_aggregator(self, name: str) -> None:
        """Stop it wherever it is, and go on from its store."""
        await self.aggregators[name].stop()
        await self.start_aggregator(name)

    def coordinator(self) -> Coordinator:
        """A coordinator on its store."""
        settings = CoordinatorSettings(
            party=NOBODY,
            bundle="",
            store="",
            rounds=RoundSettings(
                count=self.rounds, cohort=10, deadline_s=12.0, grace_s=0.5, sum_timeout_s=12.0, wait_for_devices_s=10.0
            ),
            pruning=PruningSettings(rungs=(0.25, 0.5, 1.0), dense_rounds=0, final_round=2),
            coding=CodingSettings(chunk_bytes=1024),
        )
        party = self.party("coordinator", Role.COORDINATOR)
        return Coordinator(party, settings, self.link("control", "coordinator"), bench(self.folder / "coordinator"))

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
        received = decode_model(view, TABLE, await receive_model(party, control, view, rung, lambda size: None))
        assert sum(p.size for p in received.positions) == sum(s.weights for s in view.plan.segments[: rung + 1])
        words, upload_id = self._words(view, rung), os.urandom(16)
        self.uploaded[party.ident, upload_id] = words
        seeds = {x: os.urandom(32) for x in range(1, view.scheme.t + 1)}
        upload = Upload(view.digest, view.plan.round_id, upload_id, rung, int(words[0]), seeds, words)
        shares = split_upload(view, party.ident, upload)
        ends_at = asyncio.get_running_loop().time() + 60
        for aggregator, x in view.plan.points.items():
            parcel = Parcel(view, upload, aggregator, x, shares[x], ends_at)
            backoff = Backoff(random.Random(0), cap_s=0.3)
            couriers[aggregator] = Courier(party, uplinks[aggregator], parcel, backoff, 2)
        await asyncio.gather(*(courier.deliver(lambda size, first: None) for courier in list(couriers.values())))

    def _words(self, view: PlanView, rung: int) -> np.ndarray:
        draw = np.random.default_rng(self.rng.randrange(2**32))
        weight = int(draw.integers(1, 513))
        segments = [
            SegmentWords(
                weight, draw.integers(0, 2**16 - 1, s.vectors, np.uint32), draw.integers(0, 15, s.weights, np.uint32)
            )
            for s in view.plan.segments[: rung + 1]
        ]
        return np.concatenate([view.layout.pack(segment) for segment in segments])

    # ------------------------------------------------------------------ all of it

    async def run(self, faults: bool = False) -> int:
        """Start everything, run all rounds, stop everything; the coordinator's exit code."""
        for name in AGGREGATORS:
            await self.start_aggregator(name)
        devices = [asyncio.create_task(self.device(name, place % 3)) for place, name in enumerate(DEVICES)]
        nemesis = asyncio.create_task(self._nemesis()) if faults else None
        coordinator = self.coordinator()
        try:
            return await asyncio.wait_for(coordinator.run(), 90.0)
        finally:
            await coordinator.stop()
            for task in (*devices, *([nemesis] if nemesis else [])):
                task.cancel()
            await asyncio.gather(*devices, *([nemesis] if nemesis else []), return_exceptions=True)
            for aggregator in self.aggregators.values():
                await aggregator.stop()

    async def _nemesis(self) -> None:
        """Restart a random aggregator every now and then."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.2, 1.0))
            await self.restart_aggregator(self.rng.choice(AGGREGATORS))
