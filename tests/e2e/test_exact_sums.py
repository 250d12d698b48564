"""The opened sum equals the plain integer sum bit for bit, over real brokers (docs/protocol.md §4.5, §5.5).

Three real aggregators, each on a broker of its own, get known words of nine devices with mixed rungs and unequal
weights through the devices' own couriers. The test plays the coordinator with the coordinator's own ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from aggregator.service import Aggregator
from aggregator.settings import AggregatorSettings
from coordinator.answers import sum_vectors
from coordinator.ledger import RoundLedger
from coordinator.planning import AvailableDevices, ModelState, TaskFacts, plan_round
from coordinator.settings import CodingSettings, CoordinatorSettings, PruningSettings, RoundSettings, SharingSettings
from coordinator.supports import publish_model
from edge_client.outbox import Upload
from edge_client.share_chunks import open_shares
from edge_client.uploading import Courier, Parcel
from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service, party_keys
from fedpruneshare.link import Delivery
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Attendance, Freeze, Missing, Receipt, SumShare, Verdict, digest, encode
from fedpruneshare.party import LinkSettings, Party, PartySettings
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.process import open_link
from fedpruneshare.sealing import Identity, sum_context
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sparse import parameters
from fedpruneshare.sparse.support import code_values
from fedpruneshare.topics import Role
from fedpruneshare.words import SegmentWords
from firmware_configs.brokers import Broker
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICES = tuple(f"device-{index}" for index in range(9))
RUNGS = dict(zip(DEVICES, (0, 0, 0, 1, 1, 1, 2, 2, 2), strict=True))
WEIGHTS = dict(zip(DEVICES, (1, 7, 500, 33, 512, 2, 100, 64, 9), strict=True))
SETTINGS = PartySettings(key_file="", directory="", root_key="0" * 64)


@dataclass
class World:
    """Parties, their directory, and a checked plan."""

    directory: Directory
    identities: dict[str, Identity]
    view: PlanView

    def party(self, ident: str, role: Role) -> Party:
        return Party(self.identities[ident], self.directory, role)


def start_brokers(kind: str, folder: Path, names: list[str]) -> dict[str, Broker]:
    brokers = {}
    for name in names:
        where = folder / name
        brokers[name] = mosquitto_broker(MosquittoSettings(where)) if kind == "mosquitto" else embedded_broker(where)
        brokers[name].start()
    return brokers


def make_world(brokers: dict[str, Broker], k: int) -> World:
    aggregators = [name for name in brokers if name != "coordinator"]
    identities = {name: Identity.generate(name) for name in [*brokers, *DEVICES]}

    def keys(name: str) -> tuple[PartyKeys, ...]:
        return tuple(party_keys(public) for public in identities[name].public())

    services = {name: Service(keys(name), b.address.host, b.address.port) for name, b in brokers.items()}
    directory = Directory(
        federation="lab",
        version=1,
        coordinator_id="coordinator",
        coordinator=services["coordinator"],
        aggregators={name: services[name] for name in aggregators},
        devices={name: DeviceEntry(keys(name)) for name in DEVICES},
        min_devices=3,
        min_devices_segment=3,
    )
    rng = np.random.default_rng(5)
    state = ModelState(
        code_values(rng.normal(size=5000).astype(np.float32)), np.zeros(40, np.float32), (0.1,), (0.1,), 0
    )
    settings = CoordinatorSettings(
        party=SETTINGS,
        bundle="",
        store="",
        rounds=RoundSettings(cohort=9, deadline_s=60.0),
        sharing=SharingSettings(threshold=k),
        pruning=PruningSettings(rungs=(0.25, 0.5, 1.0), start_density=0.5),
        coding=CodingSettings(chunk_bytes=1024),
    )
    table = parameters.ParameterTable(
        (
            parameters.Parameter("w", (50, 100), parameters.Role.WEIGHT),
            parameters.Parameter("b", (40,), parameters.Role.VECTOR),
        )
    )
    facts = TaskFacts("known-words", bytes(32), table)
    plan = plan_round(
        1, state, publish_model(state, 1, settings, facts), facts, (AvailableDevices(RUNGS), settings, directory)
    )
    return World(directory, identities, check_plan(plan, digest(encode(plan)), directory))


def known_segments(world: World) -> dict[str, list[SegmentWords]]:
    """Random integers over the whole allowed range, some devices at its very ends."""
    plan, rng = world.view.plan, np.random.default_rng(11)
    known = {}
    for device in DEVICES:
        low, high = (2**4 - 2, 2**16 - 2) if WEIGHTS[device] == 512 else (0, 0)
        known[device] = [
            SegmentWords(
                WEIGHTS[device],
                rng.integers(high, 2**16 - 1, segment.vectors, dtype=np.uint32),
                rng.integers(low, 2**4 - 1, segment.weights, dtype=np.uint32),
            )
            for segment in plan.segments[: RUNGS[device] + 1]
        ]
    return known


@asynccontextmanager
async def running_aggregators(world: World, folder: Path) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for name, service in world.directory.aggregators.items():
            own = open_link(service.address, name, LinkSettings())
            control = open_link(world.directory.coordinator.address, name, LinkSettings())
            settings = AggregatorSettings(party=SETTINGS, store=str(folder / f"store-{name}"))
            aggregator = Aggregator(world.party(name, Role.AGGREGATOR), settings, own, control)
            await aggregator.start()
            stack.push_async_callback(aggregator.stop)
        yield


async def upload_all(world: World, device: str, words: np.ndarray) -> list[Receipt]:
    """One device's real couriers, to every aggregator."""
    view, party = world.view, world.party(device, Role.DEVICE)
    seeds = {x: os.urandom(32) for x in range(1, view.scheme.t + 1)}
    upload = Upload(
        view.digest, 1, os.urandom(16), RUNGS[device], WEIGHTS[device], Prg.CHACHA20, seeds, words[:0], b"", words
    )
    shares = open_shares(view, device, upload)
    async with AsyncExitStack() as stack:
        deliveries = []
        for name, x in view.plan.points.items():
            link = open_link(world.directory.aggregators[name].address, device, LinkSettings())
            ends_at = asyncio.get_running_loop().time() + 60.0
            parcel = Parcel(view, upload, name, x, shares[x], ends_at)
            courier = Courier(party, link, parcel, Backoff(random.Random(1)), 4)

            async def on_ack(delivery: Delivery, courier: Courier = courier) -> None:
                message = party.open("ack", delivery.payload).message
                assert isinstance(message, (Receipt, Missing))
                courier.answer(message)

            await link.subscribe(party.topics.name("ack", device), on_ack)
            await link.connect()
            stack.push_async_callback(link.close)
            deliveries.append(courier.deliver(lambda size, is_first: None))
        return list(await asyncio.gather(*deliveries))


