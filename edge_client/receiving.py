"""Model segments in: fetch exactly the rung's blobs, check them against the plan (docs/protocol.md §6.5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from fedpruneshare.errors import PeerError, ProtocolError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.link.chunks import Joiner
from fedpruneshare.messages import ModelChunk, Segment, digest
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sparse.model_coding import decode_segment
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import check_prefix

_log = structlog.get_logger()
#: A model segment larger than this is refused before anything is allocated.
_MAX_SEGMENT_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class ReceivedModel:
    """The public model up to a rung: positions and float16 bits by segment, and the vectors float32[v]."""

    positions: tuple[NDArray[np.int64], ...]
    coded: tuple[NDArray[np.uint16], ...]
    vectors: NDArray[np.float32] = field(repr=False)


async def receive_model(
    party: Party, link: Link, view: PlanView, rung: int, count_received: Callable[[int], None]
) -> list[bytes]:
    """The blobs of segments 0 to `rung`, each matching its digest in the plan.

    Subscribes to the segments' retained chunks for as long as it takes. `count_received` gets every payload's bytes.
    """
    blobs = [
        _receive_segment(party, link, (index, segment, view.plan.chunk_bytes), count_received)
        for index, segment in enumerate(view.plan.segments[: rung + 1])
    ]
    return list(await asyncio.gather(*blobs))


async def _receive_segment(
    party: Party, link: Link, wanted: tuple[int, Segment, int], count_received: Callable[[int], None]
) -> bytes:
    index, segment, chunk_bytes = wanted
    joiner = Joiner(segment.blob_bytes, chunk_bytes, limit_bytes=_MAX_SEGMENT_BYTES)
    complete = asyncio.Event()

    async def on_chunk(delivery: Delivery) -> None:
        count_received(len(delivery.payload))
        if not delivery.payload:  # the broker's eraser, not a message
            return
        try:
            message = party.open("model", delivery.payload).message
            assert isinstance(message, ModelChunk)
            if message.segment == index and message.blob == segment.blob:  # another one is an older or newer model
                _add(joiner, message)
        except PeerError as error:
            _log.warning("model-chunk-refused", topic=delivery.topic, reason=str(error))
        if joiner.is_complete:
            complete.set()

    topic_filter = party.topics.segment(index)
    await link.subscribe(topic_filter, on_chunk)
    try:
        await complete.wait()
    finally:
        await link.unsubscribe(topic_filter)
    blob = joiner.payload()
    if digest(blob) != segment.blob:
        raise ProtocolError(f"model segment {index} does not match its digest in the plan")
    return blob


def _add(joiner: Joiner, message: ModelChunk) -> None:
    if message.chunks != joiner.count:
        raise ProtocolError(f"model chunk {message.chunk} of {message.chunks}, expected {joiner.count} chunks")
    joiner.add(message.chunk, message.data)


def decode_model(view: PlanView, table: ParameterTable, blobs: list[bytes]) -> ReceivedModel:
    """Decode the blobs and check that supports and boundaries are those the plan names.

    Raises `PeerError` (its kinds for malformed blobs and for a support that differs).
    """
    positions: list[NDArray[np.int64]] = []
    coded: list[NDArray[np.uint16]] = []
    vectors = np.empty(0, dtype=np.float32)
    for index, (segment, blob) in enumerate(zip(view.plan.segments, blobs, strict=False)):
        taken = np.concatenate([np.empty(0, dtype=np.int64), *positions])
        places, values, found = decode_segment(blob, table.weight_count, segment.weights, segment.vectors, taken)
        positions.append(places)
        coded.append(values)
        vectors = found if index == 0 else vectors
    supports = [segment.support for segment in view.plan.segments[: len(blobs)]]
    check_prefix(positions, coded, view.plan.round_id, table.weight_count, supports)
    return ReceivedModel(tuple(positions), tuple(coded), vectors)
