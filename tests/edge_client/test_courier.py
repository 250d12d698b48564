"""A courier sends what is missing, once: answers to repeats must not make it send a share several times over."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import AGGREGATORS, directory, identity, view

from edge_client import uploading
from edge_client.byte_ledger import ByteLedger
from edge_client.dispatch import Consignment, Dispatch
from edge_client.outbox import Upload
from edge_client.share_chunks import WholeShare
from edge_client.uploading import Courier, Parcel, Uplink, is_accepted
from fedpruneshare.errors import DisconnectedError, SignatureError
from fedpruneshare.link.chunks import Bitmap
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Missing, Receipt, ShareUpload, Verdict
from fedpruneshare.party import Party
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import Role

CHUNKS = 12
VIEW = view()
SHARE = WholeShare(bytes(1024 * CHUNKS), VIEW.plan.chunk_bytes)
WORDS = np.zeros(1, np.uint32)
UPLOAD = Upload(VIEW.digest, 1, b"u" * 16, 2, 9, Prg.CHACHA20, {}, WORDS[:0], b"", WORDS)


@dataclass
class Counter:
    """A link to an aggregator that answers as docs/protocol.md §3.2 says: a repeat, and the last missing chunk."""

    stored: set[int]
    sent: list[int] = field(default_factory=list)
    courier: Courier | Dispatch | None = None
    name: str = ""

    async def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        party = Party(identity("aggregator-1"), directory(), Role.AGGREGATOR)
        upload = party.open("up", payload).message
        assert isinstance(upload, ShareUpload)
        assert self.courier is not None
        self.sent.append(upload.chunk)
        options["on_sent"]()
        is_repeat = upload.chunk in self.stored
        self.stored.add(upload.chunk)
        await asyncio.sleep(0)
        if len(self.stored) == CHUNKS:
            self._answer(Receipt(1, UPLOAD.upload_id, Verdict.ACCEPTED))
        elif is_repeat:
            absent = set(range(CHUNKS)) - self.stored
            self._answer(Missing(1, UPLOAD.upload_id, Bitmap.encode(absent, CHUNKS)))

    def _answer(self, message: Receipt | Missing) -> None:
        if isinstance(self.courier, Dispatch):
            self.courier.answer(self.name, message)
        elif self.courier is not None:
            self.courier.answer(message)


async def deliver(stored: set[int], *, is_resumed: bool) -> tuple[list[int], list[bool]]:
    """Chunks as sent, and whether each was counted as sent for the first time."""
    link, counted = Counter(set(stored)), list[bool]()
    ends_at = asyncio.get_running_loop().time() + 60.0
    parcel = Parcel(VIEW, UPLOAD, "aggregator-1", 2, SHARE, ends_at, is_resumed)
    party = Party(identity("device-03"), directory(), Role.DEVICE)
    link.courier = Courier(party, link, parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        receipt = await link.courier.deliver(lambda size, is_first: counted.append(is_first))
    assert is_accepted(receipt)
    return link.sent, counted


async def test_a_new_share_is_sent_once() -> None:
    sent, counted = await deliver(set(), is_resumed=False)
    assert sorted(sent) == list(range(CHUNKS))
    assert counted == [True] * CHUNKS


@pytest.mark.parametrize("stored", [{0, 1, 2, 3}, {5}, set(range(11)), set(range(1, 12))])
async def test_a_resumed_share_is_completed_after_two_questions(stored: set[int]) -> None:
    sent, _ = await deliver(stored, is_resumed=True)
    assert sent[:2] == [0, 0]
    assert sorted(sent[2:]) == sorted(set(range(CHUNKS)) - stored - {0})


async def test_of_a_resumed_share_that_is_there_only_the_questions_are_sent() -> None:
    sent, counted = await deliver(set(range(CHUNKS)), is_resumed=True)
    assert set(sent) == {0}
    assert len(sent) == len(counted) == 2


async def test_calls_for_chunks_on_their_way_are_dropped() -> None:
    """Four of them are repeats, each answered by a call for all the rest, which is being sent already."""
    sent, _ = await deliver({0, 1, 2, 3}, is_resumed=False)
    assert sorted(sent) == list(range(CHUNKS))


async def test_what_making_chunks_took_is_told_apart_from_sending() -> None:
    link = Counter(set())
    loop = asyncio.get_running_loop()
    parcel = Parcel(VIEW, UPLOAD, "aggregator-1", 2, SHARE, loop.time() + 60.0)
    party = Party(identity("device-03"), directory(), Role.DEVICE)
    courier = link.courier = Courier(party, link, parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
    assert courier.prepared_s == 0.0
    started = loop.time()
    async with asyncio.timeout(60):
        await courier.deliver(lambda size, is_first: None)
    assert 0 < courier.prepared_s < loop.time() - started


@dataclass
class Mute:
    """A link whose broker answers nothing, or that is down."""

    error: Exception | None = None
    tried: int = 0

    async def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        self.tried += 1
        if self.error is not None:
            raise self.error
        options["on_sent"]()
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("link", "long_s", "reported"),
    [(Mute(), 0.05, 4), (Mute(), 60.0, 0), (Mute(DisconnectedError("the connection fell")), 0.0, 0)],
)
async def test_chunks_that_the_round_cut_off_show_how_slow_the_link_is(
    link: Mute, long_s: float, reported: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "_CUT_OFF_S", long_s)
    parcel = Parcel(VIEW, UPLOAD, "aggregator-1", 2, SHARE, asyncio.get_running_loop().time() + 60.0)
    party = Party(identity("device-03"), directory(), Role.DEVICE)
    courier = Courier(party, link, parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
    seen: list[tuple[str, float, int]] = []
    courier.watch = lambda aggregator, size, seconds, ahead: seen.append((aggregator, seconds, ahead // size))
    delivery = asyncio.create_task(courier.deliver(lambda size, is_first: None))
    async with asyncio.timeout(60):
        while link.tried < 4:
            await asyncio.sleep(0.01)
    await asyncio.sleep(2 * 0.05)  # it is what is measured: all four have been under way for longer than `long_s`
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivery
    assert [entry[0] for entry in seen] == ["aggregator-1"] * reported
    assert all(0.05 < seconds < 60.0 for _, seconds, _ in seen)
    assert [ahead for _, _, ahead in seen] == list(range(1, reported + 1))


async def test_a_seed_that_queues_behind_other_shares_says_nothing_of_the_round_trip() -> None:
    """On one slow uplink its answer is as late as theirs."""
    seed = WholeShare(bytes(32), VIEW.plan.chunk_bytes)
    loop, uplink, seen = asyncio.get_running_loop(), Uplink(), list[str]()
    party = Party(identity("device-03"), directory(), Role.DEVICE)

    async def deliver_behind(name: str, others_bytes: int) -> None:
        link = Counter(set(range(1, CHUNKS)))
        parcel = Parcel(VIEW, UPLOAD, "aggregator-1", 2, seed, loop.time() + 60.0)
        link.courier = Courier(party, link, parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
        link.courier.uplink, uplink.under_way_bytes = uplink, others_bytes
        link.courier.watch = lambda *_: seen.append(name)
        await link.courier.deliver(lambda size, is_first: None)
        assert uplink.under_way_bytes == others_bytes

    await deliver_behind("behind", 50_000)
    await deliver_behind("alone", 0)
    assert seen == ["alone"]


async def brought(folder: Path, *shut_out: str) -> tuple[list[Receipt], ByteLedger]:
    """An upload for three aggregators, of which some have no key any more."""
    revoked = {identity(name).public()[0].key_id.hex(): name for name in shut_out}
    party = Party(identity("device-03"), directory(version=2, revoked=revoked), Role.DEVICE)
    links, ledger = {name: Counter(set(), name=name) for name in AGGREGATORS}, ByteLedger(folder)
    ledger.begin(1, 0)
    dispatch = Dispatch(party, links, ledger, 4, Backoff(random.Random(1)))  # type: ignore[arg-type]
    for link in links.values():
        link.courier = dispatch
    ends_at = asyncio.get_running_loop().time() + 60.0
    async with asyncio.timeout(60):
        receipts = await dispatch.deliver(Consignment(VIEW, UPLOAD, dict.fromkeys((1, 2, 3), SHARE), ends_at))
    assert not any(links[name].sent for name in shut_out)
    return receipts, ledger


async def test_an_aggregator_without_a_key_in_force_is_done_without(tmp_path: Path) -> None:
    receipts, ledger = await brought(tmp_path, AGGREGATORS[1])
    assert [is_accepted(receipt) for receipt in receipts].count(True) == 2
    assert ledger.entry.status == "uploaded"
    assert "every key of 'aggregator-2' is revoked" in ledger.entry.reason


async def test_with_fewer_than_k_that_have_keys_nothing_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="is revoked, in version 2"):
        await brought(tmp_path, *AGGREGATORS[1:])


async def test_what_an_aggregator_says_without_end_is_not_kept_without_end() -> None:
    parcel = Parcel(VIEW, UPLOAD, "aggregator-1", 2, SHARE, asyncio.get_running_loop().time() + 60.0)
    party = Party(identity("device-03"), directory(), Role.DEVICE)
    courier = Courier(party, Mute(), parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
    for _ in range(10_000):
        courier.answer(Missing(1, UPLOAD.upload_id, Bitmap.encode({0}, CHUNKS)))
    assert courier._answers.qsize() <= 64
