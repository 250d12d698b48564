"""A synthetic device: a round as `edge_client.service` takes part in it, with random words in the place of training.

What is left out: decoding the model, training, pruning, the outbox on disk, energy and density decisions. It takes the
highest rung that plan and settings allow.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from edge_client.byte_ledger import ByteLedger
from edge_client.fresh_upload import new_upload
from edge_client.receiving import receive_model
from edge_client.settings import DeviceSettings
from edge_client.share_chunks import open_shares
from edge_client.uploading import CountSent, Courier, Parcel, is_accepted
from edge_client.waiting import cancel, lap, until
from fedpruneshare import __version__
from fedpruneshare.errors import FedPruneShareError, LinkError, PeerError
from fedpruneshare.link import Delivery, Handler, Link
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Decline, Heartbeat, Hello, Missing, Outcome, Receipt, RoundPlan
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.prg import LEAN_BACKEND, Prg, quickest_prg
from testbed.synthetic.words import random_words

_log = structlog.get_logger()


@dataclass
class Shared:
    """What the devices of one process share: the newest plan (each checks it, one copy is kept), and a gate.

    `connecting`: so many connect at a time; with thousands at once, logins would time out and begin again.
    """

    connecting: asyncio.Semaphore
    view: PlanView | None = None

    def plan(self, view: PlanView) -> PlanView:
        """The kept copy of an equal plan; this one, if it is news."""
        if self.view is None or self.view.digest != view.digest:
            self.view = view
        return self.view


class SyntheticDevice:
    """One device: a link to the control broker and one to each aggregator's."""

    def __init__(
        self, party: Party, settings: DeviceSettings, links: tuple[Link, dict[str, Link]], shared: Shared
    ) -> None:
        self._party, self._settings, self._shared = party, settings, shared
        self._control, self._uplinks = links
        self._ledger = ByteLedger(Path(settings.store), is_durable=False)
        self._ledger.watch((self._control, *self._uplinks.values()))
        self._backoff = Backoff(random.Random())
        chosen = settings.limits.prg
        self._prg = quickest_prg(time.perf_counter, LEAN_BACKEND) if chosen == "auto" else Prg(chosen)
        self._couriers: dict[str, Courier] = {}
        self._plans: asyncio.Queue[tuple[PlanView, float, int]] = asyncio.Queue()
        self._newest_round = 0
        self._current: PlanView | None = None
        self._is_closed = asyncio.Event()

    async def run(self) -> None:
        """Serve rounds until cancelled."""
        topics = self._party.topics
        self._control.on_connect(self._on_connected)
        await self._control.subscribe(topics.name("outcome"), self._on_outcome)
        await self._control.subscribe(topics.name("round"), self._on_plan)
        for aggregator_id, link in self._uplinks.items():
            await link.subscribe(topics.name("ack", self._party.ident), self._ack_handler(aggregator_id))
        try:
            async with self._shared.connecting:  # the aggregators' brokers first: who says hello can upload
                await asyncio.gather(*(link.connect(wait=True) for link in self._uplinks.values()))
                await self._control.connect(wait=True)
            await self._serve()
        finally:
            await asyncio.gather(self._control.close(), *(link.close() for link in self._uplinks.values()))
            self._ledger.close()

    async def _serve(self) -> None:
        """One round at a time; a newer plan ends the round under way."""
        round_task: asyncio.Task[None] | None = None
        try:
            while True:
                view, ends_at, size_bytes = await self._plans.get()
                if round_task is not None:
                    self._is_closed.set()
                    await round_task
                self._is_closed.clear()
                self._current = view
                self._ledger.begin(view.plan.round_id, size_bytes)
                round_task = asyncio.create_task(self._round(view, ends_at))
        finally:
            if round_task is not None:
                await cancel([round_task])

    # ------------------------------------------------------------------ one round

    async def _round(self, view: PlanView, ends_at: float) -> None:
        if self._party.ident not in view.plan.cohort:
            self._ledger.entry.status = "not-in-cohort"
            self._ledger.end()
            return
        part = asyncio.create_task(self._take_part(view, ends_at))
        closed = asyncio.create_task(self._is_closed.wait())
        try:
            await asyncio.wait({part, closed}, timeout=until(ends_at), return_when=asyncio.FIRST_COMPLETED)
        finally:
            results = await cancel([part, closed])
            self._couriers = {}
        if isinstance(results[0], FedPruneShareError):
            await self._decline(view, str(results[0]))
        elif isinstance(results[0], Exception):
            _log.error("round-crashed", device=self._party.ident, exc_info=results[0])
            await self._decline(view, f"unexpected {type(results[0]).__name__} on the device")
        await self._beat(view)
        self._ledger.end()

    async def _take_part(self, view: PlanView, ends_at: float) -> None:
        entry, started = self._ledger.entry, time.monotonic()
        entry.status = "incomplete"
        rung = max(rung for rung in view.plan.rungs if rung <= self._settings.limits.rung_max)
        entry.rung, entry.width, entry.constraint = rung, view.plan.segments[rung].width, "plan"
        await receive_model(self._party, self._control, view, rung)
        entry.seconds["receive"], started = lap(started)
        task = self._settings.task
        entry.weight, words = random_words(view, rung, task.seed, task.index)
        entry.seconds["encode"], started = lap(started)
        upload = new_upload(view, rung, entry.weight, words, self._prg)
        shares = open_shares(view, self._party.ident, upload)
        for aggregator_id, x in view.plan.points.items():
            parcel = Parcel(view, upload, aggregator_id, x, shares[x], ends_at)
            link, outstanding = self._uplinks[aggregator_id], self._settings.limits.outstanding_chunks
            self._couriers[aggregator_id] = Courier(self._party, link, parcel, self._backoff, outstanding)
        bringing = [
            asyncio.create_task(self._bring(courier, view, started, partial(self._count_share, aggregator_id)))
            for aggregator_id, courier in self._couriers.items()
        ]
        try:
            await asyncio.gather(*bringing)
        finally:
            await cancel(bringing)
            entry.seconds["share"] = round(sum(courier.prepared_s for courier in self._couriers.values()), 4)

    async def _bring(self, courier: Courier, view: PlanView, started: float, count_share: CountSent) -> None:
        entry = self._ledger.entry
        receipt = await courier.deliver(count_share)
        if not is_accepted(receipt):
            entry.reason = f"{receipt.verdict}: {receipt.detail}"
            return
        entry.receipts += 1
        entry.seconds["send"], _ = lap(started)
        if entry.receipts >= view.plan.sharing.k:
            entry.status = "uploaded"

    def _count_share(self, aggregator_id: str, size_bytes: int, is_first: bool) -> None:
        self._ledger.sent("shares" if is_first else "resent", size_bytes, aggregator_id)

    def _control_counter(self, payload: bytes) -> Callable[[], None]:
        return lambda: self._ledger.sent("control", len(payload))

    # ------------------------------------------------------------------ what is said

    async def _on_connected(self, first: bool) -> None:
        hello = self._party.sign(Hello(__version__, self._settings.limits.rung_max))
        topic = self._party.topics.name("hello", self._party.ident)
        await self._control.publish(topic, hello, retain=True, on_sent=self._control_counter(hello))

    async def _decline(self, view: PlanView, reason: str) -> None:
        self._ledger.entry.status, self._ledger.entry.reason = "declined", reason
        payload = self._party.sign(Decline(view.plan.round_id, view.digest, reason[:500]))
        message = (self._party.topics.name("decline", self._party.ident), payload)
        wanted, count = lambda: not self._is_closed.is_set(), self._control_counter(payload)
        await publish_until_taken(self._control, message, self._backoff, is_wanted=wanted, on_sent=count)

    async def _beat(self, view: PlanView) -> None:
        entry = self._ledger.entry
        sent = entry.up.shares + entry.up.resent + entry.up.control
        received = entry.down.model + entry.down.plan + entry.down.receipts + entry.down.other
        upload_s = entry.seconds.get("send", 0.0)
        beat = Heartbeat(view.plan.round_id, entry.rung or 0, entry.constraint, 0.0, upload_s, sent, received)
        payload = self._party.sign(beat)
        try:
            topic = self._party.topics.name("heartbeat", self._party.ident)
            await self._control.publish(topic, payload, on_sent=self._control_counter(payload))
        except LinkError as error:
            _log.info("heartbeat-lost", device=self._party.ident, error=str(error))

    # ------------------------------------------------------------------ what arrives

    async def _on_plan(self, delivery: Delivery) -> None:
        opened = self._party.take("round", delivery)
        if opened is None or not isinstance(opened.message, RoundPlan):
            self._ledger.plan_dropped(len(delivery.payload))
            return
        plan = opened.message
        if plan.round_id <= self._newest_round:
            self._ledger.plan_dropped(len(delivery.payload))
            return
        try:
            view = self._shared.plan(check_plan(plan, opened.digest, self._party.directory))
        except PeerError as error:
            _log.error("plan-refused", device=self._party.ident, round_id=plan.round_id, reason=str(error))
            self._ledger.plan_dropped(len(delivery.payload))
            return
        self._newest_round = plan.round_id
        remaining_s = plan.deadline_s if delivery.expiry_s is None else min(delivery.expiry_s, plan.deadline_s)
        self._plans.put_nowait((view, asyncio.get_running_loop().time() + remaining_s, len(delivery.payload)))

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

        return on_ack
