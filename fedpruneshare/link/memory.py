"""`MemoryLink` and its `MemoryBroker`: the link in one process, with bad weather on demand (docs/protocol.md §3.1).

Does what the real brokers both do: retained messages, expiry, kept sessions, QoS 1. On top, seeded:
lost messages, lost acknowledgements, duplicates, delay; and partitions, cut and healed by name.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from fedpruneshare.errors import DisconnectedError, LinkError, PayloadTooLargeError
from fedpruneshare.link import ConnectHandler, Delivery, Handler, LinkLimits, Traffic
from fedpruneshare.link.inbox import Clock, Inbox, matches

log = structlog.get_logger()

Sleep = Callable[[float], Awaitable[None]]

#: What a session holds for a client that does not take it, as `max_queued_messages` does; the newest is dropped.
QUEUED_MESSAGES: Final = 100_000
PACKET_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Weather:
    """What befalls a publish: each a chance in 0…1, and a delay drawn evenly from `delay_s` (from, to).

    `loss` drops the connection for a moment: the sender gets `DisconnectedError`, and in half of the cases the message
    had arrived all the same. `duplication` hands a delivery over twice.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class _Stored:
    """A message in the broker; `until_s` by the broker's clock."""

    topic: str
    payload: bytes
    until_s: float

    def delivery(self, now_s: float, retained: bool) -> Delivery:
        left_s = None if math.isinf(self.until_s) else self.until_s - now_s
        return Delivery(self.topic, self.payload, retained, left_s)


@dataclass
class _Session:
    """What the broker knows of one client: its link, its filters, what waits and what is not acknowledged."""

    link: MemoryLink | None = None
    filters: set[str] = field(default_factory=set)
    waiting: deque[tuple[_Stored, bool]] = field(default_factory=deque)
    unacknowledged: OrderedDict[int, tuple[_Stored, bool]] = field(default_factory=OrderedDict)
    is_connected: bool = False
    is_kept: bool = False
    is_cut: bool = False


