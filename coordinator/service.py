"""The coordinator at work: plan, collect, check, freeze, open, average, publish (docs/protocol.md §4).

`Coordinator.run_round` is the whole of a round, top to bottom. What may be concluded stands in `ledger.py`, what
survives a restart in `store.py`. Everything is committed before it is sent, so a restart repeats, never contradicts.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from coordinator.ledger import Failure, RoundLedger
from coordinator.opening import Opening, Round, open_and_apply
from coordinator.outcomes import Seconds, outcome_line, round_facts
from coordinator.planning import AvailableDevices, ModelState, plan_round
from coordinator.publishing import Publisher
from coordinator.settings import CoordinatorSettings
from coordinator.store import OpenRound, RoundStore
from coordinator.supports import Press
from coordinator.workbench import Workbench
from fedpruneshare.errors import PeerError, PlanError, ProtocolError, SharingError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import (
    Attendance,
    CheckReply,
    DealerCheck,
    Freeze,
    Heartbeat,
    Hello,
    Outcome,
    Refusal,
    Reveal,
    RoundPhase,
    RoundPlan,
    SumShare,
    decode,
    digest,
    encode,
)
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sealing import sum_context
from fedpruneshare.sharing.dealer_check import Judgement

_log = structlog.get_logger()
#: A device that missed so many rounds in a row is not drawn again until it is heard of.
_MISSED_LIMIT = 2
#: Between two sendings of one Freeze: an aggregator whose connection flaps must not set off a storm of answers.
_RESEND_PAUSE_S = 0.5


class Coordinator:
    """The coordinator of one federation, on the control broker."""

    def __init__(self, party: Party, settings: CoordinatorSettings, link: Link, bench: Workbench) -> None:
        self._party, self._settings, self._link, self._bench = party, settings, link, bench
        self._store = RoundStore(bench.folder, bench.facts.bundle)
        self._publisher, self._press = Publisher(party, link, Backoff(random.Random())), Press(settings, bench.facts)
        self._ledger: RoundLedger | None = None
        self._changed, self._is_repeat_wanted = asyncio.Event(), False
        self._sent: tuple[str, bytes] | None = None

    # ------------------------------------------------------------------ the run

    async def run(self) -> int:
        """All rounds of the settings, from wherever the store is. Returns the exit code (docs/protocol.md §9.3)."""
        await self._start()
        if last_plan := self._store.last_plan():
            self._publisher.remember(last_plan)
        if self._store.model() is None:
            self._store.save_first_model(self._bench.first_model())
        rounds = self._settings.rounds
        outcomes = self._store.outcomes()
        while len(outcomes) < rounds.count and _failed(outcomes) <= rounds.max_failed:
            await self.run_round()
            outcomes = self._store.outcomes()
        self._bench.render(self._model())
        await self._publisher.clear(self._store.last_plan())
        failed = _failed(outcomes)
        _log.info("run-over", rounds=len(outcomes), failed=failed, allowed=rounds.max_failed)
        return 0 if failed <= rounds.max_failed else 1

    async def _start(self) -> None:
        topics = self._party.topics
        self._link.on_connect(self._on_connected)
        await self._link.subscribe(topics.every("hello"), self._on_hello)
        await self._link.subscribe(topics.every("heartbeat"), self._on_heartbeat)
        await self._link.subscribe(topics.every("attendance"), self._on_attendance)
        await self._link.subscribe(topics.every("checked"), self._on_reply)
        await self._link.subscribe(topics.every("sum"), self._on_sum)
        await self._link.connect(wait=True)

    async def stop(self) -> None:
        """Disconnect and close the store; an open round is resumed by the next start."""
        await self._link.close()
        self._store.close()

    # ------------------------------------------------------------------ one round

    async def run_round(self) -> None:
        """One round: PLANNED, COLLECTING, FROZEN, then APPLIED or FAILED."""
        seconds = Seconds()
        begun = self._store.open_round() or await self._plan(seconds)
        if begun is None:
            return
        state = self._model()
        published = await self._press.publish(state, begun.round_id)
        view = self._check_open_round(begun)
        if [digest(blob) for blob in published.blobs] != [segment.blob for segment in view.plan.segments]:
            # Packed by another version of the software, or of its compressor: what was announced cannot be said again.
            await self._give_up(begun.round_id, "the stored model is not coded as its plan says", seconds)
            return
        self._ledger = RoundLedger(view)
        remaining_s = self._remaining_s(begun)
        freeze: Freeze | Failure | None = self._frozen_before(begun)
        await self._publisher.announce(self._ledger.view, begun.plan, published, remaining_s)
        if freeze is None:
            await self._collect(remaining_s)
            seconds.lap("collect")
            freeze = await self._check_dealers(begun, seconds) or self._choose_freeze()
        if isinstance(freeze, Failure):
            await self._close(RoundPhase.FAILED, seconds, reason=freeze.reason)
            return
        await self._publisher.send(self._sent)
        await self._await_sums()
        seconds.lap("sum")
        await self._open_and_apply(Round(self._ledger, state, published), seconds)

    async def _plan(self, seconds: Seconds) -> OpenRound | None:
        """Wait for devices, plan, commit. None if the round failed before it began."""
        await self._await_devices()
        round_id = self._store.next_round_id()
        state = self._model()
        published = await self._press.publish(state, round_id)
        fleet = (self._fleet(), self._settings, self._party.directory)
        try:
            plan = plan_round(round_id, state, published, self._bench.facts, fleet)
            body = encode(plan)
            check_plan(plan, digest(body), self._party.directory)
        except PlanError as error:
            await self._give_up(round_id, str(error), seconds)
            return None
        started_at = time.time()
        self._store.begin(round_id, body, started_at)
        _log.info("round-planned", round_id=round_id, cohort=len(plan.cohort), rungs=plan.rungs, t=plan.sharing.t)
        if plan.sharing.reveal is not Reveal.SUM:
            _log.warning("updates-revealed", round_id=round_id, reveal=plan.sharing.reveal)
        return OpenRound(round_id, body, started_at, None)

    async def _await_devices(self) -> None:
        """Before the first round for the whole roster, or the quickest would be the cohort; later for the floor."""
        rounds, is_first = self._settings.rounds, not self._store.outcomes()
        enough = len(self._party.directory.devices) if is_first else rounds.min_devices
        size, limit_s = self._store.fleet_size, rounds.wait_for_devices_s  # counted first: thousands say hello
        await self._wait_until(lambda: size(_MISSED_LIMIT) >= enough <= len(self._fleet().limits), limit_s)

    def _fleet(self) -> AvailableDevices:
        known, roster = self._store.fleet(_MISSED_LIMIT), self._party.directory.devices
        return AvailableDevices({d: limit for d, limit in known.limits.items() if d in roster}, known.expected)

    async def _give_up(self, round_id: int, reason: str, seconds: Seconds) -> None:
        """Fail a round that cannot go on before it has a ledger."""
        _log.error("round-given-up", round_id=round_id, reason=reason)
        self._store.finish(round_id, outcome_line(round_id, RoundPhase.FAILED, seconds, {"reason": reason}), None)
        await self._publisher.close(Outcome(round_id, RoundPhase.FAILED, reason[:500]))

    def _check_open_round(self, begun: OpenRound) -> PlanView:
        plan = decode("round-plan", begun.plan)
        assert isinstance(plan, RoundPlan)
        return check_plan(plan, digest(begun.plan), self._party.directory)

    def _remaining_s(self, begun: OpenRound) -> float:
        deadline_s = self._open_ledger().view.plan.deadline_s
        return deadline_s - min(max(time.time() - begun.started_at, 0.0), deadline_s)

    async def _collect(self, remaining_s: float) -> None:
        """Wait for attendances: all of them, or k settled ones and a grace time, or the deadline and a grace time."""
        ledger, grace_s = self._open_ledger(), self._settings.rounds.grace_s
        await self._wait_until(lambda: ledger.is_everything_in() or ledger.is_quorum_settled(), remaining_s + grace_s)
        if not ledger.is_everything_in() and ledger.is_quorum_settled():
            await self._wait_until(ledger.is_everything_in, grace_s)

    async def _check_dealers(self, begun: OpenRound, seconds: Seconds) -> Failure | None:
        """Leave out devices whose shares fit no polynomial, if the plan has checks (docs/protocol.md §5.7)."""
        ledger, rounds = self._open_ledger(), self._settings.rounds
        if not ledger.view.checks or not self._open_check(begun):
            return None
        await self._publisher.send(self._sent)
        await self._wait_resending(lambda: ledger.is_every_reply_in() or ledger.can_judge(), rounds.sum_timeout_s)
        await self._wait_resending(ledger.is_every_reply_in, rounds.grace_s if ledger.can_judge() else 0.0)
        seconds.lap("check")
        if not ledger.can_judge():
            _log.warning("dealers-not-checked", round_id=begun.round_id, reason="no more than k aggregators answered")
            return None
        try:
            judgement = await asyncio.to_thread(ledger.judge)
        except SharingError as error:
            return Failure(str(error))
        self._store.note_judgement(begun.round_id, msgspec.json.encode(judgement).decode())
        _log.info("dealers-checked", round_id=begun.round_id, left_out=judgement.dealers, liars=judgement.points)
        return None

    def _open_check(self, begun: OpenRound) -> bool:
        """Commit the check of this round, or take up the one sent before a restart; whether there is one."""
        body = begun.check
        if body is None:
            chosen = self._open_ledger().choose_check(os.urandom(32))
            if chosen is None:
                _log.warning(
                    "dealers-not-checked", round_id=begun.round_id, reason="too few uploads are held by more than k"
                )
                return False
            body = encode(chosen)
            self._store.note_check(begun.round_id, body)
        check = decode("dealer-check", body)
        assert isinstance(check, DealerCheck)
        self._open_ledger().check(check, digest(body))
        self._sent = ("dealer-check", body)
        return True

    def _frozen_before(self, begun: OpenRound) -> Freeze | None:
        if begun.freeze is None:
            return None
        freeze = decode("freeze", begun.freeze)
        assert isinstance(freeze, Freeze)
        if begun.judged is not None:
            self._open_ledger().judgement = msgspec.json.decode(begun.judged, type=Judgement)
        return self._enter_frozen(freeze, begun.freeze)

    def _choose_freeze(self) -> Freeze | Failure:
        ledger = self._open_ledger()
        freeze = ledger.choose_freeze()
        if isinstance(freeze, Failure):
            return freeze
        body = encode(freeze)
        self._store.freeze(freeze.round_id, body)
        found = {"contributors": len(freeze.contributors), "alone_on_their_rung": ledger.lone_devices}
        _log.info("frozen", round_id=freeze.round_id, by=freeze.aggregators, **found)
        return self._enter_frozen(freeze, body)

    def _enter_frozen(self, freeze: Freeze, body: bytes) -> Freeze:
        self._open_ledger().freeze(freeze, digest(body))
        self._sent = ("freeze", body)
        return freeze

    async def _await_sums(self) -> None:
        """Wait for every named sum; with k of them only a grace time longer."""
        ledger, rounds = self._open_ledger(), self._settings.rounds
        await self._wait_resending(lambda: ledger.is_every_answer_in() or ledger.can_open(), rounds.sum_timeout_s)
        await self._wait_resending(ledger.is_every_answer_in, rounds.grace_s if ledger.can_open() else 0.0)

    async def _wait_resending(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        """Wait, and send Check or Freeze again when an aggregator came back; not more often than the pause allows."""
        end = time.monotonic() + timeout_s
        while not predicate() and (left := end - time.monotonic()) > 0:
            await self._wait_until(lambda: predicate() or self._is_repeat_wanted, left)
            if self._is_repeat_wanted and not predicate():
                self._is_repeat_wanted = False
                await self._publisher.send(self._sent)
                await self._wait_until(predicate, min(left, _RESEND_PAUSE_S))

    async def _open_and_apply(self, current: Round, seconds: Seconds) -> None:
        if not current.ledger.can_open():
            await self._close(RoundPhase.FAILED, seconds, reason=current.ledger.why_not_opened())
            return
        try:
            opening = await asyncio.to_thread(open_and_apply, current, self._bench, self._settings)
        except PeerError as error:
            await self._close(RoundPhase.FAILED, seconds, reason=str(error))
            return
        seconds.lap("apply")
        await self._close(RoundPhase.APPLIED, seconds, opening=opening)

    async def _close(
        self, phase: RoundPhase, seconds: Seconds, *, reason: str = "", opening: Opening | None = None
    ) -> None:
        """Commit the outcome (and the model), then say so."""
        ledger = self._open_ledger()
        plan = ledger.view.plan
        ledger.phase = phase
        if opening is not None:
            self._bench.render(opening.model)
        outcome = outcome_line(plan.round_id, phase, seconds, round_facts(ledger, reason, opening))
        self._store.note_round(plan.cohort, ledger.heard_of())
        self._store.finish(plan.round_id, outcome, opening.model if opening else None)
        self._ledger, self._sent, self._is_repeat_wanted = None, None, False
        _log.info("round-closed", **{key: outcome[key] for key in ("round", "phase", "reason", "accuracy")})
        await self._publisher.close(Outcome(plan.round_id, phase, reason[:500]))

    # ------------------------------------------------------------------ what arrives

    async def _on_connected(self, first: bool) -> None:
        """After a lost connection the broker may have forgotten everything: publish the open round again."""
        begun = self._store.open_round()
        if first or begun is None or self._ledger is None:
            return
        published = await self._press.publish(self._model(), begun.round_id)
        if self._ledger is not None and self._ledger.view.plan.round_id == begun.round_id:
            await self._publisher.announce(self._ledger.view, begun.plan, published, self._remaining_s(begun))
            await self._publisher.send(self._sent)

    async def _on_hello(self, delivery: Delivery) -> None:
        opened = self._party.take("hello", delivery)
        if opened and isinstance(opened.message, Hello):
            self._store.greet(opened.sender, opened.message.rung_limit)
            self._changed.set()

    async def _on_heartbeat(self, delivery: Delivery) -> None:
        opened = self._party.take("heartbeat", delivery)
        if opened and isinstance(opened.message, Heartbeat):
            is_held_back = opened.message.constraint not in ("", "plan", "rung_max")
            self._store.note_rung(opened.sender, opened.message.rung if is_held_back else None)

    async def _on_attendance(self, delivery: Delivery) -> None:
        opened = self._party.take("attendance", delivery)
        if opened is None or self._ledger is None:
            return
        if isinstance(opened.message, Refusal):
            if self._ledger.refuse_plan(opened.sender, opened.message.of, opened.message.reason):
                _log.warning("plan-refused", aggregator=opened.sender, reason=opened.message.reason)
            self._changed.set()
            return
        assert isinstance(opened.message, Attendance)
        try:
            is_new = self._ledger.attend(opened.sender, opened.message)
        except ProtocolError as error:
            _log.warning("attendance-refused", aggregator=opened.sender, reason=str(error))
            return
        if is_new:
            _log.info("attended", aggregator=opened.sender, uploads=len(opened.message.uploads))
        self._is_repeat_wanted = self._sent is not None  # it may have missed the Check or the Freeze
        self._changed.set()

    async def _on_reply(self, delivery: Delivery) -> None:
        opened = self._party.take("checked", delivery)
        if opened is None or not isinstance(opened.message, CheckReply) or self._ledger is None:
            return
        try:
            self._ledger.reply(opened.sender, opened.message)
        except PeerError as error:
            _log.warning("check-reply-refused", aggregator=opened.sender, reason=str(error))
        self._changed.set()

    async def _on_sum(self, delivery: Delivery) -> None:
        opened = self._party.take("sum", delivery)
        ledger = self._ledger
        if opened is None or ledger is None or ledger.phase is not RoundPhase.FROZEN:
            return
        message = opened.message
        if isinstance(message, Refusal):
            if ledger.refuse(opened.sender, message.of, message.reason):
                _log.warning("freeze-refused", aggregator=opened.sender, reason=message.reason)
        elif isinstance(message, SumShare):
            self._take_sum(ledger, opened.sender, message)
        self._changed.set()

    def _take_sum(self, ledger: RoundLedger, sender: str, message: SumShare) -> None:
        parties, position = (sender, self._party.ident), (message.x, message.chunk, message.chunks)
        context = sum_context(self._party.directory.federation, message.freeze, parties, position)
        try:
            ledger.check_answer(sender, message)
            opened = self._party.identity.unseal(message.sealed, context, message.suite, message.key)
            ledger.add_answer_chunk(sender, message.chunk, opened)
        except PeerError as error:
            _log.warning("sum-refused", aggregator=sender, reason=str(error))

    # ------------------------------------------------------------------ small things

    async def _wait_until(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something that arrived makes the predicate true, at most so long; whether it is."""
        end = time.monotonic() + timeout_s
        while not predicate():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return predicate()
        return True

    def _model(self) -> ModelState:
        state = self._store.model()
        assert state is not None
        return state

    def _open_ledger(self) -> RoundLedger:
        assert self._ledger is not None
        return self._ledger


def _failed(outcomes: list[dict[str, Any]]) -> int:
    return sum(outcome["phase"] == RoundPhase.FAILED for outcome in outcomes)
