"""What the coordinator says, and on which topic (docs/protocol.md §2, §4.1, §5.11, §6.5, §7.1).

What is retained goes out in one order, under one lock: after a reconnect everything is said again, and a part of an
older announcement must never overwrite one of a newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from coordinator.seeds import SeedLetters
from coordinator.store import RoundStore
from fedpruneshare.crash_points import reach
from fedpruneshare.link import Link
from fedpruneshare.link.chunks import cut
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import DirectoryChunk, ModelChunk, Outcome, RoundPlan, decode, digest
from fedpruneshare.party import Party

#: Chunks of the directory file are of this size.
_DIRECTORY_CHUNK_BYTES = 64 * 1024
#: Note of the store: directory chunks that may lie on the broker.
_DIRECTORY_CHUNKS = "directory_chunks"
#: Seeds on their way at a time.
_OUTSTANDING = 32


@dataclass(frozen=True)
class Announcement:
    """The opening of a round: plan body, model blobs, until when it may be said (the loop's clock), and the seeds."""

    plan: RoundPlan
    body: bytes
    blobs: tuple[bytes, ...] = field(repr=False)
    ends_at: float
    letters: SeedLetters | None = None


class Publisher:
    """Signs and publishes on the control broker, again and again until it is taken or overtaken."""

    def __init__(self, party: Party, link: Link, store: RoundStore, backoff: Backoff) -> None:
        self._party, self._link, self._store, self._backoff = party, link, store, backoff
        self._lock = asyncio.Lock()
        self._newest: Announcement | Outcome | None = None
        self._chunks: dict[int, int] = {}
        self._seeded: set[str] = set()
        self._directory = 0
        self._named = 0
        self._names_newer = asyncio.Event()
        self._place = party.directory.coordinator.address

    # ------------------------------------------------------------------ what is retained

    async def announce(self, announcement: Announcement) -> None:
        """Publish directory, model segments and plan, then the seeds, all retained. The plan expires with the round.

        The chunks of the last model are overwritten; what is left over of a longer one is cleared. Returns early once
        something newer is to be said. Raises `PayloadTooLargeError` and `RefusedError`.
        """
        self._newest = announcement
        await self._say(announcement)

    async def close(self, outcome: Outcome) -> None:
        """Publish the authoritative close of a round, retained."""
        self._newest = outcome
        await self._say(outcome)

    async def repeat(self) -> None:
        """After a lost connection the broker may have forgotten everything: say it again."""
        self._directory = 0
        if (newest := self._newest) is not None:
            await self._say(newest)

    async def _say(self, said: Announcement | Outcome) -> None:
        def is_wanted() -> bool:
            return self._newest is said

        async with self._lock:
            await self._say_directory()
            if isinstance(said, Outcome):
                await self._publish("outcome", (), self._party.sign(said), is_wanted, retain=True)
                return
            for segment, blob in enumerate(said.blobs):
                await self._publish_segment(segment, blob, said.plan.chunk_bytes, is_wanted)
            for segment in [s for s in self._chunks if s >= len(said.blobs)]:
                await self._clear_segment(segment, 0, is_wanted)
            await self._clear_seeds(self._seeded - set(said.plan.cohort), is_wanted)
            await self._say_plan(said)
            reach("coordinator.plan-published")
            if said.letters is not None:
                await self._send_letters(said, said.letters, is_wanted)

    async def _say_plan(self, said: Announcement) -> None:
        payload = self._party.sign_body("round-plan", said.body)
        is_leaving = self._party.directory.coordinator.address != self._place
        left_s = None if is_leaving else self._left_s(said)
        if await self._publish("round", (), payload, lambda: self._newest is said, retain=True, expiry_s=left_s):
            self._named = said.plan.directory_version
            self._names_newer.set()

    async def leave(self, most_s: float) -> None:
        """The broker has moved: return once a plan has named the directory in force to those who are at the old one.

        Devices fetch a directory when a plan asks for it. This plan stays there without an end, for who comes later.
        Returns after `most_s` where nobody can be told any more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while self._named < self._party.directory.version:
                    self._names_newer.clear()
                    await self._names_newer.wait()

    @staticmethod
    def _left_s(said: Announcement) -> float:
        return max(said.ends_at - asyncio.get_running_loop().time(), 1.0)

    async def _publish_segment(
        self, segment: int, blob: bytes, chunk_bytes: int, is_wanted: Callable[[], bool]
    ) -> None:
        pieces = cut(blob, chunk_bytes)
        name = digest(blob)
        self._chunks[segment] = max(self._chunks.get(segment, 0), len(pieces))
        for index, piece in enumerate(pieces):
            if not is_wanted():
                return
            message = ModelChunk(segment, name, index, len(pieces), bytes(piece))
            await self._publish("model", (segment, index), self._party.sign(message), is_wanted, retain=True)
        await self._clear_segment(segment, len(pieces), is_wanted)

    async def _clear_segment(self, segment: int, keep: int, is_wanted: Callable[[], bool]) -> None:
        """Clear the retained chunks of a segment from number `keep` on: an empty payload is the broker's eraser."""
        for index in range(keep, self._chunks.get(segment, 0)):
            await self._publish("model", (segment, index), b"", is_wanted, retain=True)
        if is_wanted():
            self._chunks[segment] = keep

    async def _send_letters(self, said: Announcement, letters: SeedLetters, is_wanted: Callable[[], bool]) -> None:
        """Every device its seed; sealed and signed in a thread, while those before are on their way."""
        for start in range(0, len(said.plan.cohort), _OUTSTANDING):
            devices = said.plan.cohort[start : start + _OUTSTANDING]
            if not is_wanted():
                return
            payloads = await asyncio.to_thread(letters.payloads, devices)
            self._seeded |= set(payloads)
            # Without an expiry: iotcore takes the age of every retained message off it at each new subscription, so
            # that those of a large cohort would be gone in seconds. They are overwritten or cleared with the next plan.
            said_to = (self._publish("seed", (d,), payload, is_wanted, retain=True) for d, payload in payloads.items())
            await asyncio.gather(*said_to)

    async def _clear_seeds(self, devices: Iterable[str], is_wanted: Callable[[], bool]) -> None:
        for device in sorted(devices):
            if await self._publish("seed", (device,), b"", is_wanted, retain=True):
                self._seeded.discard(device)

    async def _say_directory(self) -> bool:
        """Publish the directory in force, once for each connection; chunks left over of a longer one are cleared.

        Whether there was anything to say.
        """
        version, data = self._party.directory.version, self._party.directory_file()
        if data is None or version == self._directory:
            return False
        pieces, name = cut(data, _DIRECTORY_CHUNK_BYTES), digest(data)
        before = self._store.noted(_DIRECTORY_CHUNKS)
        self._store.note(_DIRECTORY_CHUNKS, max(before, len(pieces)))
        for index, piece in enumerate(pieces):
            message = DirectoryChunk(version, name, index, len(pieces), bytes(piece))
            payload = self._party.sign_with_oldest(message)  # for those who do not know its newer keys yet
            await self._publish("directory", (index,), payload, retain=True)
        for index in range(len(pieces), before):
            await self._publish("directory", (index,), b"", retain=True)
        self._store.note(_DIRECTORY_CHUNKS, len(pieces))
        self._directory = version
        return True

    async def say_directory(self) -> None:
        """Publish a directory that came into force while a round is open, and once more that round's plan.

        Aggregators then answer again: what they signed by a key of that directory before it was here, was refused.
        """
        async with self._lock:
            if await self._say_directory() and isinstance(said := self._newest, Announcement):
                await self._say_plan(said)

    # ------------------------------------------------------------------ what is not

    async def send(self, decision: tuple[str, bytes] | None, within_s: float) -> None:
        """Publish a decision that was committed, never retained: (its kind, its body); nothing if there is none yet."""
        if decision is not None:
            kind, body = decision
            clock = asyncio.get_running_loop().time
            payload, end = self._party.sign_body(kind, body), clock() + within_s
            await self._publish({"dealer-check": "check", "freeze": "freeze"}[kind], (), payload, lambda: clock() < end)

    # ------------------------------------------------------------------ the end of a run, and its beginning

    async def clear(self) -> None:
        """Clear the retained plan, model and seeds at the end of a run."""
        async with self._lock:
            await self._publish("round", (), b"", retain=True)
            for segment in list(self._chunks):
                await self._clear_segment(segment, 0, _always)
            await self._clear_seeds(self._seeded, _always)

    def remember(self, plan_body: bytes) -> None:
        """Note which model chunks and seeds an earlier plan left on the broker."""
        plan = decode("round-plan", plan_body)
        assert isinstance(plan, RoundPlan)
        for index, segment in enumerate(plan.segments):
            chunks = -(-segment.blob_bytes // plan.chunk_bytes)
            self._chunks[index] = max(self._chunks.get(index, 0), chunks)
        if plan.checksum:
            self._seeded |= set(plan.cohort)

    async def _publish(
        self,
        channel: str,
        levels: tuple[str | int, ...],
        payload: bytes,
        is_wanted: Callable[[], bool] | None = None,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
    ) -> bool:
        message = (self._party.topics.name(channel, *levels), payload)
        wanted = is_wanted or _always
        return await publish_until_taken(
            self._link, message, self._backoff, is_wanted=wanted, retain=retain, expiry_s=expiry_s
        )


def _always() -> bool:
    return True
