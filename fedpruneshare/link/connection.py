"""One MQTT 5 connection: paho on a socket of the asyncio loop, from CONNECT to its loss (docs/protocol.md §3.1).

The only file that imports an MQTT client. paho does the packets through its external-loop hooks; there is no thread.

What paho and the brokers do not do and this file does: compare sizes with the broker's limit *before* queueing, give
every reason code to who asked, acknowledge only when told to, stop reading when there is no room, set TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedpruneshare.errors import DisconnectedError, LinkError, PayloadTooLargeError, RefusedError
from fedpruneshare.link import BrokerAddress, Delivery, LinkLimits, PublishOptions, Traffic
from fedpruneshare.link.inbox import Inbox
from fedpruneshare.link.tcp import acknowledge_at_once, connect_tcp
from fedpruneshare.link.tls import TlsSettings, refusal, start_tls

#: What a PUBLISH adds to topic and payload at most: fixed header 5, topic length 2, packet id 2, expiry property 1 + 5.
_PUBLISH_OVERHEAD_BYTES: Final = 15
_TOPIC_BYTES: Final = 65_535
_GOODBYE_S: Final = 1.0
_TICK_S: Final = 15.0
_NEGATIVE: Final = 0x80
#: Refused logins after which trying again later makes sense: unavailable, busy, quota exceeded, rate exceeded.
_PASSING_REASONS: Final = frozenset((0x88, 0x89, 0x97, 0x9F))


def check_published(topic: str, code: int) -> None:
    """Raises `RefusedError` for a negative PUBACK."""
    if code >= _NEGATIVE:
        raise _refused(f"publish to {topic}", ReasonCode(PacketTypes.PUBACK, identifier=code))


def check_granted(topic_filter: str, code: int | None) -> None:
    """Raises `RefusedError` for a negative SUBACK and for one below QoS 1, `DisconnectedError` for none."""
    if code is None:
        raise DisconnectedError(f"subscribe to {topic_filter}: the connection fell, expected an answer first")
    if code >= _NEGATIVE or code == 0:
        raise _refused(f"subscribe to {topic_filter} with QoS 1", ReasonCode(PacketTypes.SUBACK, identifier=code))


def _refused(what: str, reason: ReasonCode) -> RefusedError:
    return RefusedError(f"{what}: the broker answered {reason} (0x{reason.value:02x}), expected success", str(reason))


class _Client(paho.Client):
    """paho on a socket that asyncio connected, so that nothing blocks the loop. Its internals are used here only."""

    def __init__(self, client_id: str, ready: socket.socket) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False, manual_ack=True
        )
        self._ready = ready
        self.alert: OSError | None = None
        """What TLS said when it failed; the broker's refusal of a certificate is among it."""
        self.on_stalled: Callable[[], None] = lambda: None
        """Called when TLS cannot write before it has read."""

    def _create_socket_connection(self) -> socket.socket:
        return self._ready

    @property
    def has_decrypted(self) -> bool:
        """Whether TLS holds bytes that paho has not read; the loop, which looks at the socket, does not see them."""
        return isinstance(self._ready, ssl.SSLSocket) and self._ready.pending() > 0

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except ssl.SSLError as error:
            self.alert = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError as error:
            if isinstance(error.__cause__, ssl.SSLWantReadError):
                self.on_stalled()
            raise
        except OSError:
            with contextlib.suppress(OSError):  # a broker that refuses says why before it closes
                self._sock_recv(1)
            raise

    def read(self) -> None:
        """`loop_read`, for brokers that leave Nagle on."""
        self.loop_read()
        acknowledge_at_once(self._ready)

    def ping(self) -> None:
        """Tell the broker that we live without waiting for its answer: `loop_misc` for a client that does not read."""
        self._send_pingreq()
        self._ping_t = 0.0

    def drop(self) -> None:
        """Close the socket without a word."""
        self._sock_close()


