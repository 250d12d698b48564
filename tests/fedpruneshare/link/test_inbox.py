from __future__ import annotations

import asyncio

import pytest

from fedpruneshare.link import Delivery, LinkLimits, Traffic
from fedpruneshare.link.inbox import Inbox, matches


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+/b", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_topic_filters_as_the_standard_has_them(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


async def test_bounds_by_messages_and_by_bytes_and_room_is_announced() -> None:
    announced: list[bool] = []
    limits = LinkLimits(incoming_messages=2, payload_bytes=3000)
    inbox = Inbox(limits, Traffic(), lambda: 0.0, lambda: announced.append(True))
    handled = asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        handled.set()

    inbox.add("x", handle)
    states = []
    for _ in range(4):
        inbox.put(Delivery("x", bytes(1000)), lambda: None)
        states.append((inbox.is_full, inbox.is_out_of_memory))
    # Each waiting message counts its payload, its topic and 1 KiB of its own, against 2 × 3000 bytes.
    assert states == [(False, False), (True, False), (True, True), (True, True)]
    inbox.start("test")
    async with asyncio.timeout(60):
        while inbox.is_full:
            await asyncio.sleep(0)
    assert announced and handled.is_set()
    await asyncio.wait(inbox.stop())


async def test_acknowledged_after_the_handler_and_not_when_it_was_cancelled() -> None:
    acknowledged: list[str] = []
    inbox = Inbox(LinkLimits(), Traffic(), lambda: 0.0, lambda: None)
    entered, leave = asyncio.Event(), asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        entered.set()
        await leave.wait()

    inbox.add("#", handle)
    inbox.put(Delivery("first", b""), lambda: acknowledged.append("first"))
    inbox.put(Delivery("second", b""), lambda: acknowledged.append("second"))
    inbox.start("test")
    await entered.wait()
    assert acknowledged == []
    entered.clear()
    leave.set()
    await asyncio.wait_for(entered.wait(), 60)
    assert acknowledged[0] == "first"
    entered.clear()
    leave.clear()
    inbox.put(Delivery("third", b""), lambda: acknowledged.append("third"))
    await asyncio.wait_for(entered.wait(), 60)
    await asyncio.wait(inbox.stop())
    assert acknowledged == ["first", "second"]


async def test_message_of_no_subscription_is_acknowledged() -> None:
    inbox, done = Inbox(LinkLimits(), Traffic(), lambda: 0.0, lambda: None), asyncio.Event()
    inbox.put(Delivery("x", b""), done.set)
    inbox.start("test")
    await asyncio.wait_for(done.wait(), 60)
    await asyncio.wait(inbox.stop())
