"""Model segments in: fetch exactly the rung's blobs, check them against the plan (docs/protocol.md §6.5)."""

from __future__ import annotations

import asyncio
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
from fedpruneshare.sparse.channels import Groups, Kept
from fedpruneshare.sparse.model_coding import SegmentReader
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import Frame, check_prefix, decode_values

_log = structlog.get_logger()
#: A model segment larger than this is refused before anything is allocated.
_MAX_SEGMENT_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class ReceivedModel:
    """The public model up to a rung: positions and float16 bits by segment, and the vector elements it has.

    `positions` int64 and `codes` uint16 by segment; `vectors` float32[u] at `vector_positions` int64[u], segment after
    segment; `kept`: which channels exist at this width (None: all), of the model's channel `groups`.
    """

    positions: tuple[NDArray[np.int64], ...]
    codes: tuple[NDArray[np.uint16], ...] = field(repr=False)
    vector_positions: NDArray[np.int64] = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)
    groups: Groups = field(repr=False)
    kept: Kept | None = field(repr=False)

    @property
    def rung(self) -> int:
        """The rung whose model this is."""
        return len(self.positions) - 1

    def full_size(self, table: ParameterTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights float32[d] and vectors float32[v]; zero where this rung has nothing."""
        weights = np.zeros(table.weight_count, dtype=np.float32)
        for positions, codes in zip(self.positions, self.codes, strict=True):
            weights[positions] = decode_values(codes)
        vectors = np.zeros(table.vector_count, dtype=np.float32)
        vectors[self.vector_positions] = self.vectors
        return weights, vectors


async def receive_model(party: Party, link: Link, view: PlanView, rung: int) -> list[bytes]:
    """The blobs of segments 0 to `rung`, each matching its digest in the plan.

    Subscribes to the segments' retained chunks for as long as it takes.
    """
    try:  # a group, so that no segment is waited for once another has failed
        async with asyncio.TaskGroup() as group:
            blobs = [
                group.create_task(_receive_segment(party, link, (index, segment, view.plan.chunk_bytes)))
                for index, segment in enumerate(view.plan.segments[: rung + 1])
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [blob.result() for blob in blobs]


async def _receive_segment(party: Party, link: Link, wanted: tuple[int, Segment, int]) -> bytes:
    index, segment, chunk_bytes = wanted
    if segment.blob_bytes > _MAX_SEGMENT_BYTES:
        raise ProtocolError(f"segment {index} of {segment.blob_bytes} bytes, expected at most {_MAX_SEGMENT_BYTES}")
    joiner = Joiner(segment.blob_bytes, chunk_bytes, limit_bytes=_MAX_SEGMENT_BYTES)
    complete = asyncio.Event()

    async def on_chunk(delivery: Delivery) -> None:
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
    plan, reader = view.plan, SegmentReader(table)
    parts = [reader.read(blob, segment) for blob, segment in zip(blobs, plan.segments, strict=False)]
    positions, codes = tuple(part.positions for part in parts), tuple(part.codes for part in parts)
    frame = Frame(table, plan.support, tuple(part.exists for part in parts) if reader.groups else ())
    check_prefix(positions, codes, plan.round_id, frame, [segment.support for segment in plan.segments])
    return ReceivedModel(
        positions=positions,
        codes=codes,
        vector_positions=np.concatenate([part.vector_positions for part in parts]),
        vectors=np.concatenate([part.vectors for part in parts]),
        groups=reader.groups,
        kept=parts[-1].kept,
    )
