"""Forged, replayed and contradictory messages on real topics are refused by name and change nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from e2e.fleets import (
    Capture,
    at,
    complete_uploads,
    coordinator_rows,
    hearing_attendances,
    held,
    paused,
    query,
    small_fleet,
    start,
)

from fedpruneshare.link import BrokerAddress
from fedpruneshare.messages import (
    KIND_OF,
    Acceptance,
    Attendance,
    Contribution,
    Decline,
    DirectoryChunk,
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
    encode,
)
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from fedpruneshare.sealing import Identity, PublicKeys, Suite, seal, share_context, sign_message, sum_context
from fedpruneshare.topics import CHANNELS, Topics
from testbed.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FEDERATION = "testbed"
TOPICS = Topics(FEDERATION)


def publish(address: BrokerAddress, messages: list[tuple[str, bytes]], *, retain: bool = False) -> None:
    """Publish as anybody could on a broker without access lists."""

    async def work() -> None:
        link = open_link(address, f"stranger-{os.getpid()}", LinkSettings())
        await link.connect()
        for topic, payload in messages:
            await link.publish(topic, payload, retain=retain)
        await link.close()

    asyncio.run(work())


def log_of(fleet: Fleet, ident: str) -> str:
    return (fleet.folder.logs / f"{ident}.log").read_text()


def open_plan(fleet: Fleet) -> tuple[RoundPlan, bytes]:
    body = bytes(coordinator_rows(fleet, "SELECT plan FROM rounds ORDER BY round_id DESC LIMIT 1")[0][0])
    plan = decode("round-plan", body)
    assert isinstance(plan, RoundPlan)
    return plan, digest(body)


SUITE = Suite.X25519_CHACHA20


def forgeries(plan: RoundPlan, name: bytes) -> Iterator[tuple[str, str, str, Message]]:
    """(who reads it, channel, topic, message) of every kind that a service reads all the time."""
    upload = ShareUpload(
        plan.round_id, name, bytes(16), plan.points["aggregator-1"], 0, "chacha20", 0, 1, SUITE, bytes(8), bytes(80)
    )
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
        "accepted": ("coordinator", TOPICS.name("accepted", "aggregator-1"), Acceptance(plan.round_id, bytes(32))),
        "directory": ("aggregator-1", TOPICS.name("directory", 0), DirectoryChunk(9, bytes(32), 0, 1, b"forged")),
        "outcome": ("aggregator-1", TOPICS.name("outcome"), Outcome(plan.round_id, RoundPhase.FAILED, "forged")),
        "up": ("aggregator-1", TOPICS.name("up", "device-01"), upload),
    }  # fmt: skip
    for channel, (reader, topic, message) in control.items():
        yield reader, channel, topic, message
    sums = (
        SumShare(plan.round_id, bytes(32), 1, 0, 1, SUITE, bytes(8), bytes(80)),
        Refusal(plan.round_id, bytes(32), "forged"),
    )
    for message in sums:
        yield "coordinator", "sum", TOPICS.name("sum", "aggregator-1"), message
    acks = (Receipt(plan.round_id, bytes(16), Verdict.ACCEPTED), Missing(plan.round_id, bytes(16), b"\1"))
    for message in acks:
        yield "device-01", "ack", TOPICS.name("ack", "device-01"), message


def honest_sender(channel: str) -> str:
    """Who would have to sign a message of this channel."""
    return {"device": "device-01", "aggregator": "aggregator-1", "coordinator": "coordinator"}[CHANNELS[channel].writer]


def test_forged_messages_of_every_kind_are_refused_by_name(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=300") as fleet:
        with held(fleet):
            plan, name = open_plan(fleet)
            expected: dict[str, list[str]] = {}
            for reader, channel, topic, message in forgeries(plan, name):
                sender, kind = honest_sender(channel), KIND_OF[type(message)]
                # Signed by somebody who has no key in the directory, in the honest sender's name and with its key id.
                impostor, honest = Identity.generate(sender), Identity.load(fleet.folder.key(sender))
                resigned = relabelled(sign_message(impostor, FEDERATION, message), honest.public()[0].key_id)
                # The honest sender's name, and no signature at all.
                unsigned = strip_signature(resigned)
                broker = "aggregator-1" if channel in ("up", "ack") else "control"
                publish(fleet.brokers[broker].address, [(topic, resigned), (topic, unsigned), (topic, b"nothing")])
                refusal = f"{kind} in the name of '{sender}': the signature does not verify"
                expected.setdefault(reader, []).append(refusal)
            for reader, lines in expected.items():
                for line in lines:
                    fleet.wait_for(lambda r=reader, t=line: plain(log_of(fleet, r)).count(t) >= 2, 200, line)
                assert "not a signed envelope" in plain(log_of(fleet, reader))
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8), ("APPLIED", 8)]


def plain(log: str) -> str:
    """A log line as its text, whatever quotes its renderer chose."""
    return log.replace('"', "'").replace("\\'", "'")


def relabelled(payload: bytes, key_id: bytes) -> bytes:
    """The same envelope with another key id."""
    protocol, kind, sender, _, signature, body = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode([protocol, kind, sender, key_id, signature, body])


def strip_signature(payload: bytes) -> bytes:
    """The same envelope with 64 zero bytes for a signature."""
    protocol, kind, sender, key, _, body = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode([protocol, kind, sender, key, bytes(64), body])


def test_a_party_of_another_role_cannot_speak_for_the_coordinator(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=1", "rounds.deadline_s=300") as fleet:
        with held(fleet):
            plan, name = open_plan(fleet)
            device = Identity.load(fleet.folder.key("device-02"))
            outcome = sign_message(device, FEDERATION, Outcome(plan.round_id, RoundPhase.FAILED, "said a device"))
            publish(fleet.brokers["control"].address, [(TOPICS.name("outcome"), outcome)])
            text = "'device-02' is no coordinator"
            fleet.wait_for(lambda: text in plain(log_of(fleet, "aggregator-1")), 200, "the refusal")
            # A share sealed for another aggregator, honestly signed: refused when it is opened.
            misdirected = resealed(fleet, plan, name, device)
            publish(fleet.brokers["aggregator-1"].address, [(TOPICS.name("up", "device-02"), misdirected)])
            text = "does not open for 'aggregator-1'"
            fleet.wait_for(lambda: text in plain(log_of(fleet, "aggregator-1")), 200, "the refusal of the seal")
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8)]


def resealed(fleet: Fleet, plan: RoundPlan, name: bytes, device: Identity) -> bytes:
    """A well-formed chunk at rung 0 for aggregator-1, sealed to aggregator-2's key."""
    x = plan.points["aggregator-1"]
    size = 32 if x <= plan.sharing.t else 4 * plan.segments[0].words
    position = (bytes(16), x, 0, "chacha20", 0, -(-size // plan.chunk_bytes))
    context = share_context(FEDERATION, name, (device.ident, "aggregator-1"), position)
    sealed = seal(sealing_key(fleet, "aggregator-2"), bytes(min(size, plan.chunk_bytes)), context, SUITE)
    named = sealing_key(fleet, "aggregator-1").key_id
    return sign_message(device, FEDERATION, ShareUpload(plan.round_id, name, *position, SUITE, named, sealed))


def sealing_key(fleet: Fleet, ident: str) -> PublicKeys:
    assert fleet.directory is not None
    services = {**fleet.directory.aggregators, "coordinator": fleet.directory.coordinator}
    return services[ident].keys[0].raw()


def test_a_chunk_copied_from_another_device_does_not_open(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=1", "rounds.deadline_s=300") as fleet:
        broker = fleet.brokers["aggregator-1"].address
        with Capture({"aggregator-1": broker}).running() as capture, held(fleet):
            original = fleet.wait_for(lambda: chunk_of(capture, "device-01"), 200, "a chunk of device-01")
            thief = Identity.load(fleet.folder.key("device-02"))
            # With an upload id of its own, and with that of the original: either way the seal names device-01.
            copies = [msgspec.structs.replace(original, upload_id=bytes(16)), original]
            payloads = [sign_message(thief, FEDERATION, copy) for copy in copies]
            publish(broker, [(TOPICS.name("up", "device-02"), payload) for payload in payloads])
            fleet.wait_for(lambda: refusals_of_seal(fleet) == 2, 200, "the refusal of both")
            # And on the topic of another: a device has a voice on its own topic only.
            publish(broker, [(TOPICS.name("up", "device-01"), payloads[0])])
            text = "published on another device's topic"
            fleet.wait_for(lambda: text in plain(log_of(fleet, "aggregator-1")), 200, text)
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8)]
        assert fleet.rounds()[0].verified


def refusals_of_seal(fleet: Fleet) -> int:
    lines = plain(log_of(fleet, "aggregator-1")).splitlines()
    return sum("does not open for 'aggregator-1'" in line and "device=device-02" in line for line in lines)


def chunk_of(capture: Capture, device: str) -> ShareUpload | None:
    for _, topic, payload, _ in list(capture.messages):
        if topic == TOPICS.name("up", device):
            message = decode("share-upload", msgspec.msgpack.decode(payload)[5])
            assert isinstance(message, ShareUpload)
            return message
    return None


def test_a_second_freeze_and_a_sum_for_somebody_else_are_refused(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=300", "rounds.grace_s=60") as fleet:
        with frozen_without(fleet, "aggregator-3") as first:
            coordinator = Identity.load(fleet.folder.key("coordinator"))
            second = msgspec.structs.replace(first, contributors=first.contributors[1:], segments=(0,))
            sums = "SELECT COUNT(*) FROM rounds WHERE sum IS NOT NULL"
            before = {name: query(store_of(fleet, name), "SELECT sum FROM rounds") for name in NAMED}
            control = fleet.brokers["control"].address
            publish(control, [(TOPICS.name("freeze"), sign_message(coordinator, FEDERATION, second))])
            for name in NAMED:
                text = "second freeze for round 1: the first one stands"
                fleet.wait_for(lambda n=name, t=text: t in plain(log_of(fleet, n)), 200, text)
                assert query(store_of(fleet, name), "SELECT sum FROM rounds") == before[name]
                assert at(fleet, name, sums) == 1
            publish(control, [(TOPICS.name("sum", "aggregator-3"), payload) for payload in false_sums(fleet, first)])
            for text in ("does not open for 'coordinator'", "sum for another freeze of round 1"):
                fleet.wait_for(lambda t=text: t in plain(log_of(fleet, "coordinator")), 200, text)
            assert fleet.rounds() == []
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.contributors, line.verified) for line in fleet.rounds()] == [("APPLIED", 8, True)] * 2


