"""What every link does, in memory and over both real brokers (docs/protocol.md §3.1)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fedpruneshare.errors import DisconnectedError, PayloadTooLargeError
from fedpruneshare.link import Delivery, LinkLimits

SMALL = LinkLimits(payload_bytes=1000, incoming_messages=4, outgoing_messages=8)


async def test_round_trip_keeps_bytes_and_order(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()
    await receiver.subscribe(world.topic("up/+"), got)
    payloads = [bytes([place]) * (place * 1000) for place in range(50)]
    for payload in payloads:
        await sender.publish(world.topic("up/x"), payload)
    await got.until(50)
    assert got.payloads == payloads
    assert {delivery.topic for delivery in got.deliveries} == {world.topic("up/x")}
    assert not any(delivery.retained for delivery in got.deliveries)
    assert sender.traffic.sent_bytes == receiver.traffic.received_bytes == sum(map(len, payloads))
    assert sender.traffic.sent_messages == receiver.traffic.received_messages == 50


async def test_subscribed_before_connecting(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), world.link("b"), seen()
    await sender.publish(world.topic("round"), b"plan", retain=True)
    await receiver.subscribe(world.topic("round"), got)
    await receiver.connect()
    await got.until(1)
    assert got.deliveries[0].retained


async def test_retained_chunks_are_the_current_ones_at_each_subscription(world: Any, seen: Any) -> None:
    sender, receiver = await world.connected("a"), await world.connected("b")
    segment, marker = world.topic("model/0/+"), world.topic("marker")

    async def fetch() -> dict[str, bytes]:
        got, end = seen(), seen()
        await receiver.subscribe(segment, got)
        await receiver.subscribe(marker, end)
        await sender.publish(marker, b"")  # in order behind the retained ones
        await end.until(1)
        await receiver.unsubscribe(marker)
        await receiver.unsubscribe(segment)
        assert all(delivery.retained for delivery in got.deliveries)
        return {delivery.topic.rsplit("/", 1)[1]: delivery.payload for delivery in got.deliveries}

    for chunk in range(4):
        await sender.publish(world.topic(f"model/0/{chunk}"), b"old", retain=True)
    assert await fetch() == dict.fromkeys("0123", b"old")
    await sender.publish(world.topic("model/0/1"), b"", retain=True)
    await sender.publish(world.topic("model/0/2"), b"new", retain=True)
    await sender.publish(world.topic("model/0/4"), b"new", retain=True)
    assert await fetch() == {"0": b"old", "2": b"new", "3": b"old", "4": b"new"}
    for chunk in range(5):
        await sender.publish(world.topic(f"model/0/{chunk}"), b"", retain=True)
    assert await fetch() == {}


async def test_live_message_on_a_retained_topic_is_not_marked_retained(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()
    await receiver.subscribe(world.topic("round"), got)
    await sender.publish(world.topic("round"), b"plan", retain=True)
    await got.until(1)
    assert not got.deliveries[0].retained


async def test_expiry_reaches_the_handler(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()
    await receiver.subscribe(world.topic("up/+"), got)
    started_s = time.monotonic()
    await sender.publish(world.topic("up/a"), b"x", expiry_s=29.2)
    await sender.publish(world.topic("up/b"), b"x")
    await got.until(2)
    on_its_way_s = time.monotonic() - started_s
    assert 28.0 - on_its_way_s <= got.deliveries[0].expiry_s <= 30.0
    assert got.deliveries[1].expiry_s is None


async def test_waiting_behind_a_slow_handler_shortens_the_expiry(world: Any) -> None:
    sender, receiver = await world.connected("a"), await world.connected("b")
    expiries: list[float | None] = []
    both = asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        expiries.append(delivery.expiry_s)
        if len(expiries) == 2:
            both.set()
        while receiver.traffic.received_messages < 2:  # until the second one waits
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)

    await receiver.subscribe(world.topic("up/+"), slow)
    for _ in range(2):
        await sender.publish(world.topic("up/a"), b"x", expiry_s=30)
    await asyncio.wait_for(both.wait(), 60)
    assert expiries[0] is not None and expiries[1] is not None
    assert expiries[0] <= 30.0
    assert expiries[1] <= 30.0 - 0.2


async def test_expired_retained_message_is_not_delivered(world: Any, seen: Any) -> None:
    sender, receiver, got, end = await world.connected("a"), await world.connected("b"), seen(), seen()
    await sender.publish(world.topic("old/a"), b"x", retain=True, expiry_s=0.4)  # rounded up to one second
    await sender.publish(world.topic("old/b"), b"y", retain=True, expiry_s=60)
    started_s = time.monotonic()
    await asyncio.sleep(2.1)
    assert time.monotonic() - started_s > 2
    await receiver.subscribe(world.topic("old/+"), got)
    await receiver.subscribe(world.topic("marker"), end)
    await sender.publish(world.topic("marker"), b"")
    await end.until(1)
    assert got.payloads == [b"y"]
    assert got.deliveries[0].expiry_s < 59


async def test_what_is_handed_over_and_what_arrives_is_told_as_it_is_counted(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()
    arrived: list[tuple[str, int]] = []
    sent: list[int] = []
    receiver.traffic.on_received = lambda topic, size: arrived.append((topic, size))
    await receiver.subscribe(world.topic("up"), got)
    for size in (3, 70_000):
        await sender.publish(world.topic("up"), bytes(size), on_sent=lambda: sent.append(sender.traffic.sent_bytes))
    with pytest.raises(PayloadTooLargeError):
        await sender.publish(world.topic("up"), bytes(256 * 1024 + 1), on_sent=lambda: sent.append(0))
    await got.until(2)
    assert sent == [3, 70_003]
    assert arrived == [(world.topic("up"), 3), (world.topic("up"), 70_000)]
    assert (sender.traffic.connects, receiver.traffic.connects) == (1, 1)


async def test_too_large_is_refused_before_queueing_and_a_small_one_passes(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()
    await receiver.subscribe(world.topic("up"), got)
    with pytest.raises(PayloadTooLargeError, match=r"262145 bytes.*at most 262144"):
        await sender.publish(world.topic("up"), bytes(256 * 1024 + 1))
    assert sender.traffic.sent_bytes == 0
    await sender.publish(world.topic("up"), bytes(256 * 1024))
    await sender.publish(world.topic("up"), b"small")
    await got.until(2)
    assert [len(payload) for payload in got.payloads] == [256 * 1024, 5]


async def test_incoming_above_the_limit_is_dropped_and_the_next_one_arrives(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b", SMALL), seen()
    await receiver.subscribe(world.topic("up"), got)
    await sender.publish(world.topic("up"), bytes(1001))
    await sender.publish(world.topic("up"), bytes(1000))
    await got.until(1)
    assert [len(payload) for payload in got.payloads] == [1000]


async def test_failing_handler_does_not_stop_the_link(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b"), seen()

    async def failing(delivery: Delivery) -> None:
        await got(delivery)
        raise ValueError("bad luck")

    await receiver.subscribe(world.topic("up"), failing)
    await sender.publish(world.topic("up"), b"1")
    await sender.publish(world.topic("up"), b"2")
    await got.until(2)
    assert got.payloads == [b"1", b"2"]


async def test_slow_handler_loses_nothing_and_runs_one_at_a_time(world: Any, seen: Any) -> None:
    sender, receiver, got = await world.connected("a"), await world.connected("b", SMALL), seen()
    running = 0

    async def slow(delivery: Delivery) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.002)
        running -= 1
        await got(delivery)

    await receiver.subscribe(world.topic("up"), slow)
    await asyncio.gather(*(sender.publish(world.topic("up"), b"%d" % place) for place in range(200)))
    await got.until(200)
    assert sorted(map(int, got.payloads)) == list(range(200))


async def test_handler_that_publishes_while_its_queue_is_full(world: Any, seen: Any) -> None:
    limits = LinkLimits(incoming_messages=8, publish_timeout_s=30)
    sender, receiver, got = await world.connected("a"), await world.connected("b", limits), seen()

    async def answer(delivery: Delivery) -> None:
        await receiver.publish(world.topic("ack"), delivery.payload)

    await receiver.subscribe(world.topic("up"), answer)
    await sender.subscribe(world.topic("ack"), got)
    await asyncio.gather(*(sender.publish(world.topic("up"), b"%d" % place) for place in range(60)))
    await got.until(60)
    assert sorted(map(int, got.payloads)) == list(range(60))


async def test_unsubscribed_is_silent(world: Any, seen: Any) -> None:
    sender, receiver, got, end = await world.connected("a"), await world.connected("b"), seen(), seen()
    await receiver.subscribe(world.topic("up"), got)
    await receiver.subscribe(world.topic("marker"), end)
    await sender.publish(world.topic("up"), b"1")
    await got.until(1)
    await receiver.unsubscribe(world.topic("up"))
    await sender.publish(world.topic("up"), b"2")
    await sender.publish(world.topic("marker"), b"")
    await end.until(1)
    assert got.payloads == [b"1"]


async def test_what_was_not_acknowledged_comes_again_to_a_kept_session(world: Any, seen: Any) -> None:
    sender, receiver, started = await world.connected("a"), world.link("b", session_expiry_s=600), asyncio.Event()

    async def stuck(_delivery: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    await receiver.subscribe(world.topic("up"), stuck)
    await receiver.connect()
    await sender.publish(world.topic("up"), b"1")
    await asyncio.wait_for(started.wait(), 60)
    await receiver.close()
    await sender.publish(world.topic("up"), b"2")
    again, got = world.link("b", session_expiry_s=600), seen()
    await again.subscribe(world.topic("up"), got)
    await again.connect()
    await got.until(2)
    assert got.payloads == [b"1", b"2"]


async def test_on_connect_runs_with_subscriptions_made(world: Any, seen: Any) -> None:
    link, got, calls = world.link("a"), seen(), []

    async def hello(is_first: bool) -> None:
        calls.append(is_first)
        await link.publish(world.topic("self"), b"hello")

    link.on_connect(hello)
    await link.subscribe(world.topic("self"), got)
    await link.connect()
    await got.until(1)
    assert calls == [True]


async def test_closed_link_says_so_and_leaves_no_task(world: Any) -> None:
    before = asyncio.all_tasks()
    link = await world.connected("a")
    await link.close()
    await link.close()
    with pytest.raises(DisconnectedError):
        await link.publish(world.topic("x"), b"")
    assert asyncio.all_tasks() == before


async def test_connect_twice_is_a_mistake_of_the_caller(world: Any) -> None:
    link = await world.connected("a")
    with pytest.raises(RuntimeError):
        await link.connect()
