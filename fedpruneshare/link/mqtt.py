"""`MqttLink`: one MQTT 5 connection, kept up, driven by asyncio (docs/protocol.md §3.1).

Every connection gets a fresh `Connection`, so nothing an old one still held can be sent again behind the caller's back.
This file turns every negative answer into an error, and acknowledges only after the handler returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable
from typing import Final, Unpack

import structlog

from fedpruneshare.errors import DisconnectedError, LinkError, PayloadTooLargeError, RefusedError, SettingsError
from fedpruneshare.link import BrokerAddress, ConnectHandler, Handler, LinkLimits, PublishOptions, Traffic
from fedpruneshare.link.connection import Connection, check_granted, check_published
from fedpruneshare.link.inbox import Inbox
from fedpruneshare.link.keeper import Keeper
from fedpruneshare.link.tls import TlsSettings, client_context

log = structlog.get_logger()

_GOODBYE_S: Final = 1.0


class MqttLink:
    """A `Link` to one broker over TCP, or mutual TLS. Belongs to the asyncio loop that `connect` runs in.

    `session_expiry_s` above 0 asks the broker to keep the session that long: messages that came meanwhile, or were not
    acknowledged, come (again) at the next connect. `rng` draws the reconnect pauses and nothing else.

    Raises `SettingsError` if only one of `tls` and `address.tls` is there, or if the files of `tls` are not usable.
    What is wrong with a certificate, the broker's or our own, `connect` raises as `CertificateError` at once; and as
    `CertificateDateError`, which a renewed file or a set clock ends, after `connect_timeout_s`.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        limits: LinkLimits,
        rng: random.Random,
        *,
        session_expiry_s: int = 0,
        tls: TlsSettings | None = None,
    ) -> None:
        _check_tls(address, tls)
        self.traffic = Traffic()
        self._address = address
        self._client_id = client_id
        self._limits = limits
        self._session_expiry_s = session_expiry_s
        self._tls = tls
        self._inbox = Inbox(limits, self.traffic, time.monotonic, self._read_on)
        self._keeper = Keeper(f"{address.host}:{address.port}", self._attempt, limits, rng)
        self._connection: Connection | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connection else "not connected"
        return f"MqttLink({self._client_id!r} at {self._address.host}:{self._address.port}, {state})"

    async def connect(self, *, wait: bool = False) -> None:
        """See `Link.connect`. May be called once; the link is closed if it raises."""
        self._inbox.start(self._client_id)
        try:
            await self._keeper.connect(wait)
        except BaseException:
            await self.close()
            raise

    async def publish(self, topic: str, payload: bytes, **options: Unpack[PublishOptions]) -> None:
        """See `Link.publish`."""
        if len(payload) > self._limits.payload_bytes:
            raise PayloadTooLargeError(
                f"payload of {len(payload)} bytes to {topic}, expected at most {self._limits.payload_bytes}"
            )
        if self._connection is None:
            raise DisconnectedError(f"publish to {topic}: {self!r}, expected a connection")
        code = await self._answer(self._connection.publish(topic, payload, options), f"publish to {topic}")
        check_published(topic, code)

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """See `Link.subscribe`."""
        self._inbox.add(topic_filter, handler)
        if self._connection is None:
            return
        try:
            code = await self._answer(self._connection.subscribe(topic_filter), f"subscribe to {topic_filter}")
            check_granted(topic_filter, code)
        except RefusedError:
            self._inbox.subscriptions.pop(topic_filter, None)
            raise
        except DisconnectedError:
            log.debug("subscribed at the next connection", topic_filter=topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See `Link.unsubscribe`. Raises `LinkError` on time-out; the handler is forgotten all the same."""
        if self._inbox.subscriptions.pop(topic_filter, None) is None or self._connection is None:
            return
        with contextlib.suppress(DisconnectedError):
            await self._answer(self._connection.unsubscribe(topic_filter), f"unsubscribe from {topic_filter}")

    def on_connect(self, handler: ConnectHandler) -> None:
        """See `Link.on_connect`."""
        self._keeper.greetings.append(handler)

    async def close(self) -> None:
        """See `Link.close`. A handler that is still running is cancelled and its message not acknowledged."""
        if self._closed:
            return
        self._closed = True
        tasks = [*self._keeper.stop(), *self._inbox.stop()]
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
        if tasks:
            await asyncio.wait(tasks, timeout=_GOODBYE_S)

    async def _answer(self, request: Awaitable[int | None], what: str) -> int:
        """The broker's reason code to a request; `DisconnectedError` or `LinkError` where there is none."""
        limit_s = self._limits.publish_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                code = await request
        except TimeoutError:
            raise LinkError(f"{what}: no answer, expected one within {limit_s} s") from None
        if code is None:
            raise DisconnectedError(f"{what}: the connection fell, expected an answer first")
        return code

    async def _attempt(self, timeout_s: float) -> asyncio.Future[str]:
        """One connection with all subscriptions made; its loss. Raises `LinkError`, `RefusedError` for good."""
        connection = Connection(self._limits, self._inbox, self.traffic, self._tls)
        try:
            async with asyncio.timeout(timeout_s):
                await connection.open(self._address, self._client_id, self._session_expiry_s)
                # The SUBSCRIBEs stand on the wire before anything that is published from here on.
                requests = {each: connection.subscribe(each) for each in self._inbox.subscriptions}
                self._connection = connection
                for topic_filter, request in requests.items():
                    check_granted(topic_filter, await request)
        except BaseException as error:
            self._connection = None
            connection.drop("given up")
            if isinstance(error, TimeoutError):
                raise LinkError(f"{self._address}: no answer, expected one within {timeout_s:.1f} s") from None
            raise
        connection.lost.add_done_callback(lambda _lost: self._forget(connection))
        return connection.lost

    def _forget(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None

    def _read_on(self) -> None:
        if self._connection is not None:
            self._connection.regulate()


def _check_tls(address: BrokerAddress, tls: TlsSettings | None) -> None:
    """Neither a broker that wants TLS is tried without, nor a certificate left unused where plain TCP would do."""
    where = f"{address.host}:{address.port}"
    if address.tls and tls is None:
        raise SettingsError(f"the broker at {where} speaks TLS, expected link.tls with a certificate for it")
    if tls is not None:
        if not address.tls:
            raise SettingsError(f"link.tls is set, but the broker at {where} speaks plain TCP, expected one with TLS")
        client_context(tls)


__all__ = ["MqttLink"]
