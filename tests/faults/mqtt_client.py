"""A plain MQTT 5 client for hostile tests: any certificate, will and flag; it knows nothing of the product's link."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho

from fedpruneshare.link import BrokerAddress
from fedpruneshare.link.tls import TlsSettings

WAIT_S = 60.0
MQTTv311 = paho.MQTTv311


@dataclass(frozen=True)
class Got:
    """A message that arrived."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True)
class Will:
    """What the broker is to publish when the connection falls."""

    topic: str
    payload: bytes
    retained: bool = False


def hostile_context(tls: TlsSettings | None, ca_file: str) -> ssl.SSLContext:
    """Trusts the authority and presents whatever there is."""
    context = ssl.create_default_context(cafile=ca_file)
    if tls is not None:
        context.load_cert_chain(tls.certificate, tls.key_file)
    return context


class Client:
    """One connection. Calls return once the broker has answered, or say that it closed."""

    def __init__(
        self,
        address: BrokerAddress,
        context: ssl.SSLContext | None,
        will: Will | None = None,
        protocol: int = paho.MQTTv5,
    ) -> None:
        self.got: list[Got] = []
        self.login = ""
        self.is_lost = False
        self._answers: dict[int, int] = {}
        self._news = threading.Condition()
        self._client = client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, "chosen-by-the-client", protocol=protocol, reconnect_on_failure=False
        )
        if context is not None:
            client.tls_set_context(context)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retained)
        client.on_connect = lambda _c, _u, _f, reason, _p: self._note(lambda: setattr(self, "login", str(reason)))
        client.on_disconnect = lambda *_: self._note(lambda: setattr(self, "is_lost", True))
        client.on_message = lambda _c, _u, m: self._note(lambda: self.got.append(Got(m.topic, m.payload, m.retain)))
        client.on_publish = lambda _c, _u, mid, reason, _p: self._answered(mid, reason)
        client.on_subscribe = client.on_unsubscribe = lambda _c, _u, mid, reasons, _p: self._answered(mid, reasons[0])
        client.connect(address.host, address.port)
        client.loop_start()
        self.wait(lambda: self.login or self.is_lost, "an answer to CONNECT")

    def _note(self, change: Callable[[], object]) -> None:
        with self._news:
            change()
            self._news.notify_all()

    def _answered(self, mid: int, reason: Any) -> None:
        self._note(lambda: self._answers.__setitem__(mid, reason.value))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until the condition holds; an `AssertionError` if it does not within `WAIT_S`."""
        with self._news:
            assert self._news.wait_for(condition, WAIT_S), f"waited for {what}"

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Publish with QoS 1 and wait for the PUBACK, whatever it says, or for the end of the connection."""
        mid = self._client.publish(topic, payload, 1, retain).mid
        self.wait(lambda: mid in self._answers or self.is_lost, f"PUBACK of {topic}")

    def subscribe(self, *filters: str) -> None:
        """Subscribe and wait for each SUBACK, whatever it says."""
        for one in filters:
            mid = self._client.subscribe(one, 1)[1]
            assert mid is not None
            self.wait(lambda mid=mid: mid in self._answers or self.is_lost, f"SUBACK of {one}")  # type: ignore[misc]

    def unsubscribe(self, *filters: str) -> None:
        """Unsubscribe and wait."""
        for one in filters:
            mid = self._client.unsubscribe(one)[1]
            assert mid is not None
            self.wait(lambda mid=mid: mid in self._answers or self.is_lost, f"UNSUBACK of {one}")  # type: ignore[misc]

    def cut(self) -> None:
        """Drop the connection without DISCONNECT, so that the broker publishes the will."""
        sock = self._client.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self.wait(lambda: self.is_lost, "the end of the connection")
        self._client.loop_stop()

    def close(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        self._client.loop_stop()
