"""F01: hostile bytes on every channel. Nothing altered is accepted, every refusal has a name, memory does not grow.

Two kinds of attackers: whoever can write to a broker, and a party of the federation whose signature is in order and
whose message is not its own, or not for this round, plan, point, place, suite or key.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, keys, plan
from faults import mutations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_examples import EXAMPLES

from aggregator.book import Refused, ShareBook
from aggregator.service import Aggregator
from aggregator.settings import AggregatorFloors, AggregatorSettings
from aggregator.summing import check_share
from fedpruneshare.directory import DeviceEntry, Directory, party_keys
from fedpruneshare.errors import MessageError, PeerError, PlanError, SignatureError
from fedpruneshare.keys import Identity
from fedpruneshare.link import Delivery, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import (
    KIND_OF,
    KINDS,
    Receipt,
    ShareUpload,
    Suite,
    SumShare,
    Verdict,
    decode,
    digest,
    encode,
)
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.plan import check_plan
from fedpruneshare.sealing import KeyLookup, open_message, seal, share_context, sign_body, sign_message, sum_context
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import CHANNELS, WRITER_OF_KIND, Role

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

BYTES, SIGNED, DECODES, EXAMPLES_DRAWN = 90_000, 10_000, 300_000, 5_000
SOAK = 10
GROWTH_MIB = 64

FEDERATION, ROUND, AT = "lab", 7, AGGREGATORS[0]
SENDER = {Role.DEVICE: DEVICES[0], Role.AGGREGATOR: AT, Role.COORDINATOR: "coordinator"}
REVOKED, EXPIRED, STRANGER = "device-98", "device-97", "device-99"
LIMITS = LinkLimits(publish_timeout_s=5.0, reconnect_min_s=0.01, reconnect_max_s=0.1)
#: What a device may seal with where aggregators have a hybrid key as well.
SUITES = tuple(Suite)


@dataclass
class Stage:
    """One aggregator with a round open, and valid messages of everybody for it."""

    seed: int
    known: dict[str, Identity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.known = {name: identity(name) for name in (*DEVICES, STRANGER, REVOKED, EXPIRED)}
        self.known |= {name: Identity.generate(name, hybrid=True) for name in (*AGGREGATORS, "coordinator")}
        self.known[AT] = self.known[AT].rotated(hybrid=True)
        self.directory = self._directory()
        self.plan = plan(ROUND, suites=SUITES, cohort=DEVICES[:8])
        self.plan_body = encode(self.plan)
        self.view = check_plan(self.plan, digest(self.plan_body), self.directory, 0.0)
        self.other_plan = digest(encode(plan(ROUND, suites=SUITES, cohort=DEVICES[:7])))
        self.party = Party(self.known[AT], self.directory, Role.AGGREGATOR)
        self.x = self.plan.points[AT]
        self.valid: set[bytes] = set()

    def _directory(self) -> Directory:
        base = directory()
        services = {
            name: msgspec.structs.replace(service, keys=tuple(map(party_keys, self.known[name].public())))
            for name, service in {**base.aggregators, "coordinator": base.coordinator}.items()
        }
        old = tuple(msgspec.structs.replace(key, expires_at=10) for key in keys(EXPIRED))
        devices = base.devices | {REVOKED: DeviceEntry(keys(REVOKED)), EXPIRED: DeviceEntry(old)}
        revoked = {key.key_id.hex(): REVOKED for key in self.known[REVOKED].public()}
        coordinator = services.pop("coordinator")
        return directory(coordinator=coordinator, aggregators=services, devices=devices, revoked=revoked)

    def book(self) -> ShareBook:
        """The rules of this aggregator, nothing uploaded yet."""
        book = ShareBook(AT, AggregatorFloors())
        book.open_round(self.view)
        return book

    def upload(self, device: str, rung: int, chunk: int, suite: Suite) -> ShareUpload:
        """A chunk as an honest device makes it: all words zero, sealed for this place."""
        size = self.view.share_bytes(rung, self.x)
        chunks, length = self.view.chunks(size), min(self.plan.chunk_bytes, size - chunk * self.plan.chunk_bytes)
        upload_id = digest(f"{device} {rung} {suite}".encode())[:16]
        position = (upload_id, self.x, rung, "chacha20", chunk, chunks)
        key = self.known[AT].public()[0]
        context = share_context(FEDERATION, self.view.digest, (device, AT), position)
        sealed = seal(key, bytes(length), context, suite)
        return ShareUpload(ROUND, self.view.digest, *position[:1], *position[1:], suite, key.key_id, sealed)

    @cached_property
    def uploads(self) -> list[tuple[str, ShareUpload]]:
        """Valid chunks of several devices, rungs and suites."""
        made = []
        for place, device in enumerate(DEVICES[:6]):
            for rung in (0, 1, 2):
                chunks = self.view.chunks(self.view.share_bytes(rung, self.x))
                suite = SUITES[(place + rung) % len(SUITES)]
                made += [(device, self.upload(device, rung, chunk, suite)) for chunk in range(chunks)]
        return made

    def receive(self, channel: str, topic_party: str, payload: bytes) -> bytes | None:
        """What an aggregator, or whoever reads a channel, does with a payload. Raises `PeerError`; None: refused.

        For an upload: envelope, topic, book, seal, words (as `aggregator.service`). The plaintext is what is stored.
        """
        opened = self.party.open(channel, payload)
        if not isinstance(opened.message, ShareUpload):
            return opened.sender.encode() + opened.digest
        upload = opened.message
        if topic_party != opened.sender:
            return None
        admitted = self.book().admit(opened.sender, upload)
        if isinstance(admitted, Refused):
            return None
        position = (upload.upload_id, upload.x, upload.rung, upload.prg, upload.chunk, upload.chunks)
        context = share_context(FEDERATION, upload.plan, (opened.sender, AT), position)
        data = self.party.identity.unseal(upload.sealed, context, upload.suite, upload.key)
        check_share(self.view, upload.x, data)
        return opened.sender.encode() + opened.digest


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(1)


@pytest.fixture(scope="module")
def corpus(stage: Stage) -> list[tuple[str, str, bytes]]:
    """(channel, party of the topic, payload): every kind, and uploads of all shapes; all of it is accepted."""
    found = []
    for kind, message in EXAMPLES.items():
        sender = SENDER[WRITER_OF_KIND[kind]]
        channel = next(name for name, channel in CHANNELS.items() if kind in channel.kinds)
        found.append((channel, sender, sign_message(stage.known[sender], FEDERATION, message)))
    for device, upload in stage.uploads:
        found.append(("up", device, sign_message(stage.known[device], FEDERATION, upload)))
    whole = [entry for entry in found if entry[0] != "up" or stage.receive(*entry)]
    stage.valid |= {accepted for entry in whole if (accepted := stage.receive(*entry))}
    assert len(whole) > 40
    return whole


class Growth:
    """Resident memory of this process, since the last look."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss

    def mib(self) -> float:
        return (self._process.memory_info().rss - self._before) / 2**20