class Collector:
    """The coordinator's side: ledger, plan, freeze and sums."""

    def __init__(self, world: World) -> None:
        self.world, self.ledger = world, RoundLedger(world.view)
        self.party = world.party("coordinator", Role.COORDINATOR)
        self.changed = asyncio.Event()

    async def on_attendance(self, delivery: Delivery) -> None:
        opened = self.party.open("attendance", delivery.payload)
        assert isinstance(opened.message, Attendance)
        self.ledger.attend(opened.sender, opened.message)
        self.changed.set()

    async def on_sum(self, delivery: Delivery) -> None:
        opened = self.party.open("sum", delivery.payload)
        message = opened.message
        assert isinstance(message, SumShare), message
        self.ledger.check_answer(opened.sender, message)
        position = (message.x, message.chunk, message.chunks)
        context = sum_context("lab", message.freeze, (opened.sender, "coordinator"), position)
        data = self.party.identity.unseal(message.sealed, context, message.suite, message.key)
        self.ledger.add_answer_chunk(opened.sender, message.chunk, data)
        self.changed.set()

    async def until(self, predicate) -> None:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(60.0):
            while not predicate():
                self.changed.clear()
                await self.changed.wait()


@pytest.mark.parametrize(
    ("kind", "n", "k"),
    [
        ("embedded", 3, 2),
        ("embedded", 3, 3),
        ("embedded", 5, 3),
        pytest.param("mosquitto", 3, 2, marks=pytest.mark.mosquitto),
    ],
)
async def test_every_k_subset_opens_the_plain_integer_sum(tmp_path: Path, kind: str, n: int, k: int) -> None:
    names = ["coordinator", *(f"aggregator-{index}" for index in range(n))]
    brokers = start_brokers(kind, tmp_path, names)
    try:
        world = make_world(brokers, k)
        await check_round(world, tmp_path)
    finally:
        for broker in brokers.values():
            broker.stop()


async def check_round(world: World, folder: Path) -> None:
    view, known = world.view, known_segments(world)
    collector = Collector(world)
    link = open_link(world.directory.coordinator.address, "coordinator", LinkSettings())
    topics = collector.party.topics
    await link.subscribe(topics.every("attendance"), collector.on_attendance)
    await link.subscribe(topics.every("sum"), collector.on_sum)
    await link.connect()
    async with running_aggregators(world, folder):
        await link.publish(topics.name("round"), collector.party.sign(view.plan), retain=True, expiry_s=60)
        words = {device: np.concatenate([view.layout.pack(s) for s in known[device]]) for device in DEVICES}
        receipts = await asyncio.gather(*(upload_all(world, device, words[device]) for device in DEVICES))
        assert {receipt.verdict for each in receipts for receipt in each} == {Verdict.ACCEPTED}
        await collector.until(collector.ledger.is_everything_in)
        freeze = collector.ledger.choose_freeze()
        assert isinstance(freeze, Freeze), freeze
        assert (len(freeze.contributors), freeze.segments) == (9, (0, 1, 2))
        collector.ledger.freeze(freeze, digest(encode(freeze)))
        await link.publish(topics.name("freeze"), collector.party.sign(freeze))
        await collector.until(collector.ledger.is_every_answer_in)
    await link.close()
    check_sums(view, known, words, sum_vectors(view, freeze, collector.ledger.answers()))


def check_sums(view: PlanView, known: dict, words: dict, sums: dict) -> None:  # type: ignore[type-arg]
    plain = np.zeros(view.upload_words(2), dtype=np.uint64)
    for vector in words.values():
        plain[: vector.size] += vector
    assert int(plain.max()) < 2**31 - 1
    for subset in combinations(sorted(sums), view.scheme.k):
        opened = view.scheme.open({x: sums[x] for x in subset})
        assert np.array_equal(opened, plain), subset
    start = 0
    for index, segment in enumerate(view.plan.segments):
        part = view.layout.unpack(
            view.scheme.open(sums)[start : start + segment.words], segment.vectors, segment.weights
        )
        start += segment.words
        there = [device for device in DEVICES if RUNGS[device] >= index]
        assert part.weight == sum(WEIGHTS[device] for device in there)
        assert np.array_equal(part.values, sum(known[device][index].values for device in there))
        assert np.array_equal(part.vectors, sum(known[device][index].vectors for device in there))
