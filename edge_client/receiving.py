"""Model segments in: fetch exactly the rung's blobs, check them against the plan (docs/protocol.md §6.5)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

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
_MAX_SEGMENT_BYTES: Final = 512 * 1024 * 1024
#: Chunks asked for at once. Of retained messages that match, a broker may hand over only as many as it may have in
#: flight, and drop the rest unsaid (the embedded one: 100 for a connection).
_CHUNKS_AT_ONCE: Final = 64


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
    plan = view.plan
    incoming = [_Incoming(party, index, one, plan.chunk_bytes) for index, one in enumerate(plan.segments[: rung + 1])]
    for part in _parts(incoming):
        try:  # a group, so that no segment is waited for once another has failed
            async with asyncio.TaskGroup() as group:
                for segment, topic_filter, chunks in part:
                    group.create_task(_fetch(link, topic_filter, segment, chunks))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return [segment.blob for segment in incoming]


class _Incoming:
    """A model segment on its way in. Raises `ProtocolError` for one that is too large to be kept."""

    def __init__(self, party: Party, index: int, segment: Segment, chunk_bytes: int) -> None:
        if segment.blob_bytes > _MAX_SEGMENT_BYTES:
            found = f"segment {index} of {segment.blob_bytes} bytes"
            raise ProtocolError(f"{found}, expected at most {_MAX_SEGMENT_BYTES}")
        self._party, self.index, self._segment = party, index, segment
        self.joiner = Joiner(segment.blob_bytes, chunk_bytes, limit_bytes=_MAX_SEGMENT_BYTES)
        self.blob = b""

    def requests(self) -> Iterator[_Request]:
        """All chunks by one filter; by their names where a broker would not hand over so many at once."""
        topics, count = self._party.topics, self.joiner.count
        if count <= _CHUNKS_AT_ONCE:
            yield self, topics.segment(self.index), range(count)
        else:
            yield from ((self, topics.name("model", self.index, one), range(one, one + 1)) for one in range(count))

    def take(self, delivery: Delivery) -> None:
        """Take a chunk in; what is wrong with it is logged."""
        if not delivery.payload:  # the broker's eraser, not a message
            return
        try:
            message = self._party.open("model", delivery.payload).message
            assert isinstance(message, ModelChunk)
            # Another one is an older or newer model.
            if message.segment == self.index and message.blob == self._segment.blob:
                _add(self.joiner, message)
        except PeerError as error:
            _log.warning("model-chunk-refused", topic=delivery.topic, reason=str(error))

    def finish(self) -> None:
        """Note the blob if it is whole. Raises `ProtocolError` if it is not what the plan says."""
        if self.joiner.is_complete and not self.blob:
            blob = self.joiner.payload()
            if digest(blob) != self._segment.blob:
                raise ProtocolError(f"model segment {self.index} does not match its digest in the plan")
            self.blob = blob


#: A segment, the filter to subscribe to, and which of its chunks are then to come.
_Request = tuple[_Incoming, str, range]


def _parts(incoming: Sequence[_Incoming]) -> Iterator[list[_Request]]:
    """All requests in order, so many together as a broker hands over at once."""
    part, chunks = list[_Request](), 0
    for request in (request for segment in incoming for request in segment.requests()):
        more = len(request[2])
        if chunks + more > _CHUNKS_AT_ONCE:
            yield part
            part, chunks = [], 0
        part.append(request)
        chunks += more
    yield part


async def _fetch(link: Link, topic_filter: str, segment: _Incoming, chunks: range) -> None:
    """Subscribe until these chunks of the segment are here."""
    arrived = asyncio.Event()

    async def on_chunk(delivery: Delivery) -> None:
        segment.take(delivery)
        if segment.joiner.has(chunks):
            arrived.set()

    await link.subscribe(topic_filter, on_chunk)
    try:
        await arrived.wait()
    finally:
        await link.unsubscribe(topic_filter)
    segment.finish()


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
