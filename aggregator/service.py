"""The aggregator at work: one round after the other, from plan to outcome (docs/protocol.md §4).

What is allowed stands in `book.py`, what survives a restart in `store.py`; uploads come in by `intake.py`, checks and
Freezes are answered in `answers.py`. The order is the same everywhere: check, store, then answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from aggregator.answers import Answers
from aggregator.book import Committed, ShareBook
from aggregator.desk import Desk
from aggregator.disk import Disk
from aggregator.intake import Intake
from aggregator.post import Letter, Post
from aggregator.settings import AggregatorSettings
from aggregator.store import ShareStore, StoredRound
from aggregator.uploads import attended_attempts
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import PeerError, ProtocolError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Decline, Outcome, Reveal, RoundPlan, decode, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.quota import Turnstile, usual_allowance
from fedpruneshare.sealing import Opened
from fedpruneshare.topics import Role
from fedpruneshare.trust import watch_directory

_log = structlog.get_logger()
#: After an attendance, what a round may take until its outcome, where the own or the control broker is to be left.
_ROUND_ENDS_S: Final = 120.0


class Aggregator:
    """One aggregator between its own broker (devices) and the control broker (coordinator)."""

    def __init__(self, party: Party, settings: AggregatorSettings, own: Link, control: Link) -> None:
        self._party, self._own, self._control = party, own, control
        self._store = ShareStore(Path(settings.store), settings.store_mib * 1024 * 1024)
        self._book = ShareBook(party.ident, settings.floors)
        self._disk, self._post = Disk(), Post(party, control, Backoff(random.Random()))
        self._desk = Desk(party, self._book, self._store, self._post, self._disk)
        self._intake = Intake(self._desk, own, settings.uploads_per_device, self._attend_if_done)
        self._answers = Answers(self._desk, self._intake.flush, settings.floors.differencing_rounds)
        self._declines = Turnstile(party, "decline")
        self._deadline: asyncio.TimerHandle | None = None
        self._waiting: tuple[Opened, RoundPlan, float] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._forget: Callable[[], object] = lambda: None

    # ------------------------------------------------------------------ start and stop

    async def run(self) -> int:
        """Work until cancelled. Raises `StoreDamagedError` if the store turns out to be damaged."""
        await self.start()
        await self.serve()
        return 0

    async def until_free(self) -> None:
        """See `Guest.until_free`: an open round ends where it began, if it ends in time.

        Devices hear of another broker by the plan of the next.
        """
        loop = asyncio.get_running_loop()
        left_s = max(0.0, self._deadline.when() - loop.time()) if self._deadline else 0.0
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s + _ROUND_ENDS_S):
                await self._idle.wait()

    async def start(self) -> None:
        """Put back the stored round, subscribe, connect (as soon as both brokers are there)."""
        self._resume()
        self._forget = self._party.on_change(self._on_directory)
        topics = self._party.topics
        self._control.on_connect(self._on_control_connected)
        await watch_directory(self._party, self._control)
        await self._control.subscribe(topics.name("outcome"), self._on_outcome)
        await self._control.subscribe(topics.every("decline"), self._on_decline)
        await self._control.subscribe(topics.name("check"), self._answers.on_check)
        await self._control.subscribe(topics.every("accepted"), self._answers.on_acceptance)
        await self._control.subscribe(topics.name("freeze"), self._answers.on_freeze)
        await self._own.subscribe(topics.every("up"), self._intake.on_upload)
        await self._control.subscribe(topics.name("round"), self._on_plan)
        await asyncio.gather(self._control.connect(wait=True), self._own.connect(wait=True))

    async def serve(self) -> None:
        """Work until cancelled. Raises `StoreDamagedError` if the store turns out to be damaged."""
        await self._disk.damage

    async def stop(self) -> None:
        """Stop cleanly; everything that was answered is stored."""
        self._forget()
        if self._deadline:
            self._deadline.cancel()
        self._disk.forget()
        self._answers.stop()
        if self._book.view is not None:
            self._intake.flush()
        await self._post.stop()
        await self._own.close()
        await self._control.close()
        self._intake.end_round()
        self._answers.stop()
        self._disk.forget()
        self._store.close()

    def _resume(self) -> None:
        stored = self._store.latest()
        self._answers.end_round()  # power may have failed before everything was burned
        if stored is None:
            return
        plan = decode("round-plan", stored.plan)
        assert isinstance(plan, RoundPlan)
        try:
            if not stored.is_closed:
                self._resume_round(stored, PlanView(plan, digest(stored.plan)))  # checked before it was stored
        except ProtocolError as error:
            _log.warning("stored-round-dropped", round_id=stored.round_id, error=str(error))
        self._book.forget_up_to(stored.round_id, plan.model_version)

    def _resume_round(self, stored: StoredRound, view: PlanView) -> None:
        self._book.open_round(view)
        self._idle.clear()
        attended = stored.attendance is not None or stored.freeze is not None  # nothing is admitted to a frozen round
        attempts, declined = self._store.attempts(stored.round_id), self._store.declined(stored.round_id)
        if stored.answer is not None and stored.attendance is not None:  # of what is burned only the names are left
            attempts = attended_attempts(attempts, stored.attendance)
        self._book.resume(attempts, declined, Committed(attended, stored.check_digest, stored.freeze_digest))
        self._begin_round(view)
        self._disk.keep("revoked", self._expel_revoked)
        if not attended:
            # The wall clock is only a hint here: at worst the round waits once more, never longer than planned.
            self._set_deadline(min(max(stored.deadline_at - time.time(), 0.0), view.plan.deadline_s))
        _log.info("resumed", round_id=stored.round_id, uploads=len(attempts), attended=attended)

    # ------------------------------------------------------------------ plan

    async def _on_plan(self, delivery: Delivery) -> None:
        opened = self._party.take("round", delivery)
        if opened is None or not isinstance(opened.message, RoundPlan):
            return
        plan = opened.message
        remaining_s = min(delivery.expiry_s if delivery.expiry_s is not None else plan.deadline_s, plan.deadline_s)
        ends_at = asyncio.get_running_loop().time() + remaining_s
        self._disk.keep("plan", partial(self._open_round, opened, plan, ends_at))

    def _open_round(self, opened: Opened, plan: RoundPlan, ends_at: float) -> None:
        if self._desk.is_open(opened.digest):
            self._repeat_answers()
            return
        if plan.directory_version > self._party.directory.version:
            self._waiting = opened, plan, ends_at
            _log.info("plan-waits", round_id=plan.round_id, for_directory=plan.directory_version)
            return
        try:
            view = check_plan(plan, opened.digest, self._party.directory, self._party.now())
            self._book.check_new(view)
        except PeerError as error:
            _log.warning("plan-refused", round_id=plan.round_id, reason=str(error))
            self._post.refuse("attendance", plan.round_id, opened.digest, str(error))
            return
        remaining_s = max(0.0, ends_at - asyncio.get_running_loop().time())
        reach("aggregator.plan-accepted.before")
        self._store.open_round(plan.round_id, opened.body, time.time() + remaining_s)
        reach("aggregator.plan-accepted.after")
        self._disk.forget()
        self._waiting = None
        self._book.open_round(view)
        self._idle.clear()
        self._begin_round(view)
        self._set_deadline(remaining_s)
        self._expel_revoked()
        _log.info("round-open", round_id=plan.round_id, cohort=len(plan.cohort), deadline_s=remaining_s)
        if plan.sharing.reveal is not Reveal.SUM:
            _log.warning("updates-revealed", round_id=plan.round_id, reveal=plan.sharing.reveal)

    def _begin_round(self, view: PlanView) -> None:
        self._intake.begin_round(view, self._book.x)
        self._answers.begin_round(view)
        self._declines.open_round(usual_allowance("decline", view.plan.deadline_s))

    def _set_deadline(self, remaining_s: float) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(remaining_s, self._attend)

    # ------------------------------------------------------------------ the directory

    def _on_directory(self) -> None:
        """A newer directory or key is in force: a plan may have waited for it, a device may have been revoked."""
        if not self._party.is_current():
            _log.error("own-key-not-in-force", directory_version=self._party.directory.version)
        self._disk.keep("revoked", self._expel_revoked)
        if self._waiting is not None:
            self._disk.keep("plan", partial(self._open_round, *self._waiting))

    def _expel_revoked(self) -> None:
        """Take revoked devices, and what revoked keys signed, out of the open round, unless it is frozen already."""
        view, directory = self._book.view, self._party.directory
        if view is None or self._book.frozen is not None:
            return
        self._intake.commit()  # and attended only after what is revoked has left
        devices = [device for device in view.plan.cohort if directory.is_revoked(Role.DEVICE, device)]
        tainted = self._book.tainted(devices, map(bytes.fromhex, directory.revoked))
        if tainted:
            self._store.drop_uploads(view.plan.round_id, [(one.device_id, one.upload_id) for one in tainted])
        self._book.expel(devices, tainted)
        if devices or tainted:
            _log.warning("devices-revoked", round_id=view.plan.round_id, devices=devices, uploads=len(tainted))
        self._attend_if_done()

    # ------------------------------------------------------------------ attendance

    async def _on_decline(self, delivery: Delivery) -> None:
        opened = self._declines.take(delivery)
        if opened is not None and isinstance(opened.message, Decline):
            step = partial(self._decline, opened.sender, opened.message)
            self._disk.keep(f"decline of {opened.sender}", step)

    def _decline(self, device_id: str, decline: Decline) -> None:
        if not self._book.is_news(device_id, decline.round_id, decline.plan):
            return
        self._store.decline(decline.round_id, device_id)
        self._book.decline(device_id, decline.round_id, decline.plan)
        _log.info("declined", device=device_id, round_id=decline.round_id, reason=decline.reason)
        self._attend_if_done()

    def _attend_if_done(self) -> None:
        if self._book.is_everyone_done():
            self._attend()

    def _attend(self) -> None:
        self._disk.keep("attendance", self._attend_if_open)

    def _attend_if_open(self) -> None:
        if self._book.view is None or self._book.has_attended:
            return
        self._intake.flush()
        if self._book.has_attended:  # what was flushed may have been all that was missing
            return
        attendance = self._book.attendance()
        body = encode(attendance)
        reach("aggregator.attendance-signed.before")
        self._store.attend(attendance.round_id, body)
        self._book.note_attendance()
        reach("aggregator.attendance-signed.after")
        _log.info("attendance", round_id=attendance.round_id, uploads=len(attendance.uploads))
        self._publish_attendance(body)

    def _publish_attendance(self, body: bytes) -> None:
        payload = self._party.sign_body("attendance", body)
        self._desk.publish(Letter("attendance", lambda: payload))

    # ------------------------------------------------------------------ outcome

    async def _on_outcome(self, delivery: Delivery) -> None:
        opened = self._party.take("outcome", delivery)
        if opened is not None and isinstance(opened.message, Outcome):
            self._disk.keep("outcome", partial(self._close_round, opened.message))

    def _close_round(self, outcome: Outcome) -> None:
        if not self._desk.is_open_round(outcome.round_id):
            return
        if self._deadline:
            self._deadline.cancel()
        reach("aggregator.round-closed.before")
        self._store.close_round(outcome.round_id)
        reach("aggregator.round-closed.after")
        self._disk.forget()
        self._intake.end_round()
        self._answers.end_round()
        self._book.close_round()
        self._idle.set()
        _log.info("round-closed", round_id=outcome.round_id, phase=outcome.phase, reason=outcome.reason)

    # ------------------------------------------------------------------ answers, again

    async def _on_control_connected(self, first: bool) -> None:
        self._disk.keep("answers", self._repeat_answers)

    def _repeat_answers(self) -> None:
        """Send attendance and sum of the open round again: they are idempotent and may have been lost."""
        stored = self._store.latest()
        if stored is None or not self._desk.is_open_round(stored.round_id):
            return
        if stored.attendance is not None:
            self._publish_attendance(stored.attendance)
        self._answers.repeat_sum()
