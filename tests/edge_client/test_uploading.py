"""Bytes on the wire are the formula's, and a courier sends until it has been answered (docs/protocol.md §3.2, §5.6)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, plan
from simulators.whole_shares import split_upload

from edge_client.fresh_upload import new_upload
from edge_client.share_chunks import open_shares
from edge_client.uploading import Courier, Parcel
from fedpruneshare.errors import DisconnectedError
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Coding, Receipt, Reveal, Segment, ShareUpload, Sharing, Verdict, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.field import FIELDS, from_bytes
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import Role
from fedpruneshare.words import SegmentWords, WordLayout

DEVICE = DEVICES[0]


def party() -> Party:
    return Party(identity(DEVICE), directory(), Role.DEVICE)


def view_of(sharing: Sharing, bits: int, devices: int, values: int, chunk_bytes: int = 64 * 1024) -> PlanView:
    """A plan of one segment with so many values and no vectors."""
    coding = Coding(bits, 16, (0.1,), (), 512, devices)
    layout = WordLayout(coding, FIELDS[sharing.field])
    segment = Segment(values, 0, layout.words(0, values), 1.0, bytes(32), 100, bytes(32))
    names = AGGREGATORS if sharing.n == 3 else (*AGGREGATORS, "aggregator-4")
    whole = plan(
        sharing=sharing, coding=coding, segments=(segment,), rungs=(0,), chunk_bytes=chunk_bytes,
        points={name: place + 1 for place, name in enumerate(names)},
    )  # fmt: skip
    services = directory().aggregators
    parties = directory(aggregators={name: services.get(name, services["aggregator-1"]) for name in names})
    return check_plan(whole, digest(encode(whole)), parties)


def upload_of(view: PlanView, values: int, bits: int) -> Any:
    draw = np.random.default_rng(1).integers(0, 2**bits, values, np.uint32)
    words = view.layout.pack(SegmentWords(7, draw[:0], draw))
    return new_upload(view, 0, 7, words, Prg.CHACHA20)


class Wire:
    """A link that notes what is published, and answers with a receipt once all chunks are there."""

    def __init__(self, failures: int = 0, silent: int = 0) -> None:
        self.payloads: list[bytes] = []
        self.courier: Courier | None = None
        self.failures, self.silent = failures, silent

    async def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise DisconnectedError("the wire is cut")
        self.payloads.append(payload)
        message = party().open("up", payload).message
        assert isinstance(message, ShareUpload)
        chunks = {party().open("up", one).message.chunk for one in self.payloads}  # type: ignore[union-attr]
        if len(chunks) == message.chunks and self.courier is not None:
            if self.silent:
                self.silent -= 1
                return
            self.courier.answer(Receipt(message.round_id, message.upload_id, Verdict.ACCEPTED))


async def send(view: PlanView, upload: Any, x: int, wire: Wire) -> list[bytes]:
    """What one aggregator is sent. (All are sealed to the same one here: lengths do not depend on it.)"""
    share = open_shares(view, DEVICE, upload)[x]
    ends_at = asyncio.get_running_loop().time() + 60
    parcel = Parcel(view, upload, "aggregator-1", x, share, ends_at)
    wire.courier = Courier(party(), wire, parcel, Backoff(random.Random(1), cap_s=0.02), 4)  # type: ignore[arg-type]
    receipt = await asyncio.wait_for(wire.courier.deliver(lambda size, first: None), 60)
    assert receipt.verdict is Verdict.ACCEPTED
    return wire.payloads


@pytest.mark.parametrize(
    ("sharing", "bits", "devices", "bytes_per_value"),
    [
        (Sharing(3, 2, 1), 8, 128, 4.0),
        (Sharing(3, 2, 1), 4, 68, 8 / 3),
        (Sharing(3, 3, 2), 8, 128, 2.0),
        (Sharing(3, 3, 2), 4, 68, 4 / 3),
        (Sharing(4, 3, 1), 8, 128, 1.5 * 2),
        (Sharing(4, 3, 1), 4, 68, 1.5 * 4 / 3),
        (Sharing(3, 2, 1, "F61"), 8, 4096, 16 / 3),
    ],
    ids=str,
)
async def test_the_wire_is_exactly_the_formula(
    sharing: Sharing, bits: int, devices: int, bytes_per_value: float
) -> None:
    """Elements word_bytes·(n − t)·⌈w/(k − t)⌉, seeds 32·t, and at most 512 bytes around each share."""
    values = 12_000
    view = view_of(sharing, bits, devices, values, chunk_bytes=128 * 1024)
    upload, n, t = upload_of(view, values, bits), sharing.n, sharing.t
    words = view.upload_words(0)
    elements = -(-words // (sharing.k - t))
    payloads = {x: await send(view, upload, x, Wire()) for x in range(1, n + 1)}
    plain = {x: view.share_bytes(0, x) for x in payloads}
    assert sum(plain.values()) == view.field.word_bytes * (n - t) * elements + 32 * t
    for x, sent in payloads.items():
        assert len(sent) == 1
        assert plain[x] < sum(map(len, sent)) <= plain[x] + 512
    # Without the weight word and the padding of ramp sharing what is left is the figure the field quotes.
    assert sum(plain.values()) - 32 * t == pytest.approx(bytes_per_value * values, abs=2 * view.field.word_bytes * n)


async def test_framing_is_the_same_for_every_chunk() -> None:
    view = view_of(Sharing(3, 2, 1), 8, 128, 12_000, chunk_bytes=4096)
    payloads = await send(view, upload_of(view, 12_000, 8), 3, Wire())
    assert len(payloads) == 6
    assert all(len(payload) <= 4096 + 512 for payload in payloads)
    assert sum(map(len, payloads)) <= view.share_bytes(0, 3) + 6 * 264


async def test_dispersed_it_is_n_kths_of_the_encoded_bytes() -> None:
    view = view_of(Sharing(3, 2, 1, reveal=Reveal.EACH), 8, 128, 12_000)
    upload = upload_of(view, 12_000, 8)
    sent = [sum(map(len, await send(view, upload, x, Wire()))) for x in (1, 2, 3)]
    encoded = 4 * view.upload_words(0)
    assert 3 / 2 * encoded < sum(sent) <= 3 / 2 * encoded + 3 * 512


@pytest.mark.parametrize(
    "wire", [Wire(failures=2), Wire(silent=1), Wire(failures=1, silent=2)], ids=["cut", "mute", "both"]
)
async def test_it_sends_until_there_is_a_receipt(wire: Wire) -> None:
    view = view_of(Sharing(3, 2, 1), 4, 10, 3000, chunk_bytes=1024)
    payloads = await send(view, upload_of(view, 3000, 4), 2, wire)
    chunks = {party().open("up", payload).message.chunk for payload in payloads}  # type: ignore[union-attr]
    assert chunks == set(range(view.chunks(view.share_bytes(0, 2))))


def test_a_share_ends_with_its_masks_and_a_resumed_upload_is_the_same() -> None:
    view = view_of(Sharing(3, 2, 1, dealer_checks=2), 4, 10, 1000)
    upload = upload_of(view, 1000, 4)
    assert upload.masks.size == 2
    assert upload.masks.tolist() != upload_of(view, 1000, 4).masks.tolist()
    shares = split_upload(view, DEVICE, upload)
    assert shares == split_upload(view, DEVICE, upload)
    assert len(shares[1]) == 32
    points = {x: from_bytes(shares[x], view.share_elements(0)) for x in (2, 3)}
    opened = view.scheme.open(points)
    assert opened[:-2].tolist() == upload.words.tolist()
    assert opened[-2:].tolist() == upload.masks.tolist()


@pytest.mark.parametrize("steps", range(3))
async def test_a_round_that_ends_stops_who_has_just_got_an_answer(steps: int) -> None:
    view = view_of(Sharing(3, 2, 1), 4, 10, 100)
    upload = upload_of(view, 100, 4)
    parcel = Parcel(view, upload, "aggregator-1", 1, open_shares(view, DEVICE, upload)[1], 0.0)
    courier = Courier(party(), Wire(), parcel, Backoff(random.Random(1)), 4)  # type: ignore[arg-type]
    waiting = asyncio.create_task(courier._await_answer(0))
    await asyncio.sleep(0.01)
    courier.answer(Receipt(view.plan.round_id, upload.upload_id, Verdict.ACCEPTED))
    for _ in range(steps):
        await asyncio.sleep(0)
    had_ended = waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=60.0)
    assert waiting.cancelled() or had_ended
