"""The device at work: `take_part` is one round, top to bottom (docs/protocol.md §4.2).

Receive the rung's segments, train, encode, keep the upload in the outbox, share it out, wait for receipts. A newer plan
or the coordinator's close ends a round wherever it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edge_client import local_round
from edge_client.adaptation.adapter import Adapter
from edge_client.byte_ledger import ByteLedger
from edge_client.density import DensityDecision
from edge_client.energy.account import EnergyAccount
from edge_client.energy.parts import Phase, measured_j
from edge_client.fresh_upload import new_upload
from edge_client.inference.model_file import received_model
from edge_client.inference.rendering import keep_model
from edge_client.local_round import LocalResult, Prepared, Workplace
from edge_client.outbox import Outbox, Upload
from edge_client.receiving import decode_model, receive_model
from edge_client.settings import DeviceSettings
from edge_client.share_chunks import open_shares
from edge_client.training import Pace
from edge_client.uploading import CountSent, Courier, Parcel, Uplink, is_accepted
from edge_client.waiting import cancel, lap, until
from fedpruneshare import __version__
from fedpruneshare.errors import FedPruneShareError, LinkError, PeerError, PlanError
from fedpruneshare.link import Delivery, Handler, Link
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Decline, Heartbeat, Hello, Missing, Outcome, Receipt, RoundPlan
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.rng import stream
from fedpruneshare.sharing.prg import LEAN_BACKEND, Prg, quickest_prg
from fedpruneshare.sparse.onnx_writer import write_update
from fedpruneshare.storage import write_atomically

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Announced:
    """A plan that arrived: when its round ends (by the loop's monotonic clock), and the bytes it came in."""

    view: PlanView
    ends_at: float
    size_bytes: int


class Device:
    """One device: a link to the control broker and one to each aggregator's."""

    def __init__(
        self, party: Party, settings: DeviceSettings, work: Workplace, links: tuple[Link, dict[str, Link]]
    ) -> None:
        self._party, self._settings, self._work = party, settings, work
        self._control, self._uplinks = links
        self._folder = Path(settings.store)
        self._outbox = Outbox(self._folder / "outbox")
        self._ledger = ByteLedger(self._folder)
        self._ledger.watch((self._control, *self._uplinks.values()))
        self._backoff = Backoff(random.Random())
        # One worker: a round that is cut short must not train beside the next one on the same model.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train")
        chosen = settings.limits.prg
        self._prg = quickest_prg(time.perf_counter, LEAN_BACKEND) if chosen == "auto" else Prg(chosen)
        self._adapter = Adapter(settings, work.table.weight_count + work.table.vector_count)
        self._account = EnergyAccount(settings, self._adapter.profile)
        self._decision: DensityDecision | None = None
        self._couriers: dict[str, Courier] = {}
        self._plans: asyncio.Queue[_Announced] = asyncio.Queue()
        self._newest_round = self._outbox.last_round()
        self._current: PlanView | None = None
        self._is_closed = asyncio.Event()

    # ------------------------------------------------------------------ the run

    async def run(self) -> None:
        """Serve rounds until cancelled; the outbox stays, so that a restart resumes."""
        topics = self._party.topics
        self._control.on_connect(self._on_connected)
        await self._control.subscribe(topics.name("outcome"), self._on_outcome)
        await self._control.subscribe(topics.name("round"), self._on_plan)
        for aggregator_id, link in self._uplinks.items():
            await link.subscribe(topics.name("ack", self._party.ident), self._ack_handler(aggregator_id))
        connecting = [asyncio.create_task(link.connect(wait=True)) for link in self._uplinks.values()]
        try:
            await self._control.connect(wait=True)
            self._account.begin()
            await self._serve()
        finally:
            self._close_entry()
            await cancel(connecting)
            await asyncio.gather(self._control.close(), *(link.close() for link in self._uplinks.values()))
            self._ledger.close()
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        """One round at a time; a newer plan ends the round under way."""
        round_task: asyncio.Task[None] | None = None
        try:
            while True:
                announced = await self._plans.get()
                if round_task is not None:
                    self._is_closed.set()
                    await round_task
                self._is_closed.clear()
                self._current = announced.view
                self._close_entry()
                self._account.begin()
                self._ledger.begin(announced.view.plan.round_id, announced.size_bytes)
                round_task = asyncio.create_task(self._round(announced.view, announced.ends_at))
        finally:
            if round_task is not None:
                await cancel([round_task])

    # ------------------------------------------------------------------ one round

    async def _round(self, view: PlanView, ends_at: float) -> None:
        """`take_part` with its bookkeeping: whatever happens inside, the device lives on and the ledger is written."""
        if self._party.ident not in view.plan.cohort:
            self._ledger.entry.status = "not-in-cohort"
            self._leave_round()
            return
        part = asyncio.create_task(self.take_part(view, ends_at), name=f"round-{view.plan.round_id}")
        closed = asyncio.create_task(self._is_closed.wait())
        try:
            await asyncio.wait({part, closed}, timeout=until(ends_at), return_when=asyncio.FIRST_COMPLETED)
        finally:
            results = await cancel([part, closed])
            self._couriers = {}
        if isinstance(results[0], FedPruneShareError):
            await self._decline(view, str(results[0]))
        elif isinstance(results[0], Exception):
            _log.error("round-crashed", round_id=view.plan.round_id, exc_info=results[0])
            await self._decline(view, f"unexpected {type(results[0]).__name__} on the device")
        self._outbox.finish(view.plan.round_id)
        await self._beat(view)
        self._leave_round()

    def _enter(self, phase: Phase) -> None:
        self._account.enter(phase)
        self._ledger.enter(phase)

    def _leave_round(self) -> None:
        """Close the round's entry; what follows, until the next plan, is metered as being outside of any round."""
        self._close_entry()
        self._account.begin()

    def _close_entry(self) -> None:
        """Write what the entry under way has cost in joules, and what the prediction has to learn from it."""
        entry, decision = self._ledger.entry, self._decision
        self._decision = None
        try:
            found = self._account.end(entry)
            if decision is not None and entry.status == "uploaded":
                entry.prediction = self._adapter.learn(decision, entry, measured_j(found))
        except OSError as error:  # a full disk costs figures, not the device
            _log.error("figures-not-kept", round_id=entry.round, reason=str(error))
        self._ledger.end()

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        """One round on this device. Raises `FedPruneShareError` when it cannot; the caller then declines."""
        entry = self._ledger.entry
        entry.status = "incomplete"
        upload = self._outbox.get(view.digest)
        is_resumed = upload is not None
        if upload is None:
            decision = self._decide(view, until(ends_at))
            upload = await self._make_upload(view, decision)
            self._outbox.put(upload)
            self._decision = decision
        entry.rung, entry.weight = upload.rung, upload.weight
        _log.info("uploading", round_id=view.plan.round_id, rung=upload.rung, is_resumed=is_resumed)
        if view.is_each_revealed:
            _log.warning("update-revealed", round_id=view.plan.round_id, reveal=view.plan.sharing.reveal)
        receipts = await self._deliver(view, upload, is_resumed, ends_at)
        accepted = sum(is_accepted(receipt) for receipt in receipts)
        _log.info("delivered", round_id=view.plan.round_id, receipts=accepted, of=len(receipts))

    def _decide(self, view: PlanView, remaining_s: float) -> DensityDecision:
        health = self._adapter.health()
        left_j = self._account.left_j(health, self._settings.limits.battery_reserve_percent)
        decision = self._adapter.decide(view, len(self._work.dataset), remaining_s, (health, left_j))
        self._ledger.entry.constraint = decision.constraint
        if decision.rung is None:
            raise PlanError(decision.reason)
        entry = self._ledger.entry  # the rung, too: a round cut short must not be told as one at rung 0
        entry.rung, entry.width, entry.local_steps = decision.rung, decision.width, decision.local_steps
        return decision

    async def _make_upload(self, view: PlanView, decision: DensityDecision) -> Upload:
        """Receive, train, encode. Training runs in a thread so that the links stay alive."""
        entry, plan, rung = self._ledger.entry, view.plan, decision.rung
        assert rung is not None
        started = time.monotonic()
        self._enter(Phase.RECEIVE)
        blobs = await receive_model(self._party, self._control, view, rung)
        received = await self._in_worker(decode_model, view, self._work.table, blobs)
        entry.seconds["receive"], started = lap(started)
        self._adapter.received(sum(len(blob) for blob in blobs), entry.seconds["receive"])
        await self._in_worker(keep_model, self._folder, received_model(view, received, self._work))
        rng = stream(self._settings.task.seed, "device", self._settings.task.index, plan.round_id)
        self._enter(Phase.PRUNE)
        ready = await self._in_worker(local_round.prepare, self._work, received)
        entry.seconds["prune"], started = lap(started)
        self._enter(Phase.TRAIN)
        result = await self._train(ready, view, rng, decision)
        entry.examples, entry.loss = result.training.examples, result.training.mean_loss
        entry.seconds["train"], started = lap(started)
        if result.is_clamped:
            _log.warning("weight-clamped", found=result.training.examples, max_weight=plan.coding.max_weight)
        self._enter(Phase.ENCODE)
        artefact = await self._in_worker(write_update, result.update, self._work.table)
        write_atomically(self._folder / "update.onnx", artefact, mode=0o600)
        words = await self._in_worker(local_round.encode_words, view, self._work.table, result.update, rng)
        entry.seconds["encode"], started = lap(started)
        _log.info("trained", round_id=plan.round_id, rung=rung, loss=entry.loss, onnx_bytes=len(artefact))
        return new_upload(view, result.update.rung, result.update.weight, words, self._prg)

    async def _train(
        self, ready: Prepared, view: PlanView, rng: np.random.Generator, decision: DensityDecision
    ) -> LocalResult:
        """Train in the worker; what it took so far counts also if the round ends before it does, and ends it."""
        pace = Pace()
        try:
            result: LocalResult = await self._in_worker(local_round.train, ready, view, rng, decision.local_steps, pace)
            return result
        finally:
            pace.is_over = True
            self._adapter.trained(decision.width, pace.step_s() or 0.0)

    async def _deliver(self, view: PlanView, upload: Upload, is_resumed: bool, ends_at: float) -> list[Receipt]:
        """One courier per aggregator, all at once, until every one has a receipt (or the round ends)."""
        started = time.monotonic()
        self._enter(Phase.SHARE)
        shares = await self._in_worker(open_shares, view, self._party.ident, upload)
        opened_s, started = lap(started)
        self._enter(Phase.SEND)
        uplink = Uplink()
        for aggregator_id, x in view.plan.points.items():
            parcel = Parcel(view, upload, aggregator_id, x, shares[x], ends_at, is_resumed)
            link, outstanding = self._uplinks[aggregator_id], self._settings.limits.outstanding_chunks
            self._couriers[aggregator_id] = Courier(self._party, link, parcel, self._backoff, outstanding)
            self._couriers[aggregator_id].watch = self._adapter.uploaded
            self._couriers[aggregator_id].uplink = uplink
        deliveries = [
            asyncio.create_task(self._bring(courier, view, started, self._share_counter(aggregator_id, is_resumed)))
            for aggregator_id, courier in self._couriers.items()
        ]
        try:
            return list(await asyncio.gather(*deliveries))
        finally:
            await cancel(deliveries)
            self._enter(Phase.IDLE)
            self._count_share_seconds(opened_s)

    def _count_share_seconds(self, opened_s: float) -> None:
        """Chunks are made between those that are sent: what that took is `share`, the rest of the time is `send`."""
        seconds = self._ledger.entry.seconds
        made_s = sum(courier.prepared_s for courier in self._couriers.values())
        seconds["share"] = round(opened_s + made_s, 4)
        if "send" in seconds:
            seconds["send"] = round(max(0.0, seconds["send"] - made_s), 4)

    def _share_counter(self, aggregator_id: str, is_resumed: bool) -> CountSent:
        def count(size_bytes: int, is_first: bool) -> None:
            # What a killed process had sent is not known chunk by chunk: a resumed upload counts as sent again.
            self._ledger.sent("shares" if is_first and not is_resumed else "resent", size_bytes, aggregator_id)

        return count

    async def _bring(self, courier: Courier, view: PlanView, started: float, count_share: CountSent) -> Receipt:
        entry = self._ledger.entry
        receipt = await courier.deliver(count_share)
        if not is_accepted(receipt):
            entry.reason = f"{receipt.verdict}: {receipt.detail}"
            return receipt
        entry.receipts += 1
        entry.seconds["send"], _ = lap(started)
        if entry.receipts >= view.plan.sharing.k:
            entry.status = "uploaded"
        return receipt

    async def _in_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    # ------------------------------------------------------------------ what is said

    async def _on_connected(self, first: bool) -> None:
        """Say hello after every connect: the broker may have forgotten the last one."""
        hello = self._party.sign(Hello(__version__, self._settings.limits.rung_max))
        topic = self._party.topics.name("hello", self._party.ident)
        await self._control.publish(topic, hello, retain=True, on_sent=self._control_counter(hello))

    def _control_counter(self, payload: bytes) -> Callable[[], None]:
        return lambda: self._ledger.sent("control", len(payload))

    async def _decline(self, view: PlanView, reason: str) -> None:
        entry = self._ledger.entry
        entry.status, entry.reason = "declined", reason
        _log.warning("declined", round_id=view.plan.round_id, reason=reason)
        payload = self._party.sign(Decline(view.plan.round_id, view.digest, reason[:500]))
        message = (self._party.topics.name("decline", self._party.ident), payload)
        wanted, count = lambda: not self._is_closed.is_set(), self._control_counter(payload)
        await publish_until_taken(self._control, message, self._backoff, is_wanted=wanted, on_sent=count)

    async def _beat(self, view: PlanView) -> None:
        """Tell the coordinator how the round went; one try, nothing depends on it."""
        entry = self._ledger.entry
        sent = entry.up.shares + entry.up.resent + entry.up.control
        received = entry.down.model + entry.down.plan + entry.down.receipts + entry.down.other
        train_s, upload_s = entry.seconds.get("train", 0.0), entry.seconds.get("send", 0.0)
        beat = Heartbeat(view.plan.round_id, entry.rung or 0, entry.constraint, train_s, upload_s, sent, received)
        payload = self._party.sign(beat)
        try:
            topic = self._party.topics.name("heartbeat", self._party.ident)
            await self._control.publish(topic, payload, on_sent=self._control_counter(payload))
        except LinkError as error:
            _log.info("heartbeat-lost", error=str(error))

    # ------------------------------------------------------------------ what arrives

    async def _on_plan(self, delivery: Delivery) -> None:
        announced = self._announced(delivery)
        if announced is None:
            self._ledger.plan_dropped(len(delivery.payload))
        else:
            self._newest_round = announced.view.plan.round_id
            await self._plans.put(announced)

    def _announced(self, delivery: Delivery) -> _Announced | None:
        """A plan worth serving: newer than any before (also before a restart), sound, and for this model."""
        opened = self._party.take("round", delivery)
        if opened is None or not isinstance(opened.message, RoundPlan):
            return None
        plan = opened.message
        if plan.round_id == self._newest_round:
            return None  # published again, or over for this device
        try:
            if plan.round_id < self._newest_round:
                raise PlanError(f"plan for round {plan.round_id}, expected a round after {self._newest_round}")
            view = check_plan(plan, opened.digest, self._party.directory)
            if plan.table != self._work.table.digest():
                raise PlanError(f"plan is for another model than task {self._settings.task.name!r} builds here")
        except PeerError as error:
            _log.error("plan-refused", round_id=plan.round_id, reason=str(error))
            return None
        remaining_s = plan.deadline_s if delivery.expiry_s is None else min(delivery.expiry_s, plan.deadline_s)
        ends_at = asyncio.get_running_loop().time() + remaining_s
        return _Announced(view, ends_at, len(delivery.payload))

    async def _on_outcome(self, delivery: Delivery) -> None:
        opened = self._party.take("outcome", delivery)
        if opened is None or not isinstance(opened.message, Outcome) or self._current is None:
            return
        if opened.message.round_id == self._current.plan.round_id:
            self._is_closed.set()

    def _ack_handler(self, aggregator_id: str) -> Handler:
        async def on_ack(delivery: Delivery) -> None:
            opened = self._party.take("ack", delivery)
            courier = self._couriers.get(aggregator_id)
            if opened is None or courier is None or not isinstance(opened.message, (Receipt, Missing)):
                return
            if opened.sender == aggregator_id:
                courier.answer(opened.message)
            else:
                _log.warning("receipt-refused", sender=opened.sender, expected=aggregator_id)

        return on_ack
