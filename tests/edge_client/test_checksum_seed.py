"""The seed of the hidden checksum at the device: the one the plan commits to, or none (docs/protocol.md §5.11)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator

import msgspec
import numpy as np
import pytest
from builders import DEVICES, directory, identity, plan, view
from structlog.testing import capture_logs

from edge_client import checksum_seed
from edge_client.checksum_seed import fill_checksums, receive_seed
from fedpruneshare.errors import ProtocolError, SealError
from fedpruneshare.link import Handler, LinkLimits
from fedpruneshare.link.memory import MemoryBroker, MemoryLink
from fedpruneshare.messages import ChecksumSeed, Sharing, Suite, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sealing import checksum_seed_context, seal
from fedpruneshare.sharing.checksum import commitment, is_checksum_right
from fedpruneshare.sharing.field import FIELDS
from fedpruneshare.topics import Role
from fedpruneshare.words import WordLayout

DEVICE, SEED = DEVICES[0], bytes(range(32))
COORDINATOR = Party(identity("coordinator"), directory(), Role.COORDINATOR)


def committed(seed: bytes = SEED, field: str = "F31", round_id: int = 1) -> PlanView:
    rows = {"F31": 3, "F61": 2}[field]
    base = plan(round_id)
    coding = msgspec.structs.replace(base.coding, tail_words=rows)
    layout = WordLayout(coding, FIELDS[field])
    segments = tuple(
        msgspec.structs.replace(one, words=layout.words(one.vectors, one.weights)) for one in base.segments
    )
    whole = plan(round_id, coding=coding, segments=segments, checksum=commitment(seed), sharing=Sharing(3, 2, 1, field))
    return check_plan(whole, digest(encode(whole)), directory())


def letter(made: PlanView, seed: bytes, to: str = DEVICE) -> bytes:
    keys = identity(to).public()[0]
    context = checksum_seed_context("lab", made.digest, ("coordinator", DEVICE))
    sealed = seal(keys, seed, context, Suite.X25519_CHACHA20)
    return COORDINATOR.sign(ChecksumSeed(made.plan.round_id, made.digest, Suite.X25519_CHACHA20, keys.key_id, sealed))


@pytest.fixture
async def links() -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    broker = MemoryBroker(random.Random(1), time.monotonic)
    ours, theirs = (MemoryLink(broker, name, LinkLimits()) for name in (DEVICE, "coordinator"))
    await ours.connect()
    await theirs.connect()
    yield ours, theirs
    await ours.close()
    await theirs.close()


async def taken(
    links: tuple[MemoryLink, MemoryLink], made: PlanView, *letters: bytes, patience_s: float = 60.0
) -> bytes:
    party = Party(identity(DEVICE), directory(), Role.DEVICE)
    for payload in letters:
        await links[1].publish(party.topics.name("seed", DEVICE), payload, retain=True)
    return await receive_seed(party, links[0], made, patience_s)


async def test_the_seed_that_waits_on_the_broker_is_taken(links: tuple[MemoryLink, MemoryLink]) -> None:
    made = committed()
    assert await taken(links, made, letter(made, SEED)) == SEED


async def test_a_seed_in_a_suite_that_the_plan_does_not_name_is_refused(links: tuple[MemoryLink, MemoryLink]) -> None:
    base = committed().plan
    whole = msgspec.structs.replace(base, suites=(Suite.X25519_AES256,))
    made = check_plan(whole, digest(encode(whole)), directory())
    with pytest.raises(ProtocolError, match="checksum seed sealed with x25519/chacha20-poly1305, expected x25519/aes"):
        await taken(links, made, letter(made, SEED))


async def test_a_seed_that_the_broker_failed_to_hand_over_is_asked_for_again(
    links: tuple[MemoryLink, MemoryLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, subscribe, asked = committed(), MemoryLink.subscribe, []

    async def deaf_at_first(link: MemoryLink, topic: str, handler: Handler) -> None:
        asked.append(topic)
        await subscribe(link, topic if len(asked) > 1 else f"{topic}-elsewhere", handler)

    monkeypatch.setattr(checksum_seed, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(MemoryLink, "subscribe", deaf_at_first)
    assert await taken(links, made, letter(made, SEED)) == SEED
    assert len(asked) >= 2  # more often where what the broker hands over takes its time


async def test_without_a_commitment_nothing_is_waited_for(links: tuple[MemoryLink, MemoryLink]) -> None:
    assert await taken(links, view(), patience_s=0.0) == b""


async def test_a_seed_of_another_round_or_of_nobody_is_not_taken(links: tuple[MemoryLink, MemoryLink]) -> None:
    made, old = committed(round_id=2), committed()
    party = Party(identity(DEVICE), directory(), Role.DEVICE)
    task = asyncio.create_task(taken(links, made, letter(old, SEED)))
    topic = party.topics.name("seed", DEVICE)
    for payload in (b"nothing", letter(old, os.urandom(32)), letter(made, SEED)):
        await asyncio.sleep(0)
        await links[1].publish(topic, payload, retain=True)
    assert await task == SEED


async def test_a_seed_that_the_plan_does_not_commit_to_is_refused(links: tuple[MemoryLink, MemoryLink]) -> None:
    """The coordinator would learn a combination of this device's words that it chose for it alone."""
    made = committed()
    with pytest.raises(ProtocolError, match="the checksum seed is not the one that the plan commits to"):
        await taken(links, made, letter(made, os.urandom(32)))


async def test_a_seed_sealed_to_another_device_does_not_open(links: tuple[MemoryLink, MemoryLink]) -> None:
    made = committed()
    with pytest.raises(SealError):
        await taken(links, made, letter(made, SEED, to=DEVICES[1]))


async def test_no_seed_is_a_reason_with_its_topic(links: tuple[MemoryLink, MemoryLink]) -> None:
    with pytest.raises(ProtocolError, match=rf"no checksum seed came in 0\.1 s, expected one on .*seed/{DEVICE}"):
        await taken(links, committed(), patience_s=0.1)


async def test_the_seed_is_never_logged(links: tuple[MemoryLink, MemoryLink]) -> None:
    made, bad = committed(), os.urandom(32)
    with capture_logs() as logs, pytest.raises(ProtocolError) as caught:
        await taken(links, made, letter(made, bad))
    assert bad.hex() not in repr(logs) + str(caught.value)


@pytest.mark.parametrize("field", ["F31", "F61"])
@pytest.mark.parametrize("rung", [0, 1, 2])
def test_every_segment_of_a_rung_gets_its_checksum(field: str, rung: int) -> None:
    made = committed(field=field)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1000, made.upload_words(rung)).astype(made.field.word_type)
    fill_checksums(made, words, SEED)
    start = 0
    for segment, count in enumerate(made.segment_words[: rung + 1]):
        own = words[start : start + count].copy()
        assert is_checksum_right(own, SEED, segment, made.plan.coding.tail_words, made.field)
        own[5] += 1
        assert not is_checksum_right(own, SEED, segment, made.plan.coding.tail_words, made.field)
        start += count
    assert start == words.size


def test_without_a_seed_the_words_stay() -> None:
    words = np.arange(view().upload_words(0), dtype="<u4")
    fill_checksums(view(), words, b"")
    assert np.array_equal(words, np.arange(words.size))
