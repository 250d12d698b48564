"""The coordinator at work: plan, collect, check, freeze, open, average, publish (docs/protocol.md §4).

`Coordinator.run_round` is the whole of a round, top to bottom. What may be concluded stands in `ledger.py`, what
survives a restart in `store.py`. Everything is committed before it is sent, so a restart repeats, never contradicts. A
disk that is full is waited for; the round then goes on as after a restart.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import structlog

from coordinator.deciding import Decider
from coordinator.desk import Desk
from coordinator.ledger import Failure, RoundLedger
from coordinator.opening import Opening, Round, open_and_apply
from coordinator.outcomes import Seconds, outcome_line, round_facts
from coordinator.patience import Patience
from coordinator.planning import AvailableDevices, ModelState, PublishedModel, Terms, plan_round, suites
from coordinator.publishing import Announcement, Publisher
from coordinator.roll_call import await_devices
from coordinator.seeds import SeedLetters
from coordinator.settings import CoordinatorSettings
from coordinator.store import OpenRound, RoundStore
from coordinator.supports import Press
from coordinator.workbench import Workbench
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import LinkError, PeerError, PlanError, SettingsError, StoreError
from fedpruneshare.link import Link
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Freeze, Outcome, Reveal, RoundPhase, RoundPlan, decode, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.checksum import SEED_BYTES, commitment
from fedpruneshare.topics import Role

_log = structlog.get_logger()
#: A device that missed so many rounds in a row is not drawn again until it is heard of.
_MISSED_LIMIT = 2
_ANY_NUMBER = 2**31
#: Between two looks whether there is room on the disk again.
_FULL_DISK_PAUSES = Backoff(random.Random(), first_s=0.5, cap_s=5.0)


class Coordinator:
    """The coordinator of one federation, on the control broker."""

    def __init__(self, party: Party, settings: CoordinatorSettings, link: Link, bench: Workbench) -> None:
        self._party, self._settings, self._link, self._bench = party, settings, link, bench
        self._store = RoundStore(bench.folder, bench.facts.bundle)
        self._publisher = Publisher(party, link, self._store, Backoff(random.Random()))
        self._press, self._desk = Press(settings, bench.facts), Desk(party, self._store, link)
        self._decider = Decider(self._desk, self._store, self._publisher, settings.rounds)
        self._rendered: int | None = None
        self._told = 0
        self._patience = Patience()
        self._revoked_before = frozenset[str]()  # after a restart in mid-round: none, so that too many are left out
        self._passing_on: set[asyncio.Task[None]] = set()
        self._forget: Callable[[], object] = lambda: None

    # ------------------------------------------------------------------ the run

    async def run(self) -> int:
        """All rounds of the settings, from wherever the store is. Returns the exit code (docs/protocol.md §9.3)."""
        await self._start()
        if last_plan := self._store.last_plan():
            self._publisher.remember(last_plan)
        while True:
            try:
                if self._store.model() is None:
                    self._store.save_first_model(self._bench.first_model())
                await self._settle()
                if self._is_over():
                    self._render()
                    break
                await self._pause()
                await self.run_round()
            except StoreError as error:
                await self._wait_for_room(error)
        await self._publisher.clear()
        (finished, failed), allowed = self._store.finished(), self._settings.rounds.max_failed
        _log.info("run-over", rounds=finished, failed=failed, allowed=allowed)
        return 0 if failed <= allowed else 1

    def _is_over(self) -> bool:
        (finished, failed), rounds = self._store.finished(), self._settings.rounds
        return finished >= rounds.count or failed > rounds.max_failed

    async def _start(self) -> None:
        self._forget = self._party.on_change(self._on_directory)
        self._link.on_connect(self._on_connected)
        await self._desk.subscribe()
        await self._link.connect(wait=True)

    async def until_free(self) -> None:
        """See `Guest.until_free`: those who are at the broker must hear of the directory first, if they can."""
        rounds = self._settings.rounds  # what a round may take, and a plan
        most_s = rounds.deadline_s + rounds.grace_s + rounds.sum_timeout_s + rounds.wait_for_devices_s
        await self._publisher.leave(most_s)

    async def stop(self) -> None:
        """Disconnect and close the store; an open round is resumed by the next start."""
        self._forget()
        for task in self._passing_on:
            task.cancel()
        await asyncio.gather(*self._passing_on, return_exceptions=True)
        await self._link.close()
        self._store.close()

    async def _wait_for_room(self, error: StoreError) -> None:
        """Wait until the disk takes something again. What was not kept is made again from what was."""
        _log.error("store-waits", reason=str(error))
        attempt = 0
        while True:
            await asyncio.sleep(0.1 + _FULL_DISK_PAUSES.wait_s(attempt))
            attempt += 1
            try:
                self._store.note("full_disk", self._store.noted("full_disk") + 1)
            except StoreError:
                continue
            _log.info("store-goes-on", attempts=attempt)
            return

    # ------------------------------------------------------------------ one round

    async def run_round(self) -> None:
        """One round: PLANNED, COLLECTING, FROZEN, then APPLIED or FAILED."""
        seconds = Seconds()
        begun = self._store.open_round() or await self._plan(seconds)
        if begun is None:
            return
        state = self._model()
        published = await self._press.publish(state, begun.round_id)
        try:
            view = self._check_open_round(begun, published)
        except PeerError as error:
            await self._give_up(begun.round_id, str(error), seconds)
            return
        ledger = RoundLedger(view)
        self._decider.recall(ledger)
        self._desk.open(ledger)
        self._leave_out_revoked()
        frozen = self._decider.frozen_before(begun)
        announcing = asyncio.create_task(self._announce(begun, view, published))
        try:
            freeze = frozen or await self._gather(begun, announcing, seconds)
            if isinstance(freeze, Failure):
                await self._close(RoundPhase.FAILED, seconds, reason=freeze.reason)
                return
            await self._decider.send_freeze()
            await self._decider.await_sums()
            reach("coordinator.sums-gathered")
            seconds.lap("sum")
            await self._open_and_apply(Round(ledger, state, published, begun.seed, self._last_score()), seconds)
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)

    async def _plan(self, seconds: Seconds) -> OpenRound | None:
        """Wait for devices, plan, commit. None if the round failed before it began."""
        self._reload()
        await self._await_devices()
        directory, settings = self._party.directory, self._settings
        round_id = self._store.next_round_id(directory.round_epoch)
        state = self._model()
        published = await self._press.publish(state, round_id)
        now, seed = self._party.now(), os.urandom(SEED_BYTES) if settings.sharing.has_checksum else None
        terms = Terms(now, b"" if seed is None else commitment(seed))
        try:
            plan = plan_round(
                round_id, state, published, self._bench.facts, (self._fleet(), settings, directory), terms
            )
            body = encode(plan)
            check_plan(plan, digest(body), directory, now)
        except PlanError as error:
            await self._give_up(round_id, str(error), seconds)
            return None
        reach("coordinator.plan-made")
        self._store.begin(round_id, body, now, seed)
        _log.info("round-planned", round_id=round_id, cohort=len(plan.cohort), rungs=plan.rungs, t=plan.sharing.t)
        if plan.sharing.reveal is not Reveal.SUM:
            _log.warning("updates-revealed", round_id=round_id, reveal=plan.sharing.reveal)
        return OpenRound(round_id, body, now, seed=seed)

    async def _pause(self) -> None:
        """After rounds that failed in a row; a newer directory ends it."""
        last, known = self._store.last_outcome(), self._party.directory.version
        if last is None:
            return
        has_failed, took_s = last["phase"] == RoundPhase.FAILED, max(0.0, last["seconds"]["total"])
        pause_s = self._patience.pause_s(last["round"], has_failed) - took_s
        if pause_s > 0:
            failed = self._patience.failed_in_a_row
            _log.warning("round-waits", failed_in_a_row=failed, pause_s=round(pause_s, 1), reason=last["reason"])
            await self._desk.wait_until(lambda: self._party.directory.version != known, pause_s)

    def _reload(self) -> None:
        """Take up keys and a directory that were put in place. Raises `SettingsError` if none of ours counts."""
        try:
            self._party.reload()
        except (SettingsError, PeerError, StoreError) as error:
            _log.error("directory-not-reloaded", in_force=self._party.directory.version, reason=str(error))
        if not self._party.is_current():
            version = self._party.directory.version
            raise SettingsError(f"no key of {self._party.ident!r} is in force any more (directory version {version})")

    async def _await_devices(self) -> None:
        """Before the first round for the whole roster, or the quickest would be the cohort; later for the floor."""
        rounds, is_first = self._settings.rounds, self._store.finished()[0] == 0
        enough = len(self._roster()) if is_first else rounds.min_devices
        size, limit_s = self._store.fleet_size, rounds.wait_for_devices_s  # counted first: thousands say hello
        await await_devices(
            self._desk, lambda: size(_ANY_NUMBER) >= enough <= len(self._fleet().limits), self._unheard, limit_s
        )

    def _roster(self) -> set[str]:
        directory = self._party.directory
        return {device for device in directory.devices if not directory.is_revoked(Role.DEVICE, device)}

    def _unheard(self) -> set[str]:
        return self._roster() - self._store.fleet(_ANY_NUMBER).limits.keys()

    def _fleet(self) -> AvailableDevices:
        """The devices that may be drawn: heard of, not revoked, and able to open the seed they will be sent."""
        known, directory = self._store.fleet(_MISSED_LIMIT), self._party.directory
        if len(known.limits) < self._settings.rounds.min_devices:
            known = self._store.fleet(_ANY_NUMBER)  # nobody says hello again only because others could not be heard
        limits = {d: limit for d, limit in known.limits.items() if not directory.is_revoked(Role.DEVICE, d)}
        if self._settings.sharing.has_checksum and suites(self._settings.sharing, directory)[0].is_hybrid:
            limits = {d: limit for d, limit in limits.items() if directory.devices[d].keys[0].hybrid}
        return AvailableDevices(limits, known.expected)

    def _check_open_round(self, begun: OpenRound, published: PublishedModel) -> PlanView:
        """The plan of an open round, checked. Raises `PlanError` where it cannot go on.

        A directory that came into force since does not end it: who was revoked is left out.
        """
        plan = decode("round-plan", begun.plan)
        assert isinstance(plan, RoundPlan)
        view = check_plan(plan, digest(begun.plan), self._party.directory, self._party.now())
        if [digest(blob) for blob in published.blobs] != [segment.blob for segment in plan.segments]:
            # Packed by another version of the software, or of its compressor: what was announced cannot be said again.
            raise PlanError("the stored model is not coded as its plan says")
        if plan.checksum and (begun.seed is None or commitment(begun.seed) != plan.checksum):
            raise PlanError("the seed of the checksum is not the one that the plan commits to")
        return view

    async def _announce(self, begun: OpenRound, view: PlanView, published: PublishedModel) -> None:
        letters = SeedLetters(self._party, view.plan, view.digest, begun.seed) if begun.seed else None
        ends_at = asyncio.get_running_loop().time() + self._remaining_s(begun, view)
        await self._publisher.announce(Announcement(view.plan, begun.plan, published.blobs, ends_at, letters))

    def _remaining_s(self, begun: OpenRound, view: PlanView) -> float:
        return remaining_s(begun.started_at, view.plan.deadline_s, self._party.now())

    async def _gather(self, begun: OpenRound, announcing: asyncio.Task[None], seconds: Seconds) -> Freeze | Failure:
        """Attendances, dealer check, Freeze: committed, not yet sent."""
        try:
            await self._collect(announcing, self._remaining_s(begun, self._desk.round.view))
        except LinkError as error:  # what cannot be announced at all: refused by the broker, or too large for it
            return Failure(str(error))
        reach("coordinator.attendance-gathered")
        seconds.lap("collect")
        return await self._decider.check_dealers(begun, seconds) or self._decider.choose_freeze()

    async def _collect(self, announcing: asyncio.Task[None], left_s: float) -> None:
        """Wait for attendances: all of them, or k settled ones and a grace time, or the deadline and a grace time."""
        desk, ledger, grace_s = self._desk, self._desk.round, self._settings.rounds.grace_s

        def is_stuck() -> bool:
            return announcing.done() and announcing.exception() is not None

        announcing.add_done_callback(lambda _: desk.wake())
        settled = ledger.is_quorum_settled
        await desk.wait_until(lambda: is_stuck() or ledger.is_everything_in() or settled(), left_s + grace_s)
        if is_stuck():
            announcing.result()
        if not ledger.is_everything_in() and settled():
            await desk.wait_until(ledger.is_everything_in, grace_s)

    async def _open_and_apply(self, current: Round, seconds: Seconds) -> None:
        if not current.ledger.can_open():
            await self._close(RoundPhase.FAILED, seconds, reason=current.ledger.why_not_opened())
            return
        try:
            opening = await asyncio.to_thread(open_and_apply, current, self._bench, self._settings)
        except PeerError as error:
            await self._close(RoundPhase.FAILED, seconds, reason=str(error))
            return
        reach("coordinator.reconstructed")
        seconds.lap("apply")
        await self._close(RoundPhase.APPLIED, seconds, opening=opening)

    # ------------------------------------------------------------------ the end of a round

    async def _close(
        self, phase: RoundPhase, seconds: Seconds, *, reason: str = "", opening: Opening | None = None
    ) -> None:
        """Commit the outcome (and the model), then say so."""
        ledger = self._desk.round
        plan = ledger.view.plan
        ledger.phase = phase
        outcome = outcome_line(plan.round_id, phase, seconds, round_facts(ledger, reason, opening))
        if len(ledger.attended) >= plan.sharing.k:  # else it was not for the devices that nobody heard of them
            self._store.note_round(plan.cohort, ledger.heard_of())
        self._store.finish(plan.round_id, outcome, opening.model if opening else None)
        self._desk.close()
        _log.info("round-closed", **{key: outcome[key] for key in ("round", "phase", "reason", "accuracy")})
        await self._settle()

    async def _give_up(self, round_id: int, reason: str, seconds: Seconds) -> None:
        """Fail a round that cannot go on before it has a ledger."""
        _log.error("round-given-up", round_id=round_id, reason=reason)
        self._store.finish(round_id, outcome_line(round_id, RoundPhase.FAILED, seconds, {"reason": reason}), None)
        await self._settle()

    async def _settle(self) -> None:
        """Bring to light what the store says of the last round: `model.onnx`, `rounds.jsonl`, its Outcome.

        A crash or a full disk may have come between the commit and any of them. Raises `StoreError`.
        """
        last = self._store.last_outcome()
        if self._store.last_outcome(RoundPhase.APPLIED) is not None:
            self._render()
        self._store.write_journal()
        if last is not None and self._told != last["round"]:
            await self._publisher.close(Outcome(last["round"], RoundPhase(last["phase"]), last["reason"][:500]))
            self._told = last["round"]
            reach("coordinator.outcome-published")

    def _render(self) -> None:
        state = self._model()
        if self._rendered == state.applied:
            return
        reach("coordinator.model-written.before")
        try:
            self._bench.render(state)
        except OSError as error:
            raise StoreError(f"model.onnx: {error.strerror}, expected a disk with room that takes it") from None
        reach("coordinator.model-written.after")
        self._rendered = state.applied

    # ------------------------------------------------------------------ what happens meanwhile

    async def _on_connected(self, first: bool) -> None:
        """After a lost connection the broker may have forgotten everything: say what is open again."""
        if not first:
            await self._publisher.repeat()
            await self._decider.send()

    def _on_directory(self) -> None:
        """Another directory is in force: pass it on, and leave out of the open round whom it revokes."""
        self._leave_out_revoked()
        self._desk.wake()
        task = asyncio.create_task(self._pass_on_directory())
        self._passing_on.add(task)
        task.add_done_callback(self._passing_on.discard)

    async def _pass_on_directory(self) -> None:
        try:
            await self._publisher.say_directory()
            await self._decider.send()  # it may have been refused, as signed by a key that only this directory has
        except (LinkError, StoreError) as error:
            _log.error("directory-not-passed-on", reason=str(error))

    def _last_score(self) -> float | None:
        applied = self._store.last_outcome(RoundPhase.APPLIED)
        return applied["accuracy"] if applied else None

    def _leave_out_revoked(self) -> None:
        ledger, directory = self._desk.ledger, self._party.directory
        if ledger is not None:
            plan = ledger.view.plan
            if plan.directory_version == directory.version:
                self._revoked_before = frozenset(directory.revoked)
            # What a key has signed is dropped with it. Whose key was revoked in this round may have used that one.
            lost = {name for key, name in directory.revoked.items() if key not in self._revoked_before}
            gone = {device for device in plan.cohort if directory.is_revoked(Role.DEVICE, device)}
            ledger.revoked = frozenset(gone | lost.intersection(plan.cohort))
            ledger.shut_out = frozenset(name for name in plan.points if directory.is_revoked(Role.AGGREGATOR, name))
            if ledger.revoked:
                _log.warning("revoked-devices-left-out", devices=sorted(ledger.revoked))

    def _model(self) -> ModelState:
        state = self._store.model()
        assert state is not None
        return state


def remaining_s(started_at: float, deadline_s: float, now: float) -> float:
    """What is left of a round. The wall clock is a hint, bounded by the plan, should it have been set back or forth."""
    return deadline_s - min(max(now - started_at, 0.0), deadline_s)
