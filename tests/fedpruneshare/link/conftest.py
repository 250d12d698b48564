"""Links to a memory broker, to iotcore and to Mosquitto behind one fixture."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpruneshare.link import Link, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.link.mqtt import MqttLink
from firmware_configs.brokers import Broker
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker

BrokerKind = str
WAIT_S = 10.0


def new_broker(kind: BrokerKind, folder: Path, **mosquitto: Any) -> Broker:
    if kind == "iotcore":
        return embedded_broker(folder)
    return mosquitto_broker(MosquittoSettings(folder, **mosquitto))


class World:
    """One broker, and links to it that are closed at the end of the test."""

    def __init__(self, broker: Broker | MemoryBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.links: list[Link] = []

    def topic(self, rest: str) -> str:
        return f"t/{self.name}/{rest}"

    def link(self, client_id: str, limits: LinkLimits | None = None, session_expiry_s: int = 0) -> Link:
        limits = limits or LinkLimits(reconnect_min_s=0.05, reconnect_max_s=0.5)
        name = f"{self.name}-{client_id}"
        link: Link
        if isinstance(self.broker, MemoryBroker):
            link = MemoryLink(self.broker, name, limits, session_expiry_s=session_expiry_s)
        else:
            link = MqttLink(self.broker.address, name, limits, random.Random(name), session_expiry_s=session_expiry_s)
        self.links.append(link)
        return link

    async def connected(self, client_id: str, limits: LinkLimits | None = None, session_expiry_s: int = 0) -> Link:
        link = self.link(client_id, limits, session_expiry_s)
        await link.connect()
        return link

    async def close(self) -> None:
        for link in self.links:
            await link.close()


class Seen:
    """A handler that keeps what it got and can be waited for."""

    def __init__(self) -> None:
        self.deliveries: list[Any] = []
        self._changed = asyncio.Event()

    async def __call__(self, delivery: Any) -> None:
        self.deliveries.append(delivery)
        self._changed.set()

    @property
    def payloads(self) -> list[bytes]:
        return [delivery.payload for delivery in self.deliveries]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.deliveries) < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def seen() -> Callable[[], Seen]:
    return Seen


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Start a broker of this test alone."""
    started: list[Broker] = []

    def start(kind: BrokerKind, **mosquitto: Any) -> Broker:
        broker = new_broker(kind, tmp_path / f"broker-{len(started)}", **mosquitto)
        broker.start()
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture(scope="module")
def shared_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[BrokerKind], Broker]]:
    """One broker of each kind for the whole module; tests keep apart by topic."""
    brokers: dict[BrokerKind, Broker] = {}

    def get(kind: BrokerKind) -> Broker:
        if kind not in brokers:
            brokers[kind] = new_broker(kind, tmp_path_factory.mktemp(kind))
            brokers[kind].start()
        return brokers[kind]

    yield get
    for broker in brokers.values():
        broker.stop()


@pytest.fixture
def open_world(request: pytest.FixtureRequest) -> Callable[[Broker | MemoryBroker], World]:
    return lambda broker: World(broker, request.node.name.replace("[", "-").replace("]", ""))


@pytest.fixture(params=["memory", pytest.param("iotcore"), pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
async def world(
    request: pytest.FixtureRequest, shared_brokers: Callable[[BrokerKind], Broker], open_world: Any
) -> AsyncIterator[World]:
    """The three kinds of link alike."""
    memory = request.param == "memory"
    broker = MemoryBroker(random.Random(1), time.monotonic) if memory else shared_brokers(request.param)
    world = open_world(broker)
    yield world
    await world.close()


@pytest.fixture(params=["iotcore", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
async def own_world(request: pytest.FixtureRequest, start_broker: Any, open_world: Any) -> AsyncIterator[World]:
    """A real broker of this test alone, to be killed and restarted."""
    world = open_world(start_broker(request.param))
    yield world
    await world.close()
