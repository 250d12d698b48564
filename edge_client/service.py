"""The device at work: `take_part` is one round, top to bottom (docs/protocol.md §4.2).

Receive the rung's segments, train, encode, keep the upload in the outbox, share it out, wait for receipts. A newer plan
or the coordinator's close ends a round wherever it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edge_client import local_round
from edge_client.adaptation.adapter import Adapter
from edge_client.byte_ledger import ByteLedger
from edge_client.checksum_seed import fill_checksums, receive_seed
from edge_client.ciphers import own_ciphers
from edge_client.density import DensityDecision
from edge_client.dispatch import Consignment
from edge_client.energy.account import EnergyAccount
from edge_client.energy.parts import Phase, measured_j
from edge_client.fresh_upload import new_upload
from edge_client.gate import Known, check_model, check_steps
from edge_client.inference.model_file import received_model
from edge_client.inference.rendering import confirm_trial, keep_model
from edge_client.inference.slots import ModelSlots
from edge_client.local_round import LocalResult, Prepared, Workplace
from edge_client.outbox import Outbox, Upload
from edge_client.receiving import ReceivedModel, decode_model, receive_model
from edge_client.rounds import Links, Rounds
from edge_client.settings import DeviceSettings
from edge_client.share_chunks import open_shares
from edge_client.training import Pace
from edge_client.uploading import is_accepted
from edge_client.waiting import cancel, lap, until
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import FedPruneShareError, PlanError
from fedpruneshare.messages import Receipt
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.rng import stream
from fedpruneshare.sparse.onnx_writer import write_update
from fedpruneshare.storage import write_atomically

_log = structlog.get_logger()


class Device:
    """One device: a link to the control broker and one to each aggregator's."""

    def __init__(self, party: Party, settings: DeviceSettings, work: Workplace, links: Links) -> None:
        self._party, self._settings, self._work = party, settings, work
        self._control, self._uplinks = links
        self._folder = Path(settings.store)
        self._outbox = Outbox(self._folder / "outbox", settings.limits.outbox_mib)
        self._ledger = ByteLedger(self._folder)
        self._rounds = Rounds(party, settings.limits, links, self._ledger, self)
        self._rounds.newest_round = self._outbox.last_round()
        # One worker: a round that is cut short must not train beside the next one on the same model.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train")
        self._ciphers = own_ciphers(settings.limits.prg)
        self._adapter = Adapter(settings, work.table.weight_count + work.table.vector_count)
        self._rounds.dispatch.watch = self._adapter.uploaded
        self._account = EnergyAccount(settings, self._adapter.profile)
        self._decision: DensityDecision | None = None
        self._known = self._last_model()
        self._trying: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []

    def _last_model(self) -> Known | None:
        """The last model that is on disk: what the next one is held against after a restart.

        It says itself which version it is: one may have been taken since that was lost before it was kept.
        """
        stored = ModelSlots(self._folder).newest()
        if stored is None or stored.table != self._work.table:
            return None
        if self._outbox.progress.is_outdated(stored.facts.round_id):
            return None
        return Known(stored.facts.model_version, stored.weights, stored.vectors)

    async def run(self) -> int:
        """Serve rounds until cancelled; the outbox stays, so that a restart resumes."""
        await self._rounds.listen()
        self._beside += [asyncio.create_task(link.connect(wait=True)) for link in self._uplinks.values()]
        await self._control.connect(wait=True)
        self._account.begin()
        self._try_model()
        return await self._rounds.serve()

    async def stop(self) -> None:
        """Disconnect, and write what the entry under way has cost."""
        self._close_entry()
        await cancel([*self._beside, *([self._trying] if self._trying else [])])
        await self._rounds.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def until_free(self) -> None:
        """See `Guest.until_free`. It has heard of it by the plan of a round that it takes part in over there."""

    # ------------------------------------------------------------------ what `Rounds` asks for

    def accept(self, view: PlanView) -> PlanView:
        """See `RoundWork.accept`."""
        if view.plan.table != self._work.table.digest():
            raise PlanError(f"plan is for another model than task {self._settings.task.name!r} builds here")
        self._outbox.progress.check_model(view.plan.model_version, view.plan.round_id)
        return view

    def finish(self, round_id: int) -> None:
        """See `RoundWork.finish`."""
        try:
            self._outbox.finish(round_id)
        except OSError as error:  # this process will not open it again; the next one may send the same upload again
            _log.error("round-not-noted", round_id=round_id, reason=str(error))
        self._try_model()

    def _try_model(self) -> None:
        """Between rounds, see whether the newest model works, where its graph is known."""
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._in_worker(_confirm_quietly, self._folder))

    def end_entry(self) -> None:
        """Close the entry under way; what follows, until the next plan, is metered as being outside of any round."""
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

    def _enter(self, phase: Phase) -> None:
        self._account.enter(phase)
        self._ledger.enter(phase)

    # ------------------------------------------------------------------ one round

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        """One round on this device. Raises `FedPruneShareError` when it cannot; the caller then declines."""
        entry = self._ledger.entry
        entry.status = "incomplete"
        upload = self._outbox.get(view.digest)
        is_resumed = upload is not None
        if upload is None:
            decision = self._decide(view, until(ends_at))
            upload = await self._make_upload(view, decision, ends_at)
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

    async def _make_upload(self, view: PlanView, decision: DensityDecision, ends_at: float) -> Upload:
        """Receive, train, encode. Training runs in a thread so that the links stay alive."""
        check_steps(decision.local_steps, self._settings.gate)
        entry, plan, rung = self._ledger.entry, view.plan, decision.rung
        assert rung is not None
        started = time.monotonic()
        self._enter(Phase.RECEIVE)
        blobs = await receive_model(self._party, self._control, view, rung)
        received = await self._in_worker(decode_model, view, self._work.table, blobs)
        entry.seconds["receive"], started = lap(started)
        self._adapter.received(sum(len(blob) for blob in blobs), entry.seconds["receive"])
        await self._take(view, received)
        seed = await receive_seed(self._party, self._control, view, until(ends_at) / 2)
        started = time.monotonic()
        rng = stream(self._settings.task.seed, "device", self._settings.task.index, plan.round_id)
        self._enter(Phase.PRUNE)
        ready = await self._in_worker(local_round.prepare, self._work, received)
        entry.seconds["prune"], started = lap(started)
        self._enter(Phase.TRAIN)
        reach("device.training")
        result = await self._train(ready, view, rng, decision)
        reach("device.trained")
        entry.examples, entry.loss = result.training.examples, result.training.mean_loss
        entry.seconds["train"], started = lap(started)
        if result.is_clamped:
            _log.warning("weight-clamped", found=result.training.examples, max_weight=plan.coding.max_weight)
        self._enter(Phase.ENCODE)
        artefact = await self._in_worker(write_update, result.update, self._work.table)
        write_atomically(self._folder / "update.onnx", artefact, mode=0o600)
        words = await self._in_worker(local_round.encode_words, view, self._work.table, result.update, rng)
        await self._in_worker(fill_checksums, view, words, seed)
        reach("device.encoded")
        entry.seconds["encode"], started = lap(started)
        _log.info("trained", round_id=plan.round_id, rung=rung, loss=entry.loss, onnx_bytes=len(artefact))
        prg, suite = self._ciphers.prg, self._ciphers.suite(plan.suites)
        return new_upload(view, result.update.rung, result.update.weight, words, prg, suite=suite)

    async def _take(self, view: PlanView, received: ReceivedModel) -> None:
        """Hold a model against the last one, and keep it. Raises `GateError`, `PlanError`, `OSError`."""
        plan, progress = view.plan, self._outbox.progress
        before = None if progress.is_new_epoch(plan.round_id) else self._known
        table, settings = self._work.table, self._settings.gate
        has_probe = plan.support.is_probing and received.rung == view.rungs - 1
        known = await self._in_worker(check_model, received, plan.model_version, table, settings, before, has_probe)
        reach("device.model-verified")
        await self._in_worker(progress.take_model, plan.model_version, plan.round_id)
        reach("device.model-taken")
        await self._in_worker(keep_model, self._folder, received_model(view, received, self._work))
        self._known = known
        reach("device.model-stored")

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
        """Share the upload out and send it, until every aggregator has spoken (or the round ends)."""
        started = time.monotonic()
        self._enter(Phase.SHARE)
        shares = await self._in_worker(open_shares, view, self._party.ident, upload)
        opened_s, _ = lap(started)
        self._enter(Phase.SEND)
        try:
            return await self._rounds.dispatch.deliver(Consignment(view, upload, shares, ends_at, is_resumed))
        finally:
            self._enter(Phase.IDLE)
            seconds = self._ledger.entry.seconds
            seconds["share"] = round(opened_s + seconds.get("share", 0.0), 4)

    async def _in_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


def _confirm_quietly(folder: Path) -> None:
    try:
        confirm_trial(folder)
    except (FedPruneShareError, OSError) as error:
        _log.error("model-not-tried", reason=str(error))
