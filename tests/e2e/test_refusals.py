"""Forged, replayed and contradictory messages on real topics are refused by name and change nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from e2e.fleets import begun_rounds, coordinator_rows, held, paused, small_fleet, start

from fedpruneshare.link import BrokerAddress
from fedpruneshare.messages import (
    KIND_OF,
    Attendance,
    Contribution,
    Decline,
    Freeze,
    Heartbeat,
    Hello,
    Message,
    Missing,
    Outcome,
    Receipt,
    Refusal,
    RoundPhase,
    RoundPlan,
    ShareUpload,
    SumShare,
    Verdict,
    decode,
    digest,
)
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from fedpruneshare.sealing import Identity, seal, share_context, sign_message
from fedpruneshare.topics import CHANNELS, Topics
from testbed.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

FEDERATION = "testbed"
TOPICS = Topics(FEDERATION)


def publish(address: BrokerAddress, messages: list[tuple[str, bytes]]) -> None:
    """Publish as anybody could on a broker without access lists."""

    async def work() -> None:
        link = open_link(address, f"stranger-{os.getpid()}", LinkSettings())
        await link.connect()
        for topic, payload in messages:
            await link.publish(topic, payload)
        await link.close()

    asyncio.run(work())


def log_of(fleet: Fleet, ident: str) -> str:
    return (fleet.folder.logs / f"{ident}.log").read_text()


def open_plan(fleet: Fleet) -> tuple[RoundPlan, bytes]:
    body = bytes(coordinator_rows(fleet, "SELECT plan FROM rounds ORDER BY round_id DESC LIMIT 1")[0][0])
    plan = decode("round-plan", body)
    assert isinstance(plan, RoundPlan)
    return plan, digest(body)


def forgeries(plan: RoundPlan, name: bytes) -> Iterator[tuple[str, str, str, Message]]:
    """(who reads it, channel, topic, message) of every kind that a service reads all the time."""
    upload = ShareUpload(plan.round_id, name, bytes(16), plan.points["aggregator-1"], 0, 0, 1, bytes(80))
    freeze = Freeze(plan.round_id, name, tuple(plan.points), (Contribution("device-01", bytes(16), 0),), (0,))
    control = {
        "round": ("device-01", TOPICS.name("round"), plan),
        "hello": ("coordinator", TOPICS.name("hello", "device-01"), Hello("forged", 0)),
        "heartbeat": ("coordinator", TOPICS.name("heartbeat", "device-01"), Heartbeat(1, 0, "plan", 0.0, 0.0, 0, 0)),
        "decline": ("aggregator-1", TOPICS.name("decline", "device-01"), Decline(plan.round_id, name, "forged")),
        "attendance": (
            "coordinator", TOPICS.name("attendance", "aggregator-1"), Attendance(plan.round_id, name, (), ()),
        ),
        "freeze": ("aggregator-1", TOPICS.name("freeze"), freeze),
        "outcome": ("aggregator-1", TOPICS.name("outcome"), Outcome(plan.round_id, RoundPhase.FAILED, "forged")),
        "up": ("aggregator-1", TOPICS.name("up", "device-01"), upload),
    }  # fmt: skip
    for channel, (reader, topic, message) in control.items():
        yield reader, channel, topic, message
    sums = (SumShare(plan.round_id, bytes(32), 1, 0, 1, bytes(80)), Refusal(plan.round_id, bytes(32), "forged"))
    for message in sums:
        yield "coordinator", "sum", TOPICS.name("sum", "aggregator-1"), message
    acks = (Receipt(plan.round_id, bytes(16), Verdict.ACCEPTED), Missing(plan.round_id, bytes(16), b"\1"))
    for message in acks:
        yield "device-01", "ack", TOPICS.name("ack", "device-01"), message


def honest_sender(channel: str) -> str:
    """Who would have to sign a message of this channel."""
    return {"device": "device-01", "aggregator": "aggregator-1", "coordinator": "coordinator"}[CHANNELS[channel].writer]


def test_forged_messages_of_every_kind_are_refused_by_name(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=90") as fleet:
        with held(fleet):
            fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 60, "the first plan")
            plan, name = open_plan(fleet)
            expected: dict[str, list[str]] = {}
            for reader, channel, topic, message in forgeries(plan, name):
                sender, kind = honest_sender(channel), KIND_OF[type(message)]
                # Signed by somebody who has no key in the directory, in the honest sender's name.
                resigned = sign_message(Identity.generate(sender), FEDERATION, message)
                # The honest sender's name, and no signature at all.
                unsigned = strip_signature(resigned)
                broker = "aggregator-1" if channel in ("up", "ack") else "control"
                publish(fleet.brokers[broker].address, [(topic, resigned), (topic, unsigned), (topic, b"nothing")])
                refusal = f"{kind} in the name of '{sender}': the signature does not verify"
                expected.setdefault(reader, []).append(refusal)
            for reader, lines in expected.items():
                for line in lines:
                    fleet.wait_for(lambda r=reader, t=line: plain(log_of(fleet, r)).count(t) >= 2, 20, line)
                assert "not a signed envelope" in plain(log_of(fleet, reader))
        assert fleet.wait_done(90) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8), ("APPLIED", 8)]


def plain(log: str) -> str:
    """A log line as its text, whatever quotes its renderer chose."""
    return log.replace('"', "'").replace("\\'", "'")


def strip_signature(payload: bytes) -> bytes:
    """The same envelope with 64 zero bytes for a signature."""
    protocol, kind, sender, _, body = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode([protocol, kind, sender, bytes(64), body])


def test_a_party_of_another_role_cannot_speak_for_the_coordinator(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=1", "rounds.deadline_s=90") as fleet:
        with held(fleet):
            fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 60, "the first plan")
            plan, name = open_plan(fleet)
            device = Identity.load(fleet.folder.key("device-02"))
            outcome = sign_message(device, FEDERATION, Outcome(plan.round_id, RoundPhase.FAILED, "said a device"))
            publish(fleet.brokers["control"].address, [(TOPICS.name("outcome"), outcome)])
            text = "'device-02' is no coordinator"
            fleet.wait_for(lambda: text in plain(log_of(fleet, "aggregator-1")), 20, "the refusal")
            # A share sealed for another aggregator, honestly signed: refused when it is opened.
            misdirected = resealed(fleet, plan, name, device)
            publish(fleet.brokers["aggregator-1"].address, [(TOPICS.name("up", "device-02"), misdirected)])
            text = "does not open for 'aggregator-1'"
            fleet.wait_for(lambda: text in plain(log_of(fleet, "aggregator-1")), 20, "the refusal of the seal")
        assert fleet.wait_done(90) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8)]


def resealed(fleet: Fleet, plan: RoundPlan, name: bytes, device: Identity) -> bytes:
    """A well-formed chunk at rung 0 for aggregator-1, sealed to aggregator-2's key."""
    assert fleet.directory is not None
    x = plan.points["aggregator-1"]
    size = 32 if x <= plan.sharing.t else 4 * plan.segments[0].words
    position = (bytes(16), x, 0, 0, -(-size // plan.chunk_bytes))
    context = share_context(name, device.ident, "aggregator-1", position)
    key = bytes.fromhex(fleet.directory.aggregators["aggregator-2"].sealing)
    sealed = seal(key, bytes(min(size, plan.chunk_bytes)), context)
    return sign_message(device, FEDERATION, ShareUpload(plan.round_id, name, *position, sealed))


def test_a_second_freeze_and_an_old_plan_are_refused(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=90", "rounds.grace_s=5") as fleet:
        pids = start(fleet)
        fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 60, "the first plan")
        first, _ = open_plan(fleet)
        coordinator = Identity.load(fleet.folder.key("coordinator"))
        fleet.wait_for(lambda: len(fleet.rounds()) >= 1, 60, "the first round")
        with paused(pids["device-00"]):
            fleet.wait_for(lambda: begun_rounds(fleet) >= 2, 60, "the second plan")
            old = sign_message(coordinator, FEDERATION, first)
            plan, name = open_plan(fleet)
            small = Freeze(plan.round_id, name, tuple(plan.points), (Contribution("device-01", bytes(16), 0),), (0,))
            freeze = sign_message(coordinator, FEDERATION, small)
            control = fleet.brokers["control"].address
            publish(control, [(TOPICS.name("round"), old), (TOPICS.name("freeze"), freeze)])
            for text in ("plan for round 1, expected a round after", "freeze names an upload of 'device-01'"):
                fleet.wait_for(lambda t=text: t in plain(log_of(fleet, "aggregator-1")), 20, text)
        assert fleet.wait_done(90) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8)] * 3
