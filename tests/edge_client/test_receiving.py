"""Model segments in: one that is wrong ends the waiting for all of them (docs/protocol.md §6.5)."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import directory, identity, plan, view

from edge_client.receiving import receive_model
from fedpruneshare.errors import ProtocolError
from fedpruneshare.link import Delivery, Handler, LinkLimits
from fedpruneshare.link.chunks import cut
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.messages import ModelChunk, digest
from fedpruneshare.party import Party
from fedpruneshare.topics import Role
from firmware_configs.brokers.embedded import embedded_broker


class _Link:
    """Delivers `payloads[topic filter]` at once, as retained messages are."""

    def __init__(self, payloads: dict[str, bytes]) -> None:
        self.payloads, self.handlers = payloads, dict[str, Handler]()

    async def subscribe(self, topic_filter: str, handler: Handler) -> None:
        self.handlers[topic_filter] = handler
        if payload := self.payloads.get(topic_filter):
            await handler(Delivery(topic_filter, payload))

    async def unsubscribe(self, topic_filter: str) -> None:
        self.handlers.pop(topic_filter, None)


@pytest.mark.parametrize("blob_bytes", [3, 2**30])
async def test_a_wrong_segment_leaves_no_subscription_behind(blob_bytes: int) -> None:
    """Else the one left over would end the next round's subscription to the same topic, or wait for ever."""
    segments = plan().segments
    wrong = msgspec.structs.replace(segments[1], blob=digest(b"abc"), blob_bytes=blob_bytes)
    seen = view(segments=(segments[0], wrong, segments[2]))
    party = Party(identity("device-00"), directory(), Role.DEVICE)
    coordinator = Party(identity("coordinator"), directory(), Role.COORDINATOR)
    chunk = coordinator.sign(ModelChunk(1, digest(b"abc"), 0, 1, b"xyz"))
    link: Any = _Link({party.topics.segment(1): chunk})
    before = asyncio.all_tasks()
    with pytest.raises(ProtocolError, match="segment 1"):
        await asyncio.wait_for(receive_model(party, link, seen, 2), 60)
    assert not link.handlers
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("sizes", [(100, 150_000, 100), (60_000, 50_000, 45_000)], ids=["one segment", "all together"])
async def test_a_model_of_more_chunks_than_a_broker_hands_over_at_once(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """The embedded broker drops, unsaid, what of the retained messages is beyond a hundred of a connection."""
    blobs = [os.urandom(size) for size in sizes]
    made = zip(plan().segments, blobs, strict=True)
    segments = tuple(msgspec.structs.replace(one, blob=digest(blob), blob_bytes=len(blob)) for one, blob in made)
    seen = view(segments=segments)
    party = Party(identity("device-00"), directory(), Role.DEVICE)
    coordinator = Party(identity("coordinator"), directory(), Role.COORDINATOR)
    with embedded_broker(tmp_path) as broker:
        async with AsyncExitStack() as links:
            names = ("coordinator", "device-00")
            writer, reader = (MqttLink(broker.address, name, LinkLimits(), random.Random(1)) for name in names)
            for link in (writer, reader):
                await link.connect(wait=True)
                links.push_async_callback(link.close)
            for index, blob in enumerate(blobs):
                pieces = cut(blob, seen.plan.chunk_bytes)
                for place, piece in enumerate(pieces):
                    message = ModelChunk(index, digest(blob), place, len(pieces), bytes(piece))
                    topic = party.topics.name("model", index, place)
                    await writer.publish(topic, coordinator.sign(message), retain=True)
            assert await asyncio.wait_for(receive_model(party, reader, seen, 2), 120) == blobs
