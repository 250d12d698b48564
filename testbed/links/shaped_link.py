"""The same link settings without root: the device's own links to its brokers are slowed down, message by message.

All links of a device share one radio. A message takes the time its frames take at the profile's rate, then the delay;
in an outage or a sleep of the radio it pauses; a lost frame is sent once more, a round trip later. What this is not:
a network. TCP, its hand-shakes and what congestion control makes of losses are not slowed, and an interface counts
what the machine's own loopback carries (docs/links.md).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Unpack

import msgspec

from fedpruneshare.link import BrokerAddress, ConnectHandler, Delivery, Handler, Link, PublishOptions
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import OpenLink
from testbed.links.emulator import Gate, Wander
from testbed.links.settings import LinkProfile

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

#: Payload of a full TCP segment at an MTU of 1500, with time stamps, and what Ethernet, IP and TCP add to it.
_SEGMENT_BYTES: Final = 1448
_HEADERS_BYTES: Final = 66
#: Fixed header, topic and properties of a PUBLISH.
_PUBLISH_BYTES: Final = 60
#: A message this soon after the one before was already under way behind it.
_BACK_TO_BACK_S: Final = 0.002


class Shaping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the links of one device are shaped as: a profile, and the seed of its losses, jitter and outages."""

    profile: LinkProfile
    seed: int

    def to_json(self) -> bytes:
        """As the device's process reads it."""
        return msgspec.json.encode(self)

    @classmethod
    def read(cls, path: Path) -> Shaping | None:
        """The shaping a file holds; None if there is no such file."""
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.is_file() else None


class Way:
    """One direction of a radio: when does a message of so many bytes arrive? Times as in `testbed.links.emulator`."""

    def __init__(self, profile: LinkProfile, rate_bit_s: float, seeds: tuple[int, int]) -> None:
        self._rate_bit_s, self._loss = rate_bit_s, profile.loss_percent / 100
        self._gate, self._rng = Gate(profile, seeds[0]), random.Random(seeds[1])
        self._delay_s = profile.delay_ms / 1000
        self._wander = Wander(self._delay_s, profile.jitter_ms / 1000, random.Random(seeds[1] + 1))
        self._free_s = self._last_s = 0.0

    def carry(self, now_s: float, payload_bytes: int) -> float:
        """When a message given to the radio now is at the other end; it leaves after those before it."""
        frames = max(1, math.ceil((payload_bytes + _PUBLISH_BYTES) / _SEGMENT_BYTES))
        size_bytes = payload_bytes + _PUBLISH_BYTES + frames * _HEADERS_BYTES
        again, round_trips = self._losses(frames)
        bits = size_bytes * (1 + again / frames) * 8
        air_s = bits / self._rate_bit_s if self._rate_bit_s > 0 else 0.0
        self._free_s = self._gate.sent_by(max(now_s, self._free_s), air_s)
        arrives_s = self._free_s + round_trips * 2 * self._delay_s + self._wander.at(self._free_s)
        self._last_s = max(self._last_s, arrives_s)  # TCP hands over in order
        return self._last_s

    def carry_behind(self, now_s: float, payload_bytes: int) -> float:
        """As `carry`, for what comes in: whatever was read right after another message had its delay with it."""
        is_behind = now_s - self._last_s < _BACK_TO_BACK_S
        return self.carry(max(0.0, now_s - self._delay_s) if is_behind else now_s, payload_bytes)

    def _losses(self, frames: int) -> tuple[int, int]:
        """(frames sent again, round trips waited for that)."""
        again, rounds, lost = 0, 0, frames
        while lost and self._loss > 0:
            lost = sum(self._rng.random() < self._loss for _ in range(lost))
            again += lost
            rounds += lost > 0
        return again, rounds


class Radio:
    """What all links of one device share."""

    def __init__(self, shaping: Shaping, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        rng = random.Random(shaping.seed)
        gate_seed, up_seed, down_seed = (rng.getrandbits(62) for _ in range(3))
        profile = shaping.profile
        self.up = Way(profile, profile.up_bit_s, (gate_seed, up_seed))
        self.down = Way(profile, profile.down_bit_s, (gate_seed, down_seed))
        self.delay_s = profile.delay_ms / 1000
        self.sleep = sleep
        self._clock, self._began_s = clock, clock()

    def now_s(self) -> float:
        """Seconds since the radio came up."""
        return self._clock() - self._began_s


class ShapedLink:
    """A `Link` whose messages go over a `Radio` before and after the link they go over in truth."""

    def __init__(self, link: Link, radio: Radio) -> None:
        self._link, self._radio = link, radio
        self.traffic = link.traffic
        """Payload bytes, which shaping does not change."""

    async def connect(self, *, wait: bool = False) -> None:
        """See `Link.connect`; three round trips later, as TCP and MQTT need between them."""
        await self._radio.sleep(6 * self._radio.delay_s)
        await self._link.connect(wait=wait)

    async def publish(self, topic: str, payload: bytes, **options: Unpack[PublishOptions]) -> None:
        """See `Link.publish`; the payload's way there first, the answer's way back last."""
        began_s = self._radio.now_s()
        waited_s = self._radio.up.carry(began_s, len(payload)) - began_s
        await self._radio.sleep(waited_s)
        expiry_s = options.get("expiry_s")
        if expiry_s is not None:
            options["expiry_s"] = max(1.0, expiry_s - waited_s)
        await self._link.publish(topic, payload, **options)
        await self._radio.sleep(self._radio.delay_s)

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """See `Link.subscribe`; what arrives is handed over when the radio would have it."""

        async def late(delivery: Delivery) -> None:
            began_s = self._radio.now_s()
            arrives_s = self._radio.down.carry_behind(began_s, len(delivery.payload))
            waited_s = max(0.0, arrives_s - began_s)
            await self._radio.sleep(waited_s)
            if delivery.expiry_s is not None:
                delivery = replace(delivery, expiry_s=delivery.expiry_s - waited_s)
            await handler(delivery)

        await self._link.subscribe(topic_filter, late)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See `Link.unsubscribe`."""
        await self._link.unsubscribe(topic_filter)

    def on_connect(self, handler: ConnectHandler) -> None:
        """See `Link.on_connect`."""
        self._link.on_connect(handler)

    async def close(self) -> None:
        """See `Link.close`."""
        await self._link.close()


def shaped(open_link: OpenLink, shaping: Shaping, clock: Clock) -> OpenLink:
    """Opens links as `open_link` does, all over one radio, which comes up now."""
    radio = Radio(shaping, clock)

    def opened(address: BrokerAddress, client_id: str, settings: LinkSettings) -> Link:
        return ShapedLink(open_link(address, client_id, settings), radio)

    return opened
