"""The receiving half of a link: a bounded queue, one worker, and who gets what (docs/protocol.md §3.1).

Shared by `MqttLink` and `MemoryLink`, so that order, acknowledgement and refusal are the same on both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from fedpruneshare.link import Delivery, Handler, LinkLimits, Subscription, Traffic

log = structlog.get_logger()

Clock = Callable[[], float]

#: What one waiting message takes besides its payload and topic.
_ENTRY_BYTES: Final = 1024


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


def _cost_bytes(delivery: Delivery) -> int:
    return len(delivery.payload) + len(delivery.topic) + _ENTRY_BYTES


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
        self._queued_bytes = 0
        self._work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def is_full(self) -> bool:
        """Whether the bound on waiting messages is reached."""
        return len(self._queue) >= self._limits.incoming_messages

    @property
    def is_out_of_memory(self) -> bool:
        """Whether what waits takes as many bytes as `incoming_messages` of the largest size would."""
        return self._queued_bytes >= self._limits.incoming_messages * self._limits.payload_bytes

    def add(self, topic_filter: str, handler: Handler) -> None:
        """Route what matches a filter to a handler; a filter has one handler, the last one given."""
        self.subscriptions[topic_filter] = Subscription(topic_filter, handler)

    def put(self, delivery: Delivery, acknowledge: Callable[[], None]) -> None:
        """Queue one delivery. One above the payload limit is logged, acknowledged and dropped."""
        self._traffic.received(delivery.topic, len(delivery.payload))
        if len(delivery.payload) > self._limits.payload_bytes:
            found, expected = len(delivery.payload), self._limits.payload_bytes
            log.warning("incoming message too large", topic=delivery.topic, bytes=found, limit_bytes=expected)
            acknowledge()
            return
        self._queued_bytes += _cost_bytes(delivery)
        self._queue.append(Arrival(delivery, acknowledge, self._clock()))
        self._work.set()

    def start(self, name: str) -> None:
        """Start handling. A `RuntimeError` the second time: a link connects once."""
        if self._worker is not None:
            raise RuntimeError(f"{name} was connected before, expected one connect on an open link")
        self._worker = asyncio.create_task(self._run(), name=f"inbox of {name}")

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel the handler that runs; what is left to be waited for, nothing if that handler called."""
        self._is_stopped = True
        if self._worker is None or self._worker is asyncio.current_task():
            return []
        self._worker.cancel()
        return [self._worker]

    async def _run(self) -> None:
        while not self._is_stopped:
            await self._work.wait()
            was_full = self.is_full
            arrival = self._queue.popleft()
            self._queued_bytes -= _cost_bytes(arrival.delivery)
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
