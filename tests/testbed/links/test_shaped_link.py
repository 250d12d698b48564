"""Links that are slowed down in the device's own process: exact in virtual time, and a `Link` in every other way."""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedpruneshare.link import BrokerAddress, Delivery, Link, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.party import LinkSettings
from testbed.links.settings import LinkProfile
from testbed.links.shaped_link import Radio, ShapedLink, Shaping, Way, shaped

#: 10,000 bytes of payload in 7 frames, with PUBLISH header.
WIRE_BYTES = 10_000 + 60 + 7 * 66


class Time:
    """A clock that jumps to the next sleeper when everybody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        future = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._sleepers, (self.now_s + seconds, self._number, future))
        await future

    async def run(self, work: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(50):
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                self.now_s, _, future = heapq.heappop(self._sleepers)
                future.set_result(None)
        return task.result()


def way(seed: int = 1, **keys: Any) -> Way:
    profile = LinkProfile(**keys)
    return Way(profile, profile.up_bit_s, (seed, seed + 1))


def test_a_message_takes_the_time_of_its_frames_and_the_next_waits_for_it() -> None:
    link = way(up_kbit_s=100, delay_ms=50)
    assert link.carry(0.0, 10_000) == pytest.approx(WIRE_BYTES * 8 / 100_000 + 0.05)
    assert link.carry(0.0, 10_000) == pytest.approx(2 * WIRE_BYTES * 8 / 100_000 + 0.05)
    assert link.carry(10.0, 10_000) == pytest.approx(10 + WIRE_BYTES * 8 / 100_000 + 0.05)


def test_losses_cost_their_frames_again_and_a_round_trip() -> None:
    sound, lossy = way(up_kbit_s=1000), way(up_kbit_s=1000, loss_percent=10)
    for _ in range(200):
        expected, found = sound.carry(0.0, 100_000), lossy.carry(0.0, 100_000)
    assert found / expected == pytest.approx(1 / 0.9, rel=0.03)
    slow = way(delay_ms=100, loss_percent=50)
    assert slow.carry(0.0, 100_000) >= 0.1 + 3 * 0.2


def test_an_outage_and_a_sleeping_radio_make_messages_wait() -> None:
    asleep = way(duty_period_s=10, duty_on_s=1)
    assert asleep.carry(0.5, 100) == 0.5
    assert asleep.carry(2.0, 100) == 10.0
    patchy = way(outage_every_s=20, outage_s=5)
    waits = [patchy.carry(now, 100) - now for now in map(float, range(1000))]
    assert max(waits) == pytest.approx(5.0, abs=1.0)
    assert sum(wait > 0 for wait in waits) == pytest.approx(250, abs=80)


def test_a_message_that_takes_longer_than_the_radio_is_on_pauses_in_every_gap() -> None:
    """Otherwise a chunk of 64 kB would pass a slow radio that is on for a tenth of the time ten times too fast."""
    alone_s = (150_060 + 104 * 66) * 8 / 100_000
    assert way(up_kbit_s=100).carry(0.0, 150_000) == pytest.approx(alone_s)
    asleep = way(up_kbit_s=100, duty_period_s=10.0, duty_on_s=1.0)
    assert asleep.carry(0.0, 150_000) == pytest.approx(10 * int(alone_s) + alone_s % 1)
    in_parts = way(up_kbit_s=100, duty_period_s=0.1, duty_on_s=0.05)
    assert in_parts.carry(0.0, 150_000) == pytest.approx(2 * alone_s, abs=0.1)
    out = way(up_kbit_s=100, outage_every_s=20.0, outage_s=5.0)
    assert 1.15 < out.carry(0.0, 1_500_000) / (10 * alone_s) < 1.6


def test_publishing_and_receiving_over_a_shaped_link() -> None:
    asyncio.run(publishing_and_receiving())


async def publishing_and_receiving() -> None:
    time = Time()
    broker = MemoryBroker(random.Random(1), time.clock)
    profile = LinkProfile(up_kbit_s=100, down_kbit_s=1000, delay_ms=50)
    device: Link = ShapedLink(
        MemoryLink(broker, "device", LinkLimits()), Radio(Shaping(profile, 1), time.clock, time.sleep)
    )
    service = MemoryLink(broker, "service", LinkLimits())
    got: list[tuple[str, float, Delivery]] = []

    def note(who: str) -> Callable[[Delivery], Awaitable[None]]:
        async def handler(delivery: Delivery) -> None:
            got.append((who, time.now_s, delivery))

        return handler

    await service.subscribe("up/#", note("service"))
    await device.subscribe("down/#", note("device"))
    await service.connect()
    await time.run(device.connect())
    began_s = time.now_s
    assert began_s == pytest.approx(0.3)

    await time.run(device.publish("up/1", b"x" * 10_000, expiry_s=60.0))
    sent_s = WIRE_BYTES * 8 / 100_000
    assert time.now_s - began_s == pytest.approx(sent_s + 0.1)
    assert got[0][1] - began_s == pytest.approx(sent_s + 0.05)
    assert got[0][2].expiry_s == pytest.approx(60 - sent_s - 0.05, abs=1.0)
    assert device.traffic.sent_bytes == 10_000

    began_s = time.now_s
    for number in range(3):
        await service.publish(f"down/{number}", b"y" * 10_000, expiry_s=30.0)
    while len(got) < 4:
        await time.run(time.sleep(0.01))
    arrived = [(at - began_s, delivery) for who, at, delivery in got if who == "device"]
    took_s = WIRE_BYTES * 8 / 1_000_000
    assert [at for at, _ in arrived] == pytest.approx([0.05 + took_s * (index + 1) for index in range(3)], abs=0.02)
    assert arrived[2][1].expiry_s is not None
    assert arrived[2][1].expiry_s < 30.0
    await device.close()
    await service.close()


def test_all_links_of_a_device_share_its_radio() -> None:
    time = Time()
    opened: list[str] = []
    broker = MemoryBroker(random.Random(1), time.clock)

    def open_link(address: BrokerAddress, client_id: str, settings: LinkSettings) -> Link:
        opened.append(str(address.port))
        return MemoryLink(broker, f"{client_id}-{address.port}", settings.limits())

    make = shaped(open_link, Shaping(LinkProfile(up_kbit_s=100), 1), time.clock)
    first, second = (make(BrokerAddress("localhost", port), "device", LinkSettings()) for port in (1, 2))
    assert opened == ["1", "2"]
    assert isinstance(first, ShapedLink)
    assert isinstance(second, ShapedLink)
    assert first._radio is second._radio


def test_how_a_device_is_shaped_travels_by_file(tmp_path: Path) -> None:
    path = tmp_path / "device-00.link.json"
    assert Shaping.read(path) is None
    shaping = Shaping(LinkProfile(up_kbit_s=64, metered=True), 9)
    path.write_bytes(shaping.to_json())
    assert Shaping.read(path) == shaping
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "more": 1}))
    with pytest.raises(msgspec.ValidationError, match="more"):
        Shaping.read(path)