class MemoryBroker:
    """A broker in this process. All its links run in one asyncio loop; `rng` alone decides the weather."""

    def __init__(
        self, rng: random.Random, clock: Clock, weather: Weather | None = None, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.weather = weather or Weather()
        self.clock = clock
        self._rng = rng
        self._sleep = sleep
        self._retained: dict[str, _Stored] = {}
        self._sessions: dict[str, _Session] = {}
        self._deliveries = 0

    def cut(self, client_id: str) -> None:
        """Take a client off the network: it cannot publish and gets nothing, until `heal`."""
        session = self._session(client_id)
        session.is_cut = True
        self._disconnect(session)

    def heal(self, client_id: str) -> None:
        """Put a client back; its link reconnects at once and runs its `on_connect` handlers."""
        session = self._session(client_id)
        session.is_cut = False
        if session.link is not None:
            self._connect(session, session.link)

    def attach(self, link: MemoryLink, client_id: str, is_kept: bool) -> None:
        """Make a link the one of its client (an older one stays disconnected) and connect it unless it is cut off."""
        session = self._session(client_id)
        self._disconnect(session)
        session.link, session.is_kept = link, is_kept
        if not is_kept:
            session.waiting.clear()
        if not session.is_cut:
            self._connect(session, link)

    def detach(self, link: MemoryLink, client_id: str) -> None:
        """Log a link out for good; what it has not acknowledged waits for the next one, if the session is kept."""
        session = self._session(client_id)
        if session.link is link:
            self._disconnect(session)
            session.link = None

    def subscribe(self, client_id: str, topic_filter: str) -> None:
        """Add a filter to a session and hand over the retained messages that match."""
        session = self._session(client_id)
        session.filters.add(topic_filter)
        matching = [stored for stored in self._retained.values() if matches(topic_filter, stored.topic)]
        session.waiting.extend((stored, True) for stored in matching)
        self.feed(client_id)

    def unsubscribe(self, client_id: str, topic_filter: str) -> None:
        """Take a filter out of a session."""
        self._session(client_id).filters.discard(topic_filter)

    async def publish(self, client_id: str, stored: _Stored, retain: bool) -> bool:
        """Route one message through the weather; False if its sender must believe it lost."""
        low_s, high_s = self.weather.delay_s
        if high_s > 0:
            await self._sleep(self._rng.uniform(low_s, high_s))
        is_lost = self._rng.random() < self.weather.loss
        if not is_lost or self._rng.random() < 0.5:
            self._route(stored, retain)
        session = self._session(client_id)
        if is_lost and session.is_connected and session.link is not None:
            self._disconnect(session)
            self._connect(session, session.link)
        return not is_lost

    def feed(self, client_id: str) -> None:
        """Hand waiting messages to a session's link while it has room."""
        session = self._session(client_id)
        while session.is_connected and session.link is not None and session.waiting and session.link.has_room:
            stored, is_retained = session.waiting.popleft()
            if stored.until_s <= self.clock():
                continue
            self._deliveries += 1
            session.unacknowledged[self._deliveries] = (stored, is_retained)
            session.link.deliver(stored.delivery(self.clock(), is_retained), self._deliveries)

    def acknowledge(self, client_id: str, delivery: int) -> None:
        """Forget a delivery that was handled."""
        self._session(client_id).unacknowledged.pop(delivery, None)

    def _session(self, client_id: str) -> _Session:
        return self._sessions.setdefault(client_id, _Session())

    def _route(self, stored: _Stored, retain: bool) -> None:
        if retain:
            self._retained.pop(stored.topic, None)
            if stored.payload:
                self._retained[stored.topic] = stored
        for client_id, session in self._sessions.items():
            if not any(matches(topic_filter, stored.topic) for topic_filter in session.filters):
                continue
            copies = 2 if self._rng.random() < self.weather.duplication else 1
            if len(session.waiting) < QUEUED_MESSAGES:
                session.waiting.extend([(stored, False)] * copies)
            self.feed(client_id)

    def _connect(self, session: _Session, link: MemoryLink) -> None:
        session.is_connected = True
        link.connected()

    @staticmethod
    def _disconnect(session: _Session) -> None:
        if session.is_connected and session.link is not None:
            session.link.disconnected()
        session.is_connected = False
        again = list(session.unacknowledged.values())
        session.unacknowledged.clear()
        if session.is_kept:
            session.waiting.extendleft(reversed(again))
        else:
            session.filters.clear()
            session.waiting.clear()


class MemoryLink:
    """A `Link` to a `MemoryBroker`; sizes, order, acknowledgement and errors as `MqttLink` has them."""

    def __init__(self, broker: MemoryBroker, client_id: str, limits: LinkLimits, *, session_expiry_s: int = 0) -> None:
        self.traffic = Traffic()
        self._broker = broker
        self._client_id = client_id
        self._limits = limits
        self._is_kept = session_expiry_s > 0
        self._inbox = Inbox(limits, self.traffic, broker.clock, lambda: broker.feed(client_id))
        self._slots = asyncio.Semaphore(limits.outgoing_messages)
        self._greetings: list[ConnectHandler] = []
        self._greeting_tasks: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self._connections = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"MemoryLink({self._client_id!r}, {'connected' if self._up.is_set() else 'not connected'})"

    @property
    def has_room(self) -> bool:
        """Whether the broker may hand over another message."""
        return not self._inbox.is_full

    async def connect(self, *, wait: bool = False) -> None:
        """See `Link.connect`. While it is cut off it fails at once, or waits for `heal`."""
        self._inbox.start(self._client_id)
        self._broker.attach(self, self._client_id, self._is_kept)
        if not wait and not self._up.is_set():
            await self.close()
            raise LinkError(f"{self._client_id} is cut off, expected a connection")
        await self._up.wait()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """See `Link.publish`."""
        limit = min(self._limits.payload_bytes, PACKET_BYTES)
        if len(payload) > limit:
            raise PayloadTooLargeError(f"payload of {len(payload)} bytes to {topic}, expected at most {limit}")
        if not self._up.is_set():
            raise DisconnectedError(f"publish to {topic}: {self!r}, expected a connection")
        connection = self._connections
        until_s = math.inf if expiry_s is None else self._broker.clock() + max(1, math.ceil(expiry_s))
        try:
            async with asyncio.timeout(self._limits.publish_timeout_s), self._slots:
                self.traffic.sent(len(payload), on_sent)
                is_taken = await self._broker.publish(self._client_id, _Stored(topic, payload, until_s), retain)
        except TimeoutError:
            raise LinkError(f"publish to {topic}: no answer within {self._limits.publish_timeout_s} s") from None
        if not is_taken or connection != self._connections or not self._up.is_set():
            raise DisconnectedError(f"publish to {topic}: the connection fell, expected an answer first")

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """See `Link.subscribe`."""
        self._inbox.add(topic_filter, handler)
        if self._up.is_set():
            self._broker.subscribe(self._client_id, topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See `Link.unsubscribe`."""
        self._inbox.subscriptions.pop(topic_filter, None)
        self._broker.unsubscribe(self._client_id, topic_filter)

    def on_connect(self, handler: ConnectHandler) -> None:
        """See `Link.on_connect`."""
        self._greetings.append(handler)

    async def close(self) -> None:
        """See `Link.close`."""
        if self._closed:
            return
        self._closed = True
        tasks = self._inbox.stop()
        for greeting in self._greeting_tasks - {asyncio.current_task()}:
            greeting.cancel()
            tasks.append(greeting)
        self._broker.detach(self, self._client_id)
        if tasks:
            await asyncio.wait(tasks)

    # ------------------------------------------------------------------ what the broker calls

    def connected(self) -> None:
        """The broker took us (back): subscriptions first, then the `on_connect` handlers."""
        self._connections += 1
        self.traffic.connects += 1
        self._up.set()
        for topic_filter in list(self._inbox.subscriptions):
            self._broker.subscribe(self._client_id, topic_filter)
        greeting = asyncio.create_task(self._greet(self._connections == 1), name=f"greeting {self._client_id}")
        self._greeting_tasks.add(greeting)
        greeting.add_done_callback(self._greeting_tasks.discard)

    def disconnected(self) -> None:
        """The connection fell, and with it whatever its `on_connect` handlers were about."""
        self._up.clear()
        for greeting in self._greeting_tasks:
            greeting.cancel()

    def deliver(self, delivery: Delivery, number: int) -> None:
        """A message, to be acknowledged by its number."""
        self._inbox.put(delivery, lambda: self._broker.acknowledge(self._client_id, number))

    async def _greet(self, is_first: bool) -> None:
        for handler in self._greetings:
            try:
                await handler(is_first)
            except Exception:
                log.exception("on_connect handler failed", client_id=self._client_id)


__all__ = ["MemoryBroker", "MemoryLink", "Weather"]
