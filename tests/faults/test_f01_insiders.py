"""F01, insiders: one party of a running federation says everything it may say, damaged, to everybody, all the time.

Real coordinator, real aggregators, scripted devices, brokers in memory. What the insider hears it changes somewhere,
signs with its own key, and says again. Nobody's handler fails, no sum is wrong, and whoever is not that party goes on.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from builders import AGGREGATORS, DEVICES, identity
from faults import mutations
from simulators.federation import Federation

from fedpruneshare.errors import LinkError
from fedpruneshare.link import Delivery
from fedpruneshare.link.memory import MemoryLink, Weather
from fedpruneshare.sealing import Envelope, sign_body
from fedpruneshare.topics import WRITER_OF_KIND, Role, Topics

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

_ROLES = {"device-09": Role.DEVICE, "aggregator-3": Role.AGGREGATOR, "coordinator": Role.COORDINATOR}
ROUNDS = 5
_AT_ONCE = 12
_PAUSE_S = 0.001


@dataclass
class Hostile(Federation):
    """A federation with one insider, by name."""

    insider: str = "device-09"
    heard: list[tuple[str, str, Envelope]] = field(default_factory=list)
    mine: set[bytes] = field(default_factory=set)
    said: int = 0

    async def speak(self) -> None:
        """Listen to everything, and say it again, damaged, as long as the federation runs."""
        links: dict[str, MemoryLink] = {}
        rng, decoder = random.Random(self.seed), msgspec.msgpack.Decoder(Envelope)
        for broker in ("control", *AGGREGATORS):
            links[broker] = self.link(broker, "insider")

            async def hear(delivery: Delivery, broker: str = broker) -> None:
                with suppress(msgspec.DecodeError):
                    envelope = decoder.decode(delivery.payload)
                    if (
                        delivery.payload not in self.mine
                        and WRITER_OF_KIND[envelope.kind] is _ROLES[self.insider]
                        and len(self.heard) < 3000
                    ):
                        self.heard.append((broker, delivery.topic, envelope))

            for channel in (
                "round",
                "hello",
                "up",
                "attendance",
                "accepted",
                "freeze",
                "sum",
                "outcome",
                "seed",
                "ack",
            ):
                await links[broker].subscribe(Topics("lab").every(channel), hear)
            await links[broker].connect()
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self.heard:
                await asyncio.gather(*(self._say(links, rng) for _ in range(_AT_ONCE)))

    async def _say(self, links: dict[str, MemoryLink], rng: random.Random) -> None:
        broker, topic, envelope = rng.choice(self.heard[-200:])
        payload = self._damaged(envelope, rng)
        self.mine.add(payload)
        with suppress(LinkError):
            await links[broker].publish(self._own(topic, envelope.sender), payload)
            self.said += 1

    def _own(self, topic: str, sender: str) -> str:
        """Where the insider may say it: its own topic instead of the one of whom it heard."""
        return topic.replace(f"/{sender}", f"/{self.insider}")

    def _damaged(self, envelope: Envelope, rng: random.Random) -> bytes:
        body = envelope.body
        if rng.random() < 0.7:
            body = mutations.other_field(body, rng)
        elif rng.random() < 0.5:
            body = mutations.flip(body, rng)
        return sign_body(identity(self.insider), "lab", envelope.kind, body)

    async def live(self, *arguments: Any, **named: Any) -> int:
        speaker = asyncio.create_task(self.speak())
        try:
            return await super().live(*arguments, **named)
        finally:
            speaker.cancel()
            with suppress(asyncio.CancelledError):
                await speaker


async def attacked(tmp_path: Path, insider: str, seed: int = 1) -> tuple[Hostile, list[str]]:
    """A federation of some rounds with that insider; and the phases of its rounds."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    federation = Hostile(tmp_path, seed, Weather(), rounds=ROUNDS, insider=insider)
    federation.deadline_s, federation.max_failed = 6.0, 100
    failures, logs = list[str](), list[Any]()

    def note(_: Any, __: str, entry: Any) -> Any:
        if entry.get("exc_info"):  # the scripted devices let a plan's error through; the product does not
            text = traceback.format_exc()
            failures.extend([text] if "simulators/federation.py" not in text else [])
        logs.append(dict(entry))
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    assert await federation.live() == 0
    assert failures == [] and errors == []
    refused = sum("refused" in str(entry["event"]) or "dropped" in str(entry["event"]) for entry in logs)
    phases = [outcome["phase"] for outcome in federation.outcomes()]
    print(f"{insider}: {federation.said} messages, {refused} refused, rounds {phases}")
    assert federation.said > 200
    if federation.opened:
        federation.check_sums()
    return federation, phases


async def test_a_hostile_device(tmp_path: Path) -> None:
    """Rounds are applied, with all the others."""
    federation, phases = await attacked(tmp_path, DEVICES[9])
    assert phases == ["APPLIED"] * ROUNDS
    for _, opening in federation.opened:
        assert {c.device_id for c in opening.opened.contributors} >= set(DEVICES[:6])


async def test_a_hostile_aggregator(tmp_path: Path) -> None:
    """It may have its own rounds fail; a sum that is opened is right."""
    _, phases = await attacked(tmp_path, AGGREGATORS[2])
    assert set(phases) <= {"APPLIED", "FAILED"}


async def test_a_hostile_coordinator_key(tmp_path: Path) -> None:
    """Whoever has it can stop a federation, and cannot open a wrong sum or one below the floors."""
    federation, phases = await attacked(tmp_path, "coordinator")
    assert set(phases) <= {"APPLIED", "FAILED"}
    for current, opening in federation.opened:
        assert len(opening.opened.contributors) >= current.ledger.view.plan.min_devices


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("insider", _ROLES)
async def test_hostile_insiders_for_long(tmp_path: Path, insider: str, seed: int) -> None:
    await attacked(tmp_path, insider, seed)