# --------------------------------------------------------------------------- whoever can write to a broker


def outside_attack(corpus: list[tuple[str, str, bytes]], rng: random.Random) -> tuple[str, str, bytes]:
    """A valid payload, damaged, or its header changed, or on another channel or topic."""
    channel, party, payload = rng.choice(corpus)
    blow = rng.randrange(20)
    if blow < 3:
        return channel, party, mutations.flip(payload, rng)
    if blow < 9:
        return channel, party, mutations.damaged(payload, rng.choice(corpus)[2], rng)
    if blow < 16:
        return channel, party, with_other_header(payload, rng.choice(corpus)[2], rng)
    if blow < 18:
        return rng.choice([name for name in CHANNELS if name != channel]), party, payload
    if blow < 19:
        return channel, party, rng.randbytes(rng.randint(0, 400))
    return channel, party, mutations.other_field(payload, rng)


def with_other_header(payload: bytes, other: bytes, rng: random.Random) -> bytes:
    """Protocol, kind, sender, key, signature and body, each perhaps that of another message, or nonsense."""
    fields, others = msgspec.msgpack.decode(payload), msgspec.msgpack.decode(other)
    for place in rng.sample(range(6), rng.randint(1, 3)):
        fields[place] = others[place] if rng.random() < 0.6 else mutations.hostile_value(rng)
    return msgspec.msgpack.encode(fields)


def attack_from_outside(
    stage: Stage, corpus: list[tuple[str, str, bytes]], count: int, rng: random.Random
) -> Counter[str]:
    """Returns how often each error was raised; fails on anything accepted that is not one of the valid messages."""
    met, whole = Counter[str](), set(corpus)
    while met.total() < count:
        channel, party, payload = outside_attack(corpus, rng)
        if (channel, party, payload) in whole:  # two changes that undid each other
            continue
        try:
            accepted = stage.receive(channel, party, payload)
        except PeerError as error:
            met[type(error).__name__] += 1
            continue
        # The same message in another wrapping (a number coded in more bytes) is the same message.
        assert accepted is None or accepted in stage.valid, (channel, party, payload.hex())
        met["the same" if accepted else "refused"] += 1
    return met


