"""The aggregator at work: admit, receipt, attend, check, freeze, sum (docs/protocol.md §4.2-§4.5).

Read from top to bottom it is the aggregator's half of a round. What is allowed stands in `book.py`, what survives
a restart in `store.py`; here is only I/O, in this order everywhere: check, store, then answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import structlog

from aggregator.book import Attempt, Committed, Refused, ShareBook
from aggregator.settings import AggregatorSettings
from aggregator.store import ShareStore
from aggregator.summing import answer_freeze, check_share, reply_to_check
from fedpruneshare.errors import LinkError, PeerError, ProtocolError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.link.chunks import cut
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import (
    CheckReply,
    DealerCheck,
    Decline,
    Freeze,
    Message,
    Missing,
    Outcome,
    Receipt,
    Refusal,
    Reveal,
    RoundPlan,
    ShareUpload,
    SumShare,
    Verdict,
    decode,
    digest,
)
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sealing import seal, share_context, sum_context
from fedpruneshare.topics import Role

_log = structlog.get_logger()
#: Chunks of an answer that are sealed and on their way at a time (docs/protocol.md §3.3).
_OUTSTANDING = 4
#: Receipts and refusals on their way; whoever gets none asks again.
_MOST_ANSWERS = 4096


class Aggregator:
    """One aggregator between its own broker (devices) and the control broker (coordinator)."""

    def __init__(self, party: Party, settings: AggregatorSettings, own: Link, control: Link) -> None:
        self._party, self._own, self._control = party, own, control
        self._store = ShareStore(Path(settings.store), settings.store_mib * 1024 * 1024)
        self._book = ShareBook(party.ident, settings.floors)
        self._backoff = Backoff(random.Random())
        self._deadline: asyncio.TimerHandle | None = None
        self._publishing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_OUTSTANDING)
        self._reply: tuple[bytes, bytes] | None = None

    # ------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Put back the stored round, subscribe, connect (as soon as both brokers are there)."""
        self._resume()
        topics = self._party.topics
        self._control.on_connect(self._on_control_connected)
        await self._control.subscribe(topics.name("outcome"), self._on_outcome)
        await self._control.subscribe(topics.every("decline"), self._on_decline)
        await self._control.subscribe(topics.name("check"), self._on_check)
        await self._control.subscribe(topics.name("freeze"), self._on_freeze)
        await self._own.subscribe(topics.every("up"), self._on_upload)
        await self._control.subscribe(topics.name("round"), self._on_plan)
        await asyncio.gather(self._control.connect(wait=True), self._own.connect(wait=True))

    async def stop(self) -> None:
        """Stop cleanly; everything that was answered is stored."""
        if self._deadline:
            self._deadline.cancel()
        under_way = [*self._publishing.values(), *self._answering]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._own.close()
        await self._control.close()
        self._store.close()

    def _resume(self) -> None:
        stored = self._store.latest()
        if stored is None:
            return
        if stored.is_closed:
            self._book.forget_up_to(stored.round_id)
            return
        plan = decode("round-plan", stored.plan)
        assert isinstance(plan, RoundPlan)
        try:
            self._book.open_round(check_plan(plan, digest(stored.plan), self._party.directory, self._party.now()))
        except PeerError as error:
            _log.warning("stored-round-dropped", round_id=stored.round_id, error=str(error))
            self._book.forget_up_to(stored.round_id)
            return
        attended = stored.attendance is not None
        attempts, declined = self._store.attempts(stored.round_id), self._store.declined(stored.round_id)
        self._book.resume(attempts, declined, Committed(attended, stored.check_digest, stored.freeze_digest))
        if not attended:
            # The wall clock is only a hint here: at worst the round waits once more, never longer than planned.
            self._set_deadline(min(max(stored.deadline_at - time.time(), 0.0), plan.deadline_s))
        _log.info("resumed", round_id=stored.round_id, uploads=len(attempts), attended=attended)

    # ------------------------------------------------------------------ plan

    async def _on_plan(self, delivery: Delivery) -> None:
        opened = self._party.take("round", delivery)
        if opened is None or not isinstance(opened.message, RoundPlan):
            return
        plan = opened.message
        try:
            is_new = self._book.open_round(check_plan(plan, opened.digest, self._party.directory, self._party.now()))
        except PeerError as error:
            _log.warning("plan-refused", round_id=plan.round_id, reason=str(error))
            await self._refuse("attendance", plan.round_id, opened.digest, str(error))
            return
        remaining_s = min(delivery.expiry_s if delivery.expiry_s is not None else plan.deadline_s, plan.deadline_s)
        if is_new:
            self._store.open_round(plan.round_id, opened.body, time.time() + remaining_s)
            self._set_deadline(remaining_s)
            _log.info("round-open", round_id=plan.round_id, cohort=len(plan.cohort), deadline_s=remaining_s)
            if plan.sharing.reveal is not Reveal.SUM:
                _log.warning("updates-revealed", round_id=plan.round_id, reveal=plan.sharing.reveal)
        else:
            await self._repeat_answers()

    def _set_deadline(self, remaining_s: float) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(remaining_s, self._attend_if_open)

    # ------------------------------------------------------------------ uploads

    async def _on_upload(self, delivery: Delivery) -> None:
        opened = self._party.take("up", delivery)
        if opened is None or not isinstance(opened.message, ShareUpload):
            return
        device_id, upload = opened.sender, opened.message
        if self._party.topics.party("up", delivery.topic) != device_id:
            _log.warning("upload-refused", device=device_id, reason="published on another device's topic")
            return
        admitted = self._book.admit(device_id, upload)
        if isinstance(admitted, Refused):
            await self._receipt(device_id, upload, admitted.verdict, admitted.detail)
        elif upload.chunk in admitted.stored:
            await self._answer_repeat(device_id, upload, admitted)
        else:
            await self._store_chunk(device_id, upload, admitted)

    async def _answer_repeat(self, device_id: str, upload: ShareUpload, attempt: Attempt) -> None:
        if attempt.is_complete:
            await self._receipt(device_id, upload, Verdict.ACCEPTED)
        else:
            missing = Missing(upload.round_id, upload.upload_id, attempt.missing())
            await self._answer(self._own, self._party.topics.name("ack", device_id), missing)

    async def _store_chunk(self, device_id: str, upload: ShareUpload, attempt: Attempt) -> None:
        view = self._view()
        position = (upload.upload_id, upload.x, upload.rung, upload.prg, upload.chunk, upload.chunks)
        parties = (device_id, self._party.ident)
        context = share_context(self._party.directory.federation, upload.plan, parties, position)
        try:
            data = self._party.identity.unseal(upload.sealed, context, upload.suite, upload.key)
            check_share(view, upload.x, data)
        except PeerError as error:
            if not attempt.stored:
                self._book.discard(attempt)
            await self._receipt(device_id, upload, Verdict.MALFORMED, str(error))
            return
        if not self._store.has_room_for(len(data)):
            await self._receipt(device_id, upload, Verdict.STORE_FULL, "the share store is at its limit")
            return
        kept = list(self._book.attempts_of(device_id))
        if not attempt.stored and len(kept) > 1:  # with one alone, none was ever given up
            self._store.keep_uploads(upload.round_id, device_id, kept)
        self._store.add_chunk(upload.round_id, attempt, upload.chunk, data)
        if self._book.stored(attempt, upload.chunk):
            await self._receipt(device_id, upload, Verdict.ACCEPTED)
            self._attend_if_done()

    async def _receipt(self, device_id: str, upload: ShareUpload, verdict: Verdict, detail: str = "") -> None:
        if verdict is not Verdict.ACCEPTED:
            _log.warning("upload-refused", device=device_id, round_id=upload.round_id, verdict=verdict, reason=detail)
        receipt = Receipt(upload.round_id, upload.upload_id, verdict, detail)
        await self._answer(self._own, self._party.topics.name("ack", device_id), receipt)

    async def _on_decline(self, delivery: Delivery) -> None:
        opened = self._party.take("decline", delivery)
        if opened is None or not isinstance(opened.message, Decline):
            return
        decline = opened.message
        if self._book.decline(opened.sender, decline.round_id, decline.plan):
            self._store.decline(decline.round_id, opened.sender)
            _log.info("declined", device=opened.sender, round_id=decline.round_id, reason=decline.reason)
            self._attend_if_done()

    # ------------------------------------------------------------------ attendance

    def _attend_if_done(self) -> None:
        if self._book.is_everyone_done():
            self._attend_if_open()

    def _attend_if_open(self) -> None:
        if self._book.view is None or self._book.has_attended:
            return
        attendance = self._book.attend()
        payload = self._party.sign(attendance)
        self._store.attend(attendance.round_id, payload)
        _log.info("attendance", round_id=attendance.round_id, uploads=len(attendance.uploads))
        self._publish_while_open("attendance", lambda: payload)

    # ------------------------------------------------------------------ dealer check

    async def _on_check(self, delivery: Delivery) -> None:
        opened = self._party.take("check", delivery)
        if opened is None or not isinstance(opened.message, DealerCheck) or self._book.view is None:
            return
        check = opened.message
        try:
            is_ours = self._book.check_dealer_check(check, opened.digest)
        except ProtocolError as error:
            _log.warning("check-refused", round_id=check.round_id, reason=str(error))
            return
        if self._book.checked is None:
            self._store.note_check(check.round_id, opened.digest)
            self._book.note_check(opened.digest)
        if is_ours:
            payload = self._reply_to(check, opened.digest)
            self._publish_while_open("checked", lambda: payload)

    def _reply_to(self, check: DealerCheck, check_digest: bytes) -> bytes:
        """The signed answer, computed once: a check is repeated often, and takes a pass over every share."""
        if self._reply is None or self._reply[0] != check_digest:
            shares = self._store.shares(check.round_id, check.contributors)
            values = reply_to_check(self._view(), self._book.x, check.challenge, shares, self._book.prg_of)
            reply = CheckReply(check.round_id, check_digest, self._book.x, values)
            self._reply = check_digest, self._party.sign(reply)
        return self._reply[1]

    # ------------------------------------------------------------------ freeze and sum

    async def _on_freeze(self, delivery: Delivery) -> None:
        opened = self._party.take("freeze", delivery)
        if opened is None or not isinstance(opened.message, Freeze) or self._book.view is None:
            return
        freeze = opened.message
        try:
            is_ours = self._book.check_freeze(freeze, opened.digest)
        except ProtocolError as error:
            _log.warning("freeze-refused", round_id=freeze.round_id, reason=str(error))
            await self._refuse("sum", freeze.round_id, opened.digest, str(error))
            return
        if self._book.frozen is None:
            self._store.freeze(freeze.round_id, opened.body, opened.digest)
            self._book.freeze(opened.digest)
            _log.info("frozen", round_id=freeze.round_id, contributors=len(freeze.contributors), is_ours=is_ours)
        await self._sum_and_send(freeze, opened.digest, is_ours)

    async def _sum_and_send(self, freeze: Freeze, freeze_digest: bytes, is_ours: bool) -> None:
        stored = self._store.latest()
        if stored is None or stored.round_id != freeze.round_id or not is_ours:
            return
        answer = stored.answer
        if answer is None:
            shares = self._store.shares(freeze.round_id, freeze.contributors)
            answer = answer_freeze(self._view(), self._book.x, freeze.segments, shares, self._book.prg_of)
            self._store.burn(freeze.round_id, answer)
        self._send_answer(freeze, freeze_digest, answer)

    def _send_answer(self, freeze: Freeze, freeze_digest: bytes, answer: bytes) -> None:
        directory, x = self._party.directory, self._book.x
        key = self._party.sealing_keys(Role.COORDINATOR, directory.coordinator_id)
        suite = self._view().plan.suites[0]
        pieces = cut(answer, self._view().plan.chunk_bytes)

        def sealed_chunk(index: int) -> bytes:
            position = (x, index, len(pieces))
            parties = (self._party.ident, directory.coordinator_id)
            context = sum_context(directory.federation, freeze_digest, parties, position)
            sealed = seal(key, bytes(pieces[index]), context, suite)
            return self._party.sign(SumShare(freeze.round_id, freeze_digest, *position, suite, key.key_id, sealed))

        for index in range(len(pieces)):
            self._publish_while_open("sum", partial(sealed_chunk, index), index)

    async def _on_outcome(self, delivery: Delivery) -> None:
        opened = self._party.take("outcome", delivery)
        if opened is None or not isinstance(opened.message, Outcome) or self._book.view is None:
            return
        if opened.message.round_id == self._view().plan.round_id:
            self._close_round(opened.message)

    def _close_round(self, outcome: Outcome) -> None:
        _log.info("round-closed", round_id=outcome.round_id, phase=outcome.phase, reason=outcome.reason)
        if self._deadline:
            self._deadline.cancel()
        self._store.close_round(outcome.round_id)
        self._book.close_round()

    # ------------------------------------------------------------------ answers

    async def _on_control_connected(self, first: bool) -> None:
        await self._repeat_answers()

    async def _repeat_answers(self) -> None:
        """Send attendance and sum of the open round again: they are idempotent and may have been lost."""
        stored = self._store.latest()
        if stored is None or self._book.view is None or stored.round_id != self._book.view.plan.round_id:
            return
        if stored.attendance is not None:
            attendance = stored.attendance
            self._publish_while_open("attendance", lambda: attendance)
        if stored.freeze is not None and stored.freeze_digest is not None:
            freeze = decode("freeze", stored.freeze)
            assert isinstance(freeze, Freeze)
            await self._sum_and_send(freeze, stored.freeze_digest, self._party.ident in freeze.aggregators)

    def _publish_while_open(self, channel: str, make: Callable[[], bytes], chunk: int = 0) -> None:
        """Publish on the control broker in the background until taken or until the next round opens.

        What is still on its way is not published a second time beside it: answers are repeated after every
        reconnect, and on a bad link they would pile up. A payload is made when it is its turn: answers can be large.
        """
        plan_digest = self._view().digest
        running = self._publishing.get((channel, chunk))
        if running is not None and running.get_name() == plan_digest.hex():
            return
        topic = self._party.topics.name(channel, self._party.ident)

        async def publish() -> None:
            async with self._slots if channel == "sum" else nullcontext():
                if not self._is_open(plan_digest):
                    return
                message = (topic, make())
                try:
                    await publish_until_taken(
                        self._control, message, self._backoff, is_wanted=lambda: self._is_open(plan_digest)
                    )
                except LinkError as error:
                    _log.error("publish-failed", topic=topic, error=str(error))

        task = asyncio.get_running_loop().create_task(publish(), name=plan_digest.hex())
        self._publishing[channel, chunk] = task
        task.add_done_callback(lambda done: self._published((channel, chunk), done))

    def _published(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._publishing.get(key) is task:
            del self._publishing[key]

    def _is_open(self, plan_digest: bytes) -> bool:
        return self._book.view is not None and self._book.view.digest == plan_digest

    async def _refuse(self, channel: str, round_id: int, of: bytes, reason: str) -> None:
        """One try, repeated whenever what is refused comes again."""
        refusal = Refusal(round_id, of, reason[:500])
        await self._answer(self._control, self._party.topics.name(channel, self._party.ident), refusal)

    async def _answer(self, link: Link, topic: str, message: Message) -> None:
        """One try, beside whatever arrives next: who needs the answer asks again.

        A handler that waited for the broker to take it would wait for ever where the broker (the embedded one) first
        waits for what it has delivered to be acknowledged, with more than 100 uploads on their way.
        """
        if len(self._answering) >= _MOST_ANSWERS:
            _log.info("answer-lost", topic=topic, error=f"{_MOST_ANSWERS} answers are on their way already")
            return

        async def publish() -> None:
            try:
                await link.publish(topic, self._party.sign(message))
            except LinkError as error:
                _log.info("answer-lost", topic=topic, error=str(error))

        task = asyncio.get_running_loop().create_task(publish())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _view(self) -> PlanView:
        if self._book.view is None:
            raise RuntimeError("no round is open")
        return self._book.view
