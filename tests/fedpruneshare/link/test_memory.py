"""The weather of the memory link: seeded, and only as bad as it was told to be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from fedpruneshare.errors import DisconnectedError, LinkError
from fedpruneshare.link import LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink, Weather


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def run_through(weather: Weather, seed: int, seen: Callable[[], Any]) -> tuple[list[bytes], list[bytes]]:
    """What a sender believed taken and what a receiver got, of 400 messages."""
    broker = MemoryBroker(random.Random(seed), Clock(), weather)
    sender, receiver = MemoryLink(broker, "a", LinkLimits()), MemoryLink(broker, "b", LinkLimits())
    got = seen()
    await receiver.subscribe("up", got)
    await receiver.connect()
    await sender.connect()
    taken = []
    for number in range(400):
        try:
            await sender.publish("up", b"%d" % number)
            taken.append(b"%d" % number)
        except DisconnectedError:
            pass
    await settle()
    while len(got.payloads) < len(taken):
        await asyncio.sleep(0)
    await settle()
    await sender.close()
    await receiver.close()
    return taken, got.payloads


async def test_lost_ones_are_reported_and_half_of_them_arrive_all_the_same(seen: Any) -> None:
    taken, got = await run_through(Weather(loss=0.3), 7, seen)
    assert 220 < len(taken) < 340
    assert set(taken) < set(got) < {b"%d" % number for number in range(400)}
    assert len(got) == len(set(got))


async def test_same_seed_same_weather(seen: Any) -> None:
    weather = Weather(loss=0.2, duplication=0.2)
    assert await run_through(weather, 7, seen) == await run_through(weather, 7, seen)
    assert await run_through(weather, 7, seen) != await run_through(weather, 8, seen)


async def test_duplicates(seen: Any) -> None:
    taken, got = await run_through(Weather(duplication=0.25), 3, seen)
    assert len(taken) == 400
    assert 450 < len(got) < 550
    assert set(got) == set(taken)


async def test_delay_is_slept_and_bounded_by_the_time_out(seen: Any) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0 if seconds < 5 else 60)

    broker = MemoryBroker(random.Random(1), Clock(), Weather(delay_s=(1.0, 2.0)), sleep=sleep)
    link = MemoryLink(broker, "a", LinkLimits())
    await link.connect()
    for _ in range(20):
        await link.publish("x", b"")
    assert len(slept) == 20 and 1.0 <= min(slept) < max(slept) <= 2.0
    await link.close()
    broker.weather = Weather(delay_s=(9.0, 9.0))
    hasty = MemoryLink(broker, "a", LinkLimits(publish_timeout_s=0.05))
    await hasty.connect()
    with pytest.raises(LinkError, match="no answer"):
        await hasty.publish("x", b"")
    await hasty.close()


async def test_expiry_follows_the_brokers_clock(seen: Any) -> None:
    clock = Clock()
    broker = MemoryBroker(random.Random(1), clock)
    sender, receiver = MemoryLink(broker, "a", LinkLimits()), MemoryLink(broker, "b", LinkLimits(), session_expiry_s=60)
    got = seen()
    await receiver.subscribe("up", got)
    await receiver.connect()
    await sender.connect()
    broker.cut("b")
    await sender.publish("up", b"short", expiry_s=3)
    await sender.publish("up", b"long", expiry_s=10)
    clock.now_s += 3
    broker.heal("b")
    await got.until(1)
    await settle()
    assert got.payloads == [b"long"]
    assert got.deliveries[0].expiry_s == 7
    await sender.close()
    await receiver.close()


async def test_cut_and_healed(seen: Any) -> None:
    broker = MemoryBroker(random.Random(1), Clock())
    sender, forgetful = MemoryLink(broker, "a", LinkLimits()), MemoryLink(broker, "b", LinkLimits())
    got, calls = seen(), []

    async def connected(is_first: bool) -> None:
        calls.append(is_first)

    forgetful.on_connect(connected)
    await forgetful.subscribe("up", got)
    await forgetful.connect()
    await sender.connect()
    await settle()  # or the cut would come before the first greeting, and cancel it
    broker.cut("b")
    with pytest.raises(DisconnectedError):
        await forgetful.publish("x", b"")
    await sender.publish("up", b"missed")
    broker.heal("b")
    await sender.publish("up", b"heard")
    await got.until(1)
    await settle()
    assert got.payloads == [b"heard"]
    assert calls == [True, False]
    await sender.close()
    await forgetful.close()


async def test_connecting_while_cut_off() -> None:
    broker = MemoryBroker(random.Random(1), Clock())
    broker.cut("a")
    with pytest.raises(LinkError, match="cut off"):
        await MemoryLink(broker, "a", LinkLimits()).connect()
    patient = MemoryLink(broker, "a", LinkLimits())
    waiting = asyncio.create_task(patient.connect(wait=True))
    await settle()
    assert not waiting.done()
    broker.heal("a")
    await asyncio.wait_for(waiting, 60)
    await patient.close()
