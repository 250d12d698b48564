"""The link: how messages travel (docs/protocol.md §3).

`Link` is the only interface the roles use. `fedpruneshare.link.mqtt.MqttLink` carries it over one broker
connection, `fedpruneshare.link.memory.MemoryLink` in process with loss, delay and duplication.
A role opens one link per broker it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


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
    """MQTT payload bytes and messages that passed one link, re-sends of the link itself not included."""

    sent_bytes: int = 0
    sent_messages: int = 0
    received_bytes: int = 0
    received_messages: int = 0


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of one link. Nothing is allocated or queued beyond them."""

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
    """Where a broker listens."""

    host: str
    port: int


@dataclass
class Subscription:
    """A topic filter and who handles what it brings."""

    topic_filter: str
    handler: Handler


class Link(Protocol):
    """A connection to one broker. All methods are coroutines of one asyncio loop, except `traffic`."""

    traffic: Traffic

    async def connect(self) -> None:
        """Connect and keep connected (reconnects by itself, jittered) until `close`.

        Raises `LinkError` if the first connection does not succeed within the limits
        (with `wait=True` implementations keep trying instead; see the implementation).
        """

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Publish with QoS 1 and return when the broker has taken it.

        A return is *not* delivery: only an application `Receipt` is (docs/protocol.md §3.2).
        `expiry_s` is rounded up to whole seconds.

        Raises `PayloadTooLargeError` before queueing, `QueueFullError`, `RefusedError` on a negative reason,
        `DisconnectedError` when the connection falls first (the message is then forgotten, never re-sent by the
        link), `LinkError` on time-out.
        """

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Subscribe with QoS 1; `handler` gets every delivery that matches. Kept across reconnects."""

    async def unsubscribe(self, topic_filter: str) -> None:
        """Forget a subscription."""

    def on_connect(self, handler: ConnectHandler) -> None:
        """Register what to do after each connect."""

    async def close(self) -> None:
        """Disconnect cleanly; waits for nothing that is not yet acknowledged. Idempotent."""


__all__ = [
    "BrokerAddress",
    "ConnectHandler",
    "Delivery",
    "Handler",
    "Link",
    "LinkLimits",
    "Subscription",
    "Traffic",
]
