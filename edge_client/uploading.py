"""Shares out, receipts in (docs/protocol.md §3.2, §3.3, §4.2).

One `Courier` brings one share to one aggregator: it publishes the chunks a few at a time, then asks again, by sending
one chunk once more, until the aggregator's signed receipt says that everything is committed. A PUBACK proves nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from edge_client.adaptation.watches import SMALL_BYTES
from edge_client.outbox import Upload
from edge_client.share_chunks import Share
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import LinkError, MessageError
from fedpruneshare.link import Link
from fedpruneshare.link.chunks import Bitmap
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Missing, Receipt, ShareUpload, Verdict
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import seal, share_context
from fedpruneshare.topics import Role

_log = structlog.get_logger()

#: Verdicts that may turn: the aggregator has not seen the plan yet, or is about to have room again.
_NOT_YET = (Verdict.WRONG_ROUND, Verdict.STORE_FULL)
#: An answer is waited for so long, and so much longer for each device of the cohort.
_PATIENCE_S, _SERVED_S = 2.0, 0.01
#: Answers that wait to be looked at; an aggregator gives one to each question.
_MOST_ANSWERS = 64
#: How long a chunk that is cut off must have been under way to say something of the link.
_CUT_OFF_S = 1.0
#: (payload bytes, whether this chunk was never sent before)
CountSent = Callable[[int, bool], None]
#: (aggregator, payload bytes, seconds until the broker took it, bytes that were under way with it)
WatchLink = Callable[[str, int, float, int], None]


@dataclass(frozen=True)
class Parcel:
    """One share on its way: which upload, to whom, at which point."""

    view: PlanView
    upload: Upload
    aggregator_id: str
    x: int
    share: Share
    ends_at: float
    """When the round is over, by the loop's monotonic clock: what every chunk's message expiry follows from."""
    is_resumed: bool = False
    """Whether an earlier process may have delivered parts of it."""

    def __repr__(self) -> str:
        return f"Parcel(to={self.aggregator_id!r}, x={self.x}, chunks={self.share.count})"


@dataclass
class Uplink:
    """Payload bytes that are under way on all links of a device."""

    under_way_bytes: int = 0


class Courier:
    """Delivers one parcel over one link until a receipt comes."""

    def __init__(self, party: Party, link: Link, parcel: Parcel, backoff: Backoff, outstanding: int) -> None:
        self._party, self._link, self._parcel = party, link, parcel
        self._backoff, self._slots = backoff, asyncio.Semaphore(outstanding)
        self._count = parcel.share.count
        self.prepared_s = 0.0
        """Seconds spent on making, sealing and signing chunks."""
        self._begun: set[int] = set()
        self._sent: set[int] = set()
        self._sending: frozenset[int] = frozenset()
        self._under_way = 0
        self.uplink = Uplink()
        """Shared by all couriers of a device, where they share its uplink."""
        self.watch: WatchLink | None = None
        self._answers: asyncio.Queue[Receipt | Missing] = asyncio.Queue()

    def answer(self, message: Receipt | Missing) -> None:
        """Hand over what the aggregator said; anything about another upload is dropped.

        So is a call for chunks that are all on their way: each repeat is answered, and to obey every answer would send
        the share several times over.
        """
        upload = self._parcel.upload
        if (message.round_id, message.upload_id) != (upload.round_id, upload.upload_id):
            return
        if isinstance(message, Missing) and self._sending.issuperset(self._named(message)):
            return
        if self._answers.qsize() >= _MOST_ANSWERS:
            self._answers.get_nowait()
        self._answers.put_nowait(message)

    async def deliver(self, count_sent: CountSent) -> Receipt:
        """Send until the aggregator has spoken. Runs until it is cancelled if it never does."""
        # What an earlier process delivered is asked for first: of one chunk sent twice, one at least is a repeat.
        chunks = [0, 0] if self._parcel.is_resumed else list(range(self._count))
        attempt = 0
        while True:
            is_sent = await self._send(chunks, count_sent)
            answer = await self._await_answer(attempt) if is_sent else None
            if isinstance(answer, Receipt) and _is_final(answer):
                return answer
            if isinstance(answer, Receipt):
                _log.info("not-yet", aggregator=self._parcel.aggregator_id, verdict=answer.verdict, why=answer.detail)
                chunks, is_sent = list(range(self._count)), False
            if isinstance(answer, Missing):
                chunks, attempt = self._named(answer), 0
                continue
            if not is_sent:
                await asyncio.sleep(self._backoff.wait_s(attempt))
            attempt += 1
            if answer is None:
                unsent = [chunk for chunk in range(self._count) if chunk not in self._sent]
                chunks = unsent or [0]  # all sent once: one repeat makes the aggregator say what it lacks

    def _named(self, missing: Missing) -> list[int]:
        try:
            return Bitmap.decode(missing.bitmap, self._count) or [0]
        except MessageError as error:
            _log.warning("missing-refused", aggregator=self._parcel.aggregator_id, reason=str(error))
            return [0]

    async def _send(self, chunks: list[int], count_sent: CountSent) -> bool:
        """Publish chunks, a few outstanding at a time; whether all were taken by the broker."""
        loop = asyncio.get_running_loop()

        async def send_one(chunk: int) -> None:
            async with self._slots:
                started = loop.time()
                payload = self._payload(chunk)
                self.prepared_s += loop.time() - started
                await self._publish(payload, lambda: self._begin(chunk, len(payload), count_sent))
                reach("device.chunk-sent")
                self._sent.add(chunk)

        self._sending = frozenset(chunks)
        results = await _gather_until_error([partial(send_one, chunk) for chunk in chunks])
        self._sending = frozenset()
        for error in results:
            _log.info("chunk-not-sent", aggregator=self._parcel.aggregator_id, error=str(error))
        return not results

    def _begin(self, chunk: int, size_bytes: int, count_sent: CountSent) -> None:
        """A chunk is on the wire, also if the broker never acknowledges it."""
        count_sent(size_bytes, chunk not in self._begun)
        self._begun.add(chunk)

    async def _publish(self, payload: bytes, on_sent: Callable[[], None]) -> None:
        """Publish one chunk, and report how long the broker took to acknowledge it.

        One that the end of the round cut off is reported too, if it had its time: the link is slower than that. On a
        link too slow for its rounds nothing else would ever show it.
        """
        loop = asyncio.get_running_loop()
        self._under_way += len(payload)
        self.uplink.under_way_bytes += len(payload)
        ahead, started, least_s = self._under_way, loop.time(), 0.0
        if len(payload) <= SMALL_BYTES and self.uplink.under_way_bytes > ahead:
            least_s = math.inf  # it queues behind what goes to others, which is no round trip
        try:
            await self._link.publish(self._topic(), payload, expiry_s=self._remaining_s(), on_sent=on_sent)
        except asyncio.CancelledError:
            least_s = max(least_s, _CUT_OFF_S)
            raise
        except LinkError:
            least_s = math.inf  # a connection that fell says nothing of its rate
            raise
        finally:
            self._under_way -= len(payload)
            self.uplink.under_way_bytes -= len(payload)
            seconds = loop.time() - started
            if self.watch is not None and seconds > least_s:
                self.watch(self._parcel.aggregator_id, len(payload), seconds, ahead)

    async def _await_answer(self, attempt: int) -> Receipt | Missing | None:
        """The newest answer, or the final one if it is among those that have come; None if none comes in time."""
        try:
            async with asyncio.timeout(self._patience_s() + 2.0 * self._backoff.wait_s(attempt)):
                answer = await self._answers.get()
        except TimeoutError:
            return None
        while not _is_final(answer) and not self._answers.empty():
            answer = self._answers.get_nowait()
        return answer

    def _patience_s(self) -> float:
        """How long to wait before asking again: an aggregator with a large cohort has many to serve.

        Were a thousand devices to ask after two seconds, it would serve questions instead of uploads. Never so long
        that a lost chunk is missed only when the round is about to end.
        """
        served_s = _SERVED_S * len(self._parcel.view.plan.cohort)
        return _PATIENCE_S + min(served_s, self._remaining_s() / 4)

    def _remaining_s(self) -> float:
        # A share that is late in a broker's queue must not land in the next round.
        return max(1.0, self._parcel.ends_at - asyncio.get_running_loop().time())

    def _topic(self) -> str:
        return self._party.topics.name("up", self._party.ident)

    def _payload(self, chunk: int) -> bytes:
        parcel, upload = self._parcel, self._parcel.upload
        position = (upload.upload_id, parcel.x, upload.rung, str(upload.prg), chunk, self._count)
        parties, suite = (self._party.ident, parcel.aggregator_id), upload.suite
        context = share_context(self._party.directory.federation, upload.plan, parties, position)
        key = self._party.sealing_keys(Role.AGGREGATOR, parcel.aggregator_id)
        sealed = seal(key, parcel.share.chunk(chunk), context, suite)
        return self._party.sign(ShareUpload(upload.round_id, upload.plan, *position, suite, key.key_id, sealed))


async def _gather_until_error(calls: list[Callable[[], Awaitable[None]]]) -> list[LinkError]:
    """Run all; link errors are returned, anything else is raised."""
    results = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if not isinstance(failure, LinkError):
            raise failure
    return [failure for failure in failures if isinstance(failure, LinkError)]


def _is_final(answer: Receipt | Missing) -> bool:
    return isinstance(answer, Receipt) and answer.verdict not in _NOT_YET


def is_accepted(receipt: Receipt | None) -> bool:
    """Whether a receipt says that the aggregator holds the whole share."""
    return receipt is not None and receipt.verdict is Verdict.ACCEPTED