def check_outside(stage: Stage, corpus: list[tuple[str, str, bytes]], count: int, seed: int) -> None:
    rng, growth = random.Random(seed), Growth()
    attack_from_outside(stage, corpus, 500, rng)
    met = attack_from_outside(stage, corpus, count, rng)
    print(f"seed {seed}: {dict(met)}, {growth.mib():.1f} MiB more")
    assert set(met) <= {"MessageError", "SignatureError", "SealError", "refused", "the same"}
    assert met["the same"] < count / 500
    assert met["SignatureError"] > count / 10
    assert growth.mib() < GROWTH_MIB


def test_mutated_envelopes(stage: Stage, corpus: list[tuple[str, str, bytes]]) -> None:
    check_outside(stage, corpus, BYTES, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_mutated_envelopes_for_long(stage: Stage, corpus: list[tuple[str, str, bytes]]) -> None:
    check_outside(stage, corpus, SOAK * BYTES, random.SystemRandom().randrange(2**32))


# --------------------------------------------------------------------------- a party whose signature is in order

Attack = Callable[[Stage, str, ShareUpload, random.Random], tuple[str, bytes]]


def signed(stage: Stage, device: str, message: Any, federation: str = FEDERATION) -> bytes:
    return sign_message(stage.known[device], federation, message)


def changed(**fields: Callable[[Stage, ShareUpload, random.Random], Any]) -> Attack:
    """The honest chunk with other words around it, signed anew by the same device: the seal is for another place."""

    def attack(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
        values = {name: make(stage, upload, rng) for name, make in fields.items()}
        return device, signed(stage, device, msgspec.structs.replace(upload, **values))

    return attack


def other_than(values: Any, value: Any, rng: random.Random) -> Any:
    return rng.choice([one for one in values if one != value])


def resealed(context: Callable[[Stage, str, ShareUpload, random.Random], bytes]) -> Attack:
    """Sealed by the device itself, for another place than the words around it say."""

    def attack(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
        size = len(upload.sealed) - upload.suite.seal_bytes
        sealed = seal(stage.known[AT].public()[0], bytes(size), context(stage, device, upload, rng), upload.suite)
        return device, signed(stage, device, msgspec.structs.replace(upload, sealed=sealed))

    return attack


def place_of(upload: ShareUpload) -> Any:
    return (upload.upload_id, upload.x, upload.rung, upload.prg, upload.chunk, upload.chunks)


def words(make: Callable[[int, random.Random], bytes]) -> Attack:
    """What is inside the seal is wrong; the seal is in order."""

    def attack(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
        data = make(len(upload.sealed) - upload.suite.seal_bytes, rng)
        context = share_context(FEDERATION, upload.plan, (device, AT), place_of(upload))
        sealed = seal(stage.known[AT].public()[0], data, context, upload.suite)
        return device, signed(stage, device, msgspec.structs.replace(upload, sealed=sealed))

    return attack


def not_canonical(size: int, rng: random.Random) -> bytes:
    found = np.zeros(size // 4, "<u4")
    found[rng.randrange(found.size)] = rng.choice([2**31 - 1, 2**31, 2**32 - 1])
    return found.tobytes()


def in_anothers_name(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    """The sender is another device; the key is the attacker's own, or the victim's id with the attacker's key."""
    victim = other_than(DEVICES, device, rng)
    fields = msgspec.msgpack.decode(signed(stage, device, upload))
    fields[2] = victim
    if rng.random() < 0.5:
        fields[3] = stage.known[victim].public()[0].key_id
    return victim, msgspec.msgpack.encode(fields)


def as_another_role(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    """A device signs what only an aggregator or the coordinator may say."""
    kind = rng.choice([kind for kind, writer in WRITER_OF_KIND.items() if writer is not Role.DEVICE])
    return device, sign_body(stage.known[device], FEDERATION, kind, encode(EXAMPLES[kind]))


def as_another_kind(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    """The signed body of one kind under the name of another."""
    fields = msgspec.msgpack.decode(signed(stage, device, rng.choice([EXAMPLES["decline"], EXAMPLES["hello"]])))
    fields[1] = "share-upload"
    return device, msgspec.msgpack.encode(fields)


def of_another_federation(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    """The same keys in two federations: a signature counts in one."""
    return device, signed(stage, device, upload, rng.choice(["lab2", "la", "", "LAB", "lab\0share-upload"]))


def on_anothers_topic(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    return other_than(DEVICES, device, rng), signed(stage, device, upload)


def anothers_chunk(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    """A device sends, under its own name, what another one has sealed."""
    thief = other_than(DEVICES[:8], device, rng)
    return thief, signed(stage, thief, upload)


def by(name: str) -> Attack:
    def attack(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
        return name, signed(stage, name, upload)

    return attack


def of_another_version(stage: Stage, device: str, upload: ShareUpload, rng: random.Random) -> tuple[str, bytes]:
    fields = msgspec.msgpack.decode(signed(stage, device, upload))
    fields[0] = rng.choice([0, 2, 3, 255, 2**40])
    return device, msgspec.msgpack.encode(fields)


ATTACKS: dict[str, Attack] = {
    "another round": changed(round_id=lambda s, u, r: r.choice([ROUND - 1, ROUND + 1, 1, 2**47])),
    "another plan": changed(plan=lambda s, u, r: r.choice([s.other_plan, bytes(32), mutations.flip(u.plan, r)])),
    "another upload id": changed(upload_id=lambda s, u, r: mutations.flip(u.upload_id, r)),
    "another point": changed(x=lambda s, u, r: other_than((1, 2, 3), u.x, r)),
    "another rung": changed(rung=lambda s, u, r: other_than((0, 1, 2, 3), u.rung, r)),
    "another keystream": changed(prg=lambda s, u, r: other_than(tuple(map(str, Prg)), u.prg, r)),
    "another chunk": changed(chunk=lambda s, u, r: other_than(range(u.chunks + 2), u.chunk, r)),
    "other chunks": changed(chunks=lambda s, u, r: u.chunks + r.choice([1, 2, 100])),
    "another suite": changed(suite=lambda s, u, r: other_than(SUITES, u.suite, r)),
    "the older key": changed(key=lambda s, u, r: s.known[AT].public()[1].key_id),
    "no key of ours": changed(key=lambda s, u, r: r.choice([bytes(8), s.known[AGGREGATORS[1]].public()[0].key_id])),
    "a damaged seal": changed(sealed=lambda s, u, r: mutations.flip(u.sealed, r)),
    "a short seal": changed(sealed=lambda s, u, r: u.sealed[: -r.randint(1, 8)]),
    "a long seal": changed(sealed=lambda s, u, r: u.sealed + bytes(r.randint(1, 8))),
    "a seal for another aggregator": resealed(
        lambda s, d, u, r: share_context(FEDERATION, u.plan, (d, AGGREGATORS[1]), place_of(u))
    ),
    "a seal of another federation": resealed(lambda s, d, u, r: share_context("lab2", u.plan, (d, AT), place_of(u))),
    "a seal of another plan": resealed(
        lambda s, d, u, r: share_context(FEDERATION, s.other_plan, (d, AT), place_of(u))
    ),
    "a seal without context": resealed(lambda s, d, u, r: b""),
    "a sum's seal": resealed(lambda s, d, u, r: sum_context(FEDERATION, u.plan, (d, AT), (u.x, u.chunk, u.chunks))),
    "words over p": words(not_canonical),
    "another name": in_anothers_name,
    "another role": as_another_role,
    "another kind": as_another_kind,
    "another federation": of_another_federation,
    "another's topic": on_anothers_topic,
    "another's chunk": anothers_chunk,
    "not in the cohort": by(DEVICES[9]),
    "not on the roster": by(STRANGER),
    "a revoked key": by(REVOKED),
    "an expired key": by(EXPIRED),
    "another protocol version": of_another_version,
}


def attacks_from_inside(stage: Stage, count: int, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """(attack, what was accepted) of so many, each attack as often as the others."""
    names = list(ATTACKS)
    for number in range(count):
        name = names[number % len(names)]
        device, upload = rng.choice(stage.uploads)
        if name == "words over p" and (len(upload.sealed) - upload.suite.seal_bytes) % 4:
            continue
        party, payload = ATTACKS[name](stage, device, upload, rng)
        try:
            yield name, stage.receive("up", party, payload)
        except PeerError as error:
            assert str(error)
            yield name, None


def check_inside(stage: Stage, count: int, seed: int) -> None:
    rng, growth = random.Random(seed), Growth()
    met = Counter[str]()
    for name, accepted in attacks_from_inside(stage, count, rng):
        assert accepted is None, name
        met[name] += 1
    print(f"seed {seed}: {sum(met.values())} of {len(met)} kinds, {growth.mib():.1f} MiB more")
    assert set(met) == set(ATTACKS)
    assert growth.mib() < GROWTH_MIB


def test_what_is_signed_and_still_wrong(stage: Stage, corpus: list[tuple[str, str, bytes]]) -> None:
    check_inside(stage, SIGNED, 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_is_signed_and_still_wrong_for_long(stage: Stage, corpus: list[tuple[str, str, bytes]]) -> None:
    check_inside(stage, SOAK * SIGNED, random.SystemRandom().randrange(2**32))


async def test_the_aggregator_itself_stores_none_of_it(stage: Stage, tmp_path: Path) -> None:
    """Every attack through the running service, with its quotas and its store; then what is right."""
    brokers = {name: MemoryBroker(random.Random(1), time.monotonic) for name in ("own", "control")}
    own, control = (MemoryLink(brokers[name], AT, LIMITS) for name in ("own", "control"))
    everybody = {name: MemoryLink(broker, "everybody", LIMITS) for name, broker in brokers.items()}
    nobody = PartySettings(key_file="", directory="", root_key="0" * 64)
    limits = AggregatorSettings(party=nobody, store=str(tmp_path), uploads_per_device=1000)
    aggregator, receipts = Aggregator(stage.party, limits, own, control), list[Receipt]()

    async def on_receipt(delivery: Delivery) -> None:
        opened = open_message(delivery.payload, FEDERATION, _keys_of(stage), ("receipt", "missing"))
        if isinstance(opened.message, Receipt):
            receipts.append(opened.message)

    await everybody["own"].subscribe(stage.party.topics.every("ack"), on_receipt)
    await asyncio.gather(*(link.connect() for link in everybody.values()), aggregator.start())
    plan_message = sign_body(stage.known["coordinator"], FEDERATION, "round-plan", stage.plan_body)
    await everybody["control"].publish(stage.party.topics.name("round"), plan_message, expiry_s=60)
    async with asyncio.timeout(60):
        while aggregator._book.view is None:
            await asyncio.sleep(0.01)
        rng = random.Random(7)
        for name in [*ATTACKS] * 12:
            device, upload = rng.choice(stage.uploads)
            with suppress(ValueError):  # words over p in a share that is a seed
                party, payload = ATTACKS[name](stage, device, upload, rng)
                await everybody["own"].publish(stage.party.topics.name("up", party), payload)
        device, upload = stage.uploads[0]  # the last one is answered after all others
        last = msgspec.structs.replace(upload, round_id=ROUND - 1, upload_id=b"the last of them")
        await everybody["own"].publish(stage.party.topics.name("up", device), signed(stage, device, last))
        while not any(receipt.upload_id == last.upload_id for receipt in receipts):
            await asyncio.sleep(0.01)
        held = aggregator._store._db.execute("SELECT COUNT(*) FROM chunks").fetchone()[0]
        assert (held, aggregator._book.attempts()) == (0, [])
        assert receipts and all(receipt.verdict is not Verdict.ACCEPTED for receipt in receipts)
        for device, upload in stage.uploads:
            if upload.rung == 2:
                await everybody["own"].publish(stage.party.topics.name("up", device), signed(stage, device, upload))
        while sum(receipt.verdict is Verdict.ACCEPTED for receipt in receipts) < 6:
            await asyncio.sleep(0.01)
    await aggregator.stop()
    for link in everybody.values():
        await link.close()


def _keys_of(stage: Stage) -> KeyLookup:
    return lambda role, ident, key_id: stage.directory.signing_key(role, ident, key_id, 0.0)


def test_the_path_takes_what_is_right(stage: Stage) -> None:
    """Without that, everything above could be refused for another reason."""
    for device, upload in stage.uploads:
        assert stage.receive("up", device, signed(stage, device, upload))


def test_a_sum_opens_in_one_place_only() -> None:
    """Sealed to the coordinator for one Freeze, aggregator, point and chunk."""
    coordinator, rng = identity("coordinator"), random.Random(3)
    key, suite = coordinator.public()[0], Suite.X25519_AES256
    whole: dict[str, Any] = {
        "federation": FEDERATION,
        "freeze": bytes(32),
        "parties": (AT, "coordinator"),
        "position": (2, 0, 3),
    }
    share = SumShare(ROUND, bytes(32), 2, 0, 3, suite, key.key_id, seal(key, bytes(64), sum_context(**whole), suite))
    assert coordinator.unseal(share.sealed, sum_context(**whole), suite, key.key_id) == bytes(64)
    for name, values in {
        "federation": ["lab2", ""],
        "freeze": [bytes(31) + b"\1"],
        "parties": [(AGGREGATORS[1], "coordinator"), (AT, AT), ("coordinator", AT)],
        "position": [(1, 0, 3), (2, 1, 3), (2, 0, 2), (2, 3, 0)],
    }.items():
        for value in values:
            with pytest.raises(PeerError):
                coordinator.unseal(share.sealed, sum_context(**{**whole, name: value}), suite, key.key_id)
    for other in (suite for suite in Suite if suite is not Suite.X25519_AES256):
        with pytest.raises(PeerError):
            coordinator.unseal(share.sealed, sum_context(**whole), other, key.key_id)
    for _ in range(200):
        with pytest.raises(PeerError):
            coordinator.unseal(mutations.flip(share.sealed, rng), sum_context(**whole), suite, key.key_id)


# --------------------------------------------------------------------------- decoders


def decode_attacks(count: int, rng: random.Random) -> Counter[str]:
    """Damaged bodies of every kind; a body that decodes is one value, coded in one way at least."""
    bodies = {kind: encode(message) for kind, message in EXAMPLES.items()}
    names, met = list(bodies), Counter[str]()
    for number in range(count):
        kind, other = names[number % len(names)], bodies[rng.choice(names)]
        body = bodies[kind]
        if number % 4 == 0:
            body = mutations.other_field(body, rng)
        elif number % 4 == 1:
            body = other if rng.random() < 0.3 else mutations.flip(body, rng)
        else:
            body = mutations.damaged(body, other, rng)
        try:
            message = decode(rng.choice(names) if number % 50 == 0 else kind, body)
        except MessageError:
            met["refused"] += 1
            continue
        met["decoded"] += 1
        assert decode(KIND_OF[type(message)], encode(message)) == message or "nan" in repr(message)
    return met


def check_decodes(count: int, seed: int) -> None:
    rng, growth = random.Random(seed), Growth()
    decode_attacks(2000, rng)
    met = decode_attacks(count, rng)
    print(f"seed {seed}: {dict(met)}, {growth.mib():.1f} MiB more")
    assert met["refused"] > count / 2
    assert growth.mib() < GROWTH_MIB


def test_mutated_bodies() -> None:
    check_decodes(DECODES, 4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_mutated_bodies_for_long() -> None:
    check_decodes(SOAK * DECODES, random.SystemRandom().randrange(2**32))


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.binary(max_size=40)


@settings(max_examples=EXAMPLES_DRAWN, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(list(KINDS)), st.lists(SCALARS, max_size=14), st.binary(max_size=60))
def test_whatever_stands_there_is_refused_by_name(kind: str, values: list[Any], tail: bytes) -> None:
    for body in (msgspec.msgpack.encode(values), msgspec.msgpack.encode(values) + tail, tail):
        with suppress(MessageError):
            decode(kind, body)
        with pytest.raises((MessageError, SignatureError)):
            open_message(body, FEDERATION, _nobody, (kind,))


def _nobody(role: Role, ident: str, key_id: bytes) -> bytes:
    raise SignatureError("nobody is known")


# --------------------------------------------------------------------------- a plan that is signed and not sound


def test_plans_that_contradict_themselves_are_refused(stage: Stage) -> None:
    """The coordinator signs anything: what passes `check_plan` has lengths that can be computed, and small ones."""
    rng, met = random.Random(5), Counter[str]()
    for _ in range(20_000):
        try:
            found = decode("round-plan", mutations.other_field(stage.plan_body, rng))
            view = check_plan(found, bytes(32), stage.directory, 0.0)  # type: ignore[arg-type]
        except (MessageError, PlanError) as error:
            met[type(error).__name__] += 1
            continue
        met["sound"] += 1
        sizes = [view.share_bytes(rung, x) for rung in range(view.rungs) for x in view.plan.points.values()]
        assert all(0 < size < 2**34 for size in sizes)
        assert all(view.chunks(size) <= 65_536 for size in sizes)
    print(dict(met))
    assert met["PlanError"] > 500
    assert met["sound"] > 500