NAMED = ("aggregator-1", "aggregator-2")


def store_of(fleet: Fleet, aggregator: str) -> Path:
    return fleet.folder.store(aggregator) / "shares.sqlite"


@contextmanager
def frozen_without(fleet: Fleet, silent: str) -> Iterator[Freeze]:
    """Round 1 FROZEN: every sum but one has been made, and the coordinator waits (its grace time) for the last."""
    with ExitStack() as until_attended:
        with held(fleet) as pids:
            for name in fleet.aggregators:
                fleet.wait_for(lambda n=name: complete_uploads(fleet, n, 1) == 7, 200, "seven uploads")
            until_attended.enter_context(paused(pids["coordinator"]))
            wait_for_attendances = until_attended.enter_context(hearing_attendances(fleet))
        wait_for_attendances()
        with paused(pids[silent]):
            until_attended.close()
            for name in set(fleet.aggregators) - {silent}:
                fleet.wait_for(lambda n=name: at(fleet, n, "SELECT sum IS NOT NULL FROM rounds"), 200, "its sum")
            freeze = decode("freeze", coordinator_rows(fleet, "SELECT freeze FROM rounds")[0][0])
            assert isinstance(freeze, Freeze)
            yield freeze


def false_sums(fleet: Fleet, freeze: Freeze) -> Iterator[bytes]:
    """Sums in the right shape, signed with aggregator-3's own key: for other eyes, and over another Freeze."""
    plan, _ = open_plan(fleet)
    aggregator = Identity.load(fleet.folder.key("aggregator-3"))
    size = 4 * sum(plan.segments[index].words for index in freeze.segments)
    position = (plan.points["aggregator-3"], 0, -(-size // plan.chunk_bytes))
    data = bytes(min(size, plan.chunk_bytes))
    for name, receiver in ((digest(encode(freeze)), "aggregator-1"), (bytes(32), "coordinator")):
        context = sum_context(FEDERATION, name, ("aggregator-3", "coordinator"), position)
        sealed, named = (
            seal(sealing_key(fleet, receiver), data, context, SUITE),
            sealing_key(fleet, "coordinator").key_id,
        )
        yield sign_message(aggregator, FEDERATION, SumShare(plan.round_id, name, *position, SUITE, named, sealed))


def test_an_old_plan_is_refused(tmp_path: Path) -> None:
    """Aggregators, devices that were there, and a device that has been started anew since."""
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=300") as fleet:
        control = fleet.brokers["control"].address
        with Capture({"control": control}).running() as capture:
            start(fleet)
            assert fleet.wait_done(250) == 0
        plans = [payload for _, topic, payload, _ in capture.messages if topic == TOPICS.name("round") and payload]
        begun = {ident: log_of(fleet, ident).count("uploading ") for ident in fleet.devices}
        assert set(begun.values()) == {2}
        fleet.kill_device("device-04")
        fleet.start_device("device-04")
        publish(control, [(TOPICS.name("round"), plans[0])], retain=True)
        text = "plan for round 1, expected a round after 2"
        for ident in (*fleet.aggregators, *fleet.devices):
            fleet.wait_for(lambda i=ident: text in plain(log_of(fleet, i)), 200, f"{ident} to refuse the old plan")
        assert {ident: log_of(fleet, ident).count("uploading ") for ident in fleet.devices} == begun
