"""The receiving half of a link: a bounded queue, one worker, and who gets what (docs/protocol.md §3.1).

Shared by `MqttLink` and `MemoryLink`, so that order, acknowledgement and refusal are the same on both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from fedpruneshare.link import Delivery, Handler, LinkLimits, Subscription, Traffic

log = structlog.get_logger()

Clock = Callable[[], float]


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter (`+` one level, `#` the rest, its parent included) covers a topic."""
    levels = topic.split("/")
    if topic_filter[:1] in ("+", "#") and topic.startswith("$"):
        return False
    wanted = topic_filter.split("/")
    for place, part in enumerate(wanted):
        if part == "#":
            return True
        if place >= len(levels) or part not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)


@dataclass(frozen=True)
class Arrival:
    """A delivery in the queue, how to acknowledge it, and when it came (by the inbox's clock)."""

    delivery: Delivery
    acknowledge: Callable[[], None]
    arrived_s: float


class Inbox:
    """What a link received and has not handled yet.

    `on_space` is called when the queue has room again after `is_full` was true. The handlers run one at a time, in
    the order of arrival; a message is acknowledged when all its handlers have returned or failed. What is still
    queued or in a handler when the worker is cancelled is never acknowledged.
    """

    def __init__(self, limits: LinkLimits, traffic: Traffic, clock: Clock, on_space: Callable[[], None]) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self._limits = limits
        self._traffic = traffic
        self._clock = clock
        self._on_space = on_space
        self._queue: deque[Arrival] = deque()
        self._work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether the bound on waiting messages is reached."""
        return len(self._queue) >= self._limits.incoming_messages

    def add(self, topic_filter: str, handler: Handler) -> None:
        """Route what matches a filter to a handler; a filter has one handler, the last one given."""
        self.subscriptions[topic_filter] = Subscription(topic_filter, handler)

    def put(self, delivery: Delivery, acknowledge: Callable[[], None]) -> None:
        """Queue one delivery. One above the payload limit is logged, acknowledged and dropped."""
        self._traffic.received_bytes += len(delivery.payload)
        self._traffic.received_messages += 1
        if len(delivery.payload) > self._limits.payload_bytes:
            found, expected = len(delivery.payload), self._limits.payload_bytes
            log.warning("incoming message too large", topic=delivery.topic, bytes=found, limit_bytes=expected)
            acknowledge()
            return
        self._queue.append(Arrival(delivery, acknowledge, self._clock()))
        self._work.set()

    async def run(self) -> None:
        """Handle what comes, until cancelled."""
        while True:
            await self._work.wait()
            was_full = self.is_full
            arrival = self._queue.popleft()
            if not self._queue:
                self._work.clear()
            if was_full:
                self._on_space()
            await self._handle(self._aged(arrival))
            arrival.acknowledge()

    def _aged(self, arrival: Arrival) -> Delivery:
        # A round's deadline is read from the expiry, so the wait in our own queue must not prolong it.
        delivery = arrival.delivery
        if delivery.expiry_s is None:
            return delivery
        waited_s = self._clock() - arrival.arrived_s
        return replace(delivery, expiry_s=max(0.0, delivery.expiry_s - waited_s))

    async def _handle(self, delivery: Delivery) -> None:
        matching = [entry for entry in self.subscriptions.values() if matches(entry.topic_filter, delivery.topic)]
        if not matching:
            log.debug("message for no subscription", topic=delivery.topic)
        for entry in matching:
            try:
                await entry.handler(delivery)
            except Exception:
                log.exception("handler failed, message acknowledged all the same", topic=delivery.topic)


__all__ = ["Arrival", "Clock", "Inbox", "matches"]
