"""What the coordinator says, and on which topic (docs/protocol.md §2, §4.1, §6.5)."""

from __future__ import annotations

from coordinator.planning import PublishedModel
from fedpruneshare.link import Link
from fedpruneshare.link.chunks import cut
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import ModelChunk, Outcome, RoundPlan, decode, digest
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import sign_body


class Publisher:
    """Signs and publishes on the control broker, again and again until it is taken."""

    def __init__(self, party: Party, link: Link, backoff: Backoff) -> None:
        self._party, self._link, self._backoff = party, link, backoff
        self._chunks: dict[int, int] = {}

    async def announce(self, view: PlanView, body: bytes, published: PublishedModel, remaining_s: float) -> None:
        """Publish the model segments and then the plan, retained. The plan expires with the round.

        The chunks of the last model are overwritten; what is left over of a longer one is cleared.
        """
        for segment, blob in enumerate(published.blobs):
            await self._publish_segment(segment, blob, view.plan.chunk_bytes)
        for segment in [s for s in self._chunks if s >= len(published.blobs)]:
            await self._clear_segment(segment, 0)
        payload = sign_body(self._party.identity, self._party.directory.federation, "round-plan", body)
        await self._publish("round", (), payload, retain=True, expiry_s=max(remaining_s, 1.0))

    async def _publish_segment(self, segment: int, blob: bytes, chunk_bytes: int) -> None:
        pieces = cut(blob, chunk_bytes)
        name = digest(blob)
        for index, piece in enumerate(pieces):
            message = ModelChunk(segment, name, index, len(pieces), bytes(piece))
            await self._publish("model", (segment, index), self._party.sign(message), retain=True)
        await self._clear_segment(segment, len(pieces))
        self._chunks[segment] = len(pieces)

    async def _clear_segment(self, segment: int, keep: int) -> None:
        """Clear the retained chunks of a segment from number `keep` on: an empty payload is the broker's eraser."""
        for index in range(keep, self._chunks.get(segment, 0)):
            await self._publish("model", (segment, index), b"", retain=True)
        self._chunks[segment] = keep

    async def send(self, decision: tuple[str, bytes] | None) -> None:
        """Publish a decision that was committed, never retained: (its kind, its body); nothing if there is none yet."""
        if decision is not None:
            kind, body = decision
            payload = sign_body(self._party.identity, self._party.directory.federation, kind, body)
            await self._publish({"dealer-check": "check", "freeze": "freeze"}[kind], (), payload)

    async def close(self, outcome: Outcome) -> None:
        """Publish the authoritative close of a round, retained."""
        await self._publish("outcome", (), self._party.sign(outcome), retain=True)

    async def clear(self, last_plan: bytes | None) -> None:
        """Clear the retained plan and model at the end of a run."""
        if last_plan is not None:
            self.remember(last_plan)
        await self._publish("round", (), b"", retain=True)
        for segment in list(self._chunks):
            await self._clear_segment(segment, 0)

    def remember(self, plan_body: bytes) -> None:
        """Note which model chunks an earlier plan left on the broker."""
        plan = decode("round-plan", plan_body)
        assert isinstance(plan, RoundPlan)
        for index, segment in enumerate(plan.segments):
            chunks = -(-segment.blob_bytes // plan.chunk_bytes)
            self._chunks[index] = max(self._chunks.get(index, 0), chunks)

    async def _publish(
        self,
        channel: str,
        levels: tuple[str | int, ...],
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
    ) -> None:
        topic = self._party.topics.name(channel, *levels)
        await publish_until_taken(self._link, (topic, payload), self._backoff, retain=retain, expiry_s=expiry_s)
