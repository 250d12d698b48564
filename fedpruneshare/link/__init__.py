"""The link: how messages travel (docs/protocol.md §3).

`Link` is the only interface the roles use. `fedpruneshare.link.mqtt.MqttLink` carries it over one broker
connection, `fedpruneshare.link.memory.MemoryLink` in process with loss, delay and duplication.
A role opens one link per broker it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypedDict


@dataclass(frozen=True)
class Delivery:
    """One message as the broker handed it over.

    `expiry_s` is what is left of its message expiry (MQTT 5 forwards the remaining time), None when it has none.
    It is the only clock a round's deadline is read from (docs/protocol.md §4.3), so every link must fill it.
    """

    topic: str
    payload: bytes
    retained: bool = False
    expiry_s: float | None = None


#: Called once per delivery, one at a time and in order. The message is acknowledged to the broker
#: only after the handler has returned; if it raises, the error is logged and the message is acknowledged
#: all the same (a poison message must not come back for ever): durability is the handler's, not the broker's.
Handler = Callable[[Delivery], Awaitable[None]]

#: Called after every successful connect, the first included (`first` tells). Subscriptions are back by then.
ConnectHandler = Callable[[bool], Awaitable[None]]


@dataclass
class Traffic:
    """MQTT payload bytes and messages that passed one link.

    Sent: every publish handed to a live connection, acknowledged or not (a link never re-sends; its callers do, and
    each attempt counts). Received: every delivery, duplicates included. `connects`: connections the broker granted.
    `on_received` is told of each delivery as it is counted, before any handler: topic and payload bytes.
    """

    sent_bytes: int = 0
    sent_messages: int = 0
    received_bytes: int = 0
    received_messages: int = 0
    connects: int = 0
    on_received: Callable[[str, int], None] | None = None

    def sent(self, size_bytes: int, on_sent: Callable[[], None] | None = None) -> None:
        """Count a payload that was handed to a live connection, and say so to who sent it."""
        self.sent_bytes += size_bytes
        self.sent_messages += 1
        if on_sent is not None:
            on_sent()

    def received(self, topic: str, size_bytes: int) -> None:
        """Count a delivery."""
        self.received_bytes += size_bytes
        self.received_messages += 1
        if self.on_received is not None:
            self.on_received(topic, size_bytes)


class PublishOptions(TypedDict, total=False):
    """What `Link.publish` takes beside topic and payload, for those that pass it on."""

    retain: bool
    expiry_s: float | None
    on_sent: Callable[[], None] | None


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of one link. Nothing is allocated or queued beyond them.

    A link with `incoming_messages` waiting for its handlers stops reading. While an answer to a request of its own is
    outstanding it reads on (a handler that publishes would otherwise wait for ever), until what waits takes as many
    bytes as `incoming_messages` of `payload_bytes` each.
    """

    payload_bytes: int = 256 * 1024
    outgoing_messages: int = 64
    incoming_messages: int = 256
    keepalive_s: int = 60
    connect_timeout_s: float = 10.0
    publish_timeout_s: float = 30.0
    reconnect_min_s: float = 0.2
    reconnect_max_s: float = 30.0


@dataclass(frozen=True)
class BrokerAddress:
    """Where a broker listens. `tls`: it is reached by mutual TLS only."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class Subscription:
    """A topic filter and who handles what it brings."""

    topic_filter: str
    handler: Handler


class Link(Protocol):
    """A connection to one broker. All methods are coroutines of one asyncio loop, except `traffic`."""

    traffic: Traffic

    async def connect(self, *, wait: bool = False) -> None:
        """Connect and keep connected (reconnects by itself, jittered) until `close`.

        Subscribe first: what a resumed session holds arrives at once. Raises `RefusedError` if the broker refuses
        the login or a subscription, `LinkError` if it cannot be reached within `connect_timeout_s`; with `wait` it
        is tried for ever instead (services may start before their broker).
        """

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Publish with QoS 1 and return when the broker has taken it.

        A return is *not* delivery: only an application `Receipt` is (docs/protocol.md §3.2).
        `expiry_s` is rounded up to whole seconds, and to one at least. Waits while `outgoing_messages` are on the way.
        `on_sent` is called once the connection has the payload, also where no answer ever comes: `traffic` counts it.

        Raises `PayloadTooLargeError` before queueing, `RefusedError` on a negative reason, `DisconnectedError` when
        there is no connection or it falls first (the message is then forgotten, never re-sent by the link),
        `LinkError` when `publish_timeout_s` has passed (it may still arrive).
        """

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Subscribe with QoS 1; `handler` gets every delivery that matches. Kept across reconnects.

        Without a connection it is noted and made at the next connect. Retained messages come (again) with every
        new subscription. Raises `RefusedError` (and forgets it) if the broker refuses, `LinkError` on time-out.
        """

    async def unsubscribe(self, topic_filter: str) -> None:
        """Forget a subscription; its handler is not called again, also for what had arrived already."""

    def on_connect(self, handler: ConnectHandler) -> None:
        """Register what to do after each connect. Cancelled if the connection falls while it runs."""

    async def close(self) -> None:
        """Disconnect cleanly; waits for nothing that is not yet acknowledged. Idempotent."""


__all__ = [
    "BrokerAddress",
    "ConnectHandler",
    "Delivery",
    "Handler",
    "Link",
    "LinkLimits",
    "PublishOptions",
    "Subscription",
    "Traffic",
]
