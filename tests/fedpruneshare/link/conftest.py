"""Links to a memory broker, to iotcore and to Mosquitto behind one fixture."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from certificates import Certificates

from fedpruneshare.link import Link, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.link.tls import TlsSettings
from firmware_configs.brokers import Broker
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker

BrokerKind = str
WAIT_S = 60.0
#: Who issues the certificates that a broker takes, for those that want any.
_CERTIFICATES: WeakKeyDictionary[Broker, Certificates] = WeakKeyDictionary()


def new_broker(kind: BrokerKind, folder: Path, **mosquitto: Any) -> Broker:
    if kind == "iotcore":
        return embedded_broker(folder)
    if kind == "mosquitto-tls":
        certificates = Certificates(folder / "tls")
        access = {"allow_anonymous": False, "access_list": "pattern readwrite #\n"}
        broker = mosquitto_broker(MosquittoSettings(folder, **{**access, "tls": certificates.server()}, **mosquitto))
        _CERTIFICATES[broker] = certificates
        return broker
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
            tls = self.certificate(name)
            rng = random.Random(name)
            link = MqttLink(self.broker.address, name, limits, rng, session_expiry_s=session_expiry_s, tls=tls)
        self.links.append(link)
        return link

    def certificate(self, client_id: str) -> TlsSettings | None:
        """A certificate for a client where the broker wants one: the same name, the same user and session."""
        certificates = _CERTIFICATES.get(self.broker) if isinstance(self.broker, Broker) else None
        return certificates.client(hashlib.sha256(client_id.encode()).hexdigest()[:16]) if certificates else None

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


MOSQUITTO = [pytest.param(kind, marks=pytest.mark.mosquitto) for kind in ("mosquitto", "mosquitto-tls")]


@pytest.fixture(params=["memory", "iotcore", *MOSQUITTO])
async def world(
    request: pytest.FixtureRequest, shared_brokers: Callable[[BrokerKind], Broker], open_world: Any
) -> AsyncIterator[World]:
    """Every kind of link alike."""
    memory = request.param == "memory"
    broker = MemoryBroker(random.Random(1), time.monotonic) if memory else shared_brokers(request.param)
    world = open_world(broker)
    yield world
    await world.close()


@pytest.fixture(params=["iotcore", *MOSQUITTO])
async def own_world(request: pytest.FixtureRequest, start_broker: Any, open_world: Any) -> AsyncIterator[World]:
    """A real broker of this test alone, to be killed and restarted."""
    world = open_world(start_broker(request.param))
    yield world
    await world.close()