class Connection:
    """One TCP connection from CONNECT to its loss. `lost` resolves to the reason; nothing is used again after it."""

    def __init__(self, limits: LinkLimits, inbox: Inbox, traffic: Traffic, tls: TlsSettings | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._limits = limits
        self._inbox = inbox
        self._traffic = traffic
        self._tls = tls
        self._client: _Client | None = None
        self._fd = -1
        self._is_reading = False
        self._is_read_due = False
        self._is_stalled = False
        self._ticker: asyncio.TimerHandle | None = None
        self._granted: asyncio.Future[tuple[ReasonCode, Properties | None] | None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[int | None]] = {}
        self._slots = asyncio.Semaphore(limits.outgoing_messages)
        self._packet_bytes = math.inf

    async def open(self, address: BrokerAddress, client_id: str, session_expiry_s: int) -> None:
        """Connect and log in. Raises `LinkError`, or `RefusedError` where the broker will not change its mind."""
        ready = await connect_tcp(address)
        if self._tls is not None:
            ready = await start_tls(ready, address, self._tls)
        self._client = client = _Client(client_id, ready)
        client.on_stalled = self._on_stalled
        client.max_inflight_messages = self._limits.outgoing_messages
        client.on_socket_open, client.on_socket_close = self._on_open, self._on_close
        client.on_socket_register_write, client.on_socket_unregister_write = self._on_writing, self._on_written
        client.on_connect = lambda _c, _u, _flags, reason, properties: self._on_connack(reason, properties)
        client.on_disconnect = lambda _c, _u, flags, reason, _properties: self._fall(
            str(reason) if flags.is_disconnect_packet_from_server else "closed without a reason"
        )
        client.on_publish = lambda _c, _u, mid, reason, _properties: self._on_answer(mid, reason)
        client.on_subscribe = client.on_unsubscribe = lambda _c, _u, mid, reasons, _p: self._on_answer(mid, *reasons)
        client.on_message = lambda _c, _u, message: self._on_message(message)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = session_expiry_s
        properties.ReceiveMaximum = min(65_535, self._limits.incoming_messages)
        properties.MaximumPacketSize = self._limits.payload_bytes + _TOPIC_BYTES + 1024
        keepalive_s, is_new = self._limits.keepalive_s, session_expiry_s == 0
        client.connect(address.host, address.port, keepalive_s, clean_start=is_new, properties=properties)
        self._tick()
        await self._log_in(address)

    async def _log_in(self, address: BrokerAddress) -> None:
        answer = await asyncio.shield(self._granted)
        if answer is None:
            closed = LinkError(f"{address}: closed ({self.lost.result()}) without an answer, expected a login")
            raise self._refusal(address) or closed
        reason, properties = answer
        self._traffic.connects += not reason.is_failure
        if reason.value in _PASSING_REASONS:
            raise LinkError(f"{address}: {reason}, expected a login")
        if reason.is_failure:
            raise _refused(f"login at {address}", reason)
        self._packet_bytes = getattr(properties, "MaximumPacketSize", math.inf)
        for _ in range(self._limits.outgoing_messages - getattr(properties, "ReceiveMaximum", 65_535)):
            await self._slots.acquire()

    def _refusal(self, address: BrokerAddress) -> LinkError | None:
        if self._tls is None or self._client is None:
            return None
        return refusal(self._client.alert, address, self._tls)

    async def publish(self, topic: str, payload: bytes, options: PublishOptions) -> int | None:
        """Send one message as soon as a slot is free; the PUBACK's code, None where the connection falls first."""
        expiry_s, retain = options.get("expiry_s"), options.get("retain", False)
        size = len(payload) + len(topic.encode()) + _PUBLISH_OVERHEAD_BYTES
        if size > self._packet_bytes:
            raise PayloadTooLargeError(f"packet of {size} bytes to {topic}, the broker takes {self._packet_bytes}")
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, math.ceil(expiry_s))
        await self._slots.acquire()
        answer = None
        try:
            if self._client is None or self.lost.done():
                return None
            answer = self._expect(self._client.publish(topic, payload, 1, retain, properties).mid)
        finally:
            if answer is None:
                self._slots.release()
        # The slot is held until the answer, also when the caller gives up: paho holds the message as long.
        answer.add_done_callback(lambda _answer: self._slots.release())
        self._traffic.sent(len(payload), options.get("on_sent"))
        return await asyncio.shield(answer)

    def subscribe(self, topic_filter: str) -> Awaitable[int | None]:
        """Send a SUBSCRIBE now; the code of its SUBACK."""
        assert self._client is not None
        return asyncio.shield(self._expect(self._client.subscribe(topic_filter, options=SubscribeOptions(qos=1))[1]))

    def unsubscribe(self, topic_filter: str) -> Awaitable[int | None]:
        """Send an UNSUBSCRIBE now; the code of its UNSUBACK."""
        assert self._client is not None
        return asyncio.shield(self._expect(self._client.unsubscribe(topic_filter)[1]))

    def regulate(self) -> None:
        """Read while there is room; stop while there is none, so that the broker feels it.

        An answer we wait for sits behind deliveries: then reading goes on as far as memory allows, or a handler that
        publishes would wait for ever. (iotcore ignores ReceiveMaximum; Mosquitto 2.0.11 exceeds it after each PUBACK.)
        """
        is_waiting = bool(self._answers) or not self._granted.done()
        is_full = self._inbox.is_out_of_memory if is_waiting else self._inbox.is_full
        should_read = (not is_full or self._is_stalled) and not self.lost.done()
        if should_read and not self._is_reading:
            self._loop.add_reader(self._fd, self._read)
        elif self._is_reading and not should_read:
            self._loop.remove_reader(self._fd)
        self._is_reading = should_read
        self._read_decrypted()

    async def close(self) -> None:
        """Say goodbye, bounded, and drop."""
        try:
            if self._client is not None and not self.lost.done():
                self._client.disconnect()
                await asyncio.wait({self.lost}, timeout=_GOODBYE_S)
        finally:
            self.drop("closed")

    def drop(self, reason: str) -> None:
        """Close the socket without a word. Idempotent."""
        self._fall(reason)
        if self._client is not None:
            self._client.drop()

    def _fall(self, reason: str) -> None:
        # Must not touch the socket: paho calls this with a lock held that closing takes again.
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._ticker is not None:
            self._ticker.cancel()
        if not self._granted.done():
            self._granted.set_result(None)
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.set_result(None)

    # ------------------------------------------------------------------ what paho calls

    def _on_open(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        self._fd = sock.fileno()
        self.regulate()

    def _on_close(self, *_: Any) -> None:
        self._loop.remove_reader(self._fd)
        self._is_reading = False

    def _on_writing(self, client: paho.Client, *_: Any) -> None:
        self._loop.add_writer(self._fd, self._guarded, client.loop_write)

    def _on_written(self, *_: Any) -> None:
        self._loop.remove_writer(self._fd)

    def _on_connack(self, reason: ReasonCode, properties: Properties | None) -> None:
        if not self._granted.done():
            self._granted.set_result((reason, properties))

    def _on_answer(self, mid: int, reason: ReasonCode, *_more: ReasonCode) -> None:
        answer = self._answers.pop(mid, None)
        if answer is not None:
            answer.set_result(reason.value)

    def _on_message(self, message: paho.MQTTMessage) -> None:
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        delivery = Delivery(message.topic, bytes(message.payload), message.retain, expiry_s)
        self._inbox.put(delivery, lambda: self._acknowledge(message.mid, message.qos))

    def _acknowledge(self, mid: int, qos: int) -> None:
        # Message ids belong to a connection; the broker of a resumed session sends the message again.
        if self._client is not None and not self.lost.done():
            self._client.ack(mid, qos)

    def _on_stalled(self) -> None:
        # Writing on without reading first would spin.
        self._loop.remove_writer(self._fd)
        self._is_stalled = True
        self.regulate()

    # ------------------------------------------------------------------ driving paho

    def _read(self) -> None:
        assert self._client is not None
        if self._is_stalled:
            self._is_stalled = False
            self._loop.add_writer(self._fd, self._guarded, self._client.loop_write)
        self._guarded(self._client.read)

    def _read_decrypted(self) -> None:
        """Have what TLS has decrypted read in the next turn of the loop, if reading is allowed."""
        if self._is_reading and not self._is_read_due and self._client is not None and self._client.has_decrypted:
            self._is_read_due = True
            self._loop.call_soon(self._read_due)

    def _read_due(self) -> None:
        self._is_read_due = False
        if self._is_reading:
            self._read()

    def _expect(self, mid: int | None) -> asyncio.Future[int | None]:
        answer: asyncio.Future[int | None] = self._loop.create_future()
        if self.lost.done() or mid is None:
            answer.set_result(None)
        else:
            self._answers[mid] = answer
            self.regulate()
        return answer

    def _guarded(self, step: Any) -> None:
        try:
            step()
        except Exception as error:  # paho's parser lets out whatever a malformed packet makes it stumble on
            self.drop(f"malformed packet: {type(error).__name__}")
        self.regulate()

    def _tick(self) -> None:
        if self.lost.done() or self._client is None:
            return
        self._ticker = self._loop.call_later(min(_TICK_S, self._limits.keepalive_s / 4), self._tick)
        self._guarded(self._client.loop_misc if self._is_reading else self._client.ping)


__all__ = ["Connection", "check_granted", "check_published"]
