"""What devices say to the coordinator between and in rounds, and what a device gone wrong costs it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest
from builders import DEVICES, directory, identity, view

from coordinator.desk import Desk
from coordinator.ledger import RoundLedger
from coordinator.store import RoundStore
from fedpruneshare import sealing
from fedpruneshare.keys import verify
from fedpruneshare.link import LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import Heartbeat, Hello
from fedpruneshare.party import Party
from fedpruneshare.topics import Role

FLOODER, OTHER = (Party(identity(device), directory(), Role.DEVICE) for device in DEVICES[:2])
TOPICS = FLOODER.topics
LIMITS = LinkLimits(publish_timeout_s=60.0)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[tuple[Desk, MemoryLink]]:
    """A desk with an open round of a minute, and somebody's link."""
    broker = MemoryBroker(random.Random(1), time.monotonic)
    own, link = MemoryLink(broker, "coordinator", LIMITS), MemoryLink(broker, "device", LIMITS)
    store = RoundStore(tmp_path / "store", bytes(32))
    desk = Desk(Party(identity("coordinator"), directory(), Role.COORDINATOR), store, own)
    desk.open(RoundLedger(view()))
    await desk.subscribe()
    await own.connect()
    await link.connect()
    yield desk, link
    await link.close()
    await own.close()
    store.close()


async def say_hello(link: MemoryLink, party: Party, rung_limit: int) -> None:
    await link.publish(TOPICS.name("hello", party.ident), party.sign(Hello("0.1.0", rung_limit)), retain=True)


def is_known(desk: Desk, party: Party, rung_limit: int) -> bool:
    return desk._store.fleet(1).limits.get(party.ident) == rung_limit


async def test_a_flood_of_one_device_costs_the_coordinator_next_to_nothing(scene: tuple[Desk, MemoryLink]) -> None:
    desk, link = scene
    await say_hello(link, FLOODER, 0)
    assert await desk.wait_until(lambda: is_known(desk, FLOODER, 0), 60)
    beats = [FLOODER.sign(Heartbeat(1, rung, "memory", 1.0, 1.0, 1, 1)) for rung in (0, 1)]
    hellos = [FLOODER.sign(Hello("0.1.0", rung)) for rung in (0, 1)]
    changes = desk._store._db.total_changes
    with patch.object(sealing, "verify", wraps=verify) as verified:
        for number in range(400):
            await link.publish(TOPICS.name("heartbeat", FLOODER.ident), beats[number % 2])
            await link.publish(TOPICS.name("hello", FLOODER.ident), hellos[number % 2])
        await say_hello(link, OTHER, 2)
        assert await desk.wait_until(lambda: is_known(desk, OTHER, 2), 60)
    assert verified.call_count <= 2 * (256 + 6) + 1
    assert desk._store._db.total_changes - changes <= 2 * (256 + 6) + 1


async def test_with_the_next_round_a_device_is_heard_again(scene: tuple[Desk, MemoryLink]) -> None:
    desk, link = scene
    for _ in range(300):
        await say_hello(link, FLOODER, 1)
    await say_hello(link, FLOODER, 5)
    await say_hello(link, OTHER, 5)
    assert await desk.wait_until(lambda: is_known(desk, OTHER, 5), 60)
    assert is_known(desk, FLOODER, 1)
    desk.open(RoundLedger(view(2)))
    await say_hello(link, FLOODER, 5)
    assert await desk.wait_until(lambda: is_known(desk, FLOODER, 5), 60)


async def test_a_hello_that_says_nothing_new_writes_nothing(scene: tuple[Desk, MemoryLink]) -> None:
    desk, _ = scene
    store = desk._store
    store.greet({FLOODER.ident: 3})
    changes = store._db.total_changes
    store.greet({FLOODER.ident: 3})
    assert store._db.total_changes == changes
    store.note_rung(FLOODER.ident, 1)
    store.note_round((FLOODER.ident,), set())
    store.greet({FLOODER.ident: 3})
    assert (store.fleet(1).limits, store.fleet(1).expected) == ({FLOODER.ident: 3}, {})
    store.greet({FLOODER.ident: 4})
    assert is_known(desk, FLOODER, 4)


@pytest.mark.parametrize("steps", range(4))
async def test_who_waits_is_ended_also_where_something_has_just_come(
    scene: tuple[Desk, MemoryLink], steps: int
) -> None:
    """As by a SIGTERM in a round full of messages: it must not be taken for one of them."""
    desk, _ = scene
    waiting = asyncio.create_task(desk.wait_until(lambda: False, 30.0))
    await asyncio.sleep(0.01)
    desk.wake()
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=60.0)
    assert waiting.done() and waiting.cancelled()
