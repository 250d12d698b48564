"""Brokers of a simulation: `MemoryBroker` with late messages, power cuts of clients, and an ear on the wire."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass

from fedpruneshare.link import LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink, Weather, _Stored

#: (broker, client, topic, payload, whether retained): told of every publish before the weather has its way.
Ear = Callable[[str, str, str, bytes, bool], None]

LIMITS = LinkLimits(publish_timeout_s=5.0, reconnect_min_s=0.1, reconnect_max_s=2.0)


@dataclass(frozen=True)
class SimWeather(Weather):
    """`late`: the chance that a message is acknowledged now and passed on up to `late_s` seconds later."""

    late: float = 0.0
    late_s: float = 20.0


class SimLink(MemoryLink):
    """A link whose tasks belong to the process that opened it, whoever makes it connect."""

    def __init__(self, broker: SimBroker, client_id: str) -> None:
        super().__init__(broker, client_id, LIMITS)
        self.client_id, self.broker = client_id, broker
        self._owner = contextvars.copy_context()

    def connected(self) -> None:
        self._owner.copy().run(super().connected)


class SimBroker(MemoryBroker):
    """One broker of a simulation."""

    def __init__(self, name: str, rng: random.Random, clock: Callable[[], float], ear: Ear) -> None:
        super().__init__(rng, clock)
        self.name, self._ear = name, ear
        self.is_down = False

    async def publish(self, client_id: str, stored: _Stored, retain: bool) -> bool:
        self._ear(self.name, client_id, stored.topic, stored.payload, retain)
        weather = self.weather
        if isinstance(weather, SimWeather) and self._rng.random() < weather.late:
            loop, wait_s = asyncio.get_running_loop(), self._rng.uniform(0.0, weather.late_s)
            loop.call_later(wait_s, self._route, stored, retain, context=contextvars.Context())
            return True
        return await super().publish(client_id, stored, retain)

    def inject(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """A message of somebody on the network, to everybody who listens."""
        self._route(_Stored(topic, payload, self.clock() + 30.0), retain)

    def inject_to(self, client_id: str, topic: str, payload: bytes) -> None:
        """A message to one client only."""
        session = self._session(client_id)
        if session.is_connected:
            session.waiting.append((_Stored(topic, payload, self.clock() + 30.0), False))
            self.feed(client_id)

    def drop(self, link: SimLink) -> None:
        """The client's process has ended without a word."""
        session = self._session(link.client_id)
        if session.link is link:
            self._disconnect(session)
            session.link = None

    def forget(self) -> None:
        """Everything retained and queued is gone, as after SIGKILL of a broker that keeps nothing."""
        self._retained.clear()
        for session in self._sessions.values():
            session.waiting.clear()

    def everybody(self) -> list[str]:
        """The clients that are, or were, here."""
        return list(self._sessions)
