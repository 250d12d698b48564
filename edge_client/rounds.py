"""A device around its rounds, whatever it does in them: plans in, one round at a time (docs/protocol.md §4).

`Rounds` is what the device of `service.py` and the testbed's synthetic one have in common. No torch is loaded here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn, Protocol

import structlog

from edge_client.byte_ledger import ByteLedger
from edge_client.dispatch import Dispatch
from edge_client.settings import DeviceLimits
from edge_client.waiting import cancel, until
from fedpruneshare import __version__
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import FedPruneShareError, LinkError, PeerError, PlanError
from fedpruneshare.link import Delivery, Handler, Link
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Decline, Heartbeat, Hello, Missing, Outcome, Receipt, RoundPlan
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.trust import watch_directory

_log = structlog.get_logger()

_NOT_CURRENT: Final = (
    "no key of {!r} counts in directory version {}: it was revoked, replaced or has expired; this device takes no part "
    "until it has a key that counts"
)
#: A link to the control broker, and one to each aggregator's.
Links = tuple[Link, dict[str, Link]]


class RoundWork(Protocol):
    """What devices do differently."""

    def accept(self, view: PlanView) -> PlanView:
        """A sound plan -> the view to work with. Raises `PeerError` for one that is not for this device."""

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        """One round. Raises `FedPruneShareError` when it cannot be done; the device then declines."""

    def end_entry(self) -> None:
        """Write the ledger's entry under way, and what follows into another."""

    def finish(self, round_id: int) -> None:
        """The round is over for this device, for ever."""


@dataclass(frozen=True)
class _Announced:
    """A plan that arrived: when its round ends (by the loop's monotonic clock), and the bytes it came in."""

    view: PlanView
    ends_at: float
    size_bytes: int


class Rounds:
    """Serves one round after another over its links; `newest_round` is the last that needs no serving."""

    def __init__(self, party: Party, limits: DeviceLimits, links: Links, ledger: ByteLedger, work: RoundWork) -> None:
        self._party, self._limits, self._ledger, self._work = party, limits, ledger, work
        self._control, self._uplinks = links
        self._ledger.watch((self._control, *self._uplinks.values()))
        self._backoff = Backoff(random.Random())
        self.dispatch = Dispatch(party, self._uplinks, ledger, limits.outstanding_chunks, self._backoff)
        self._plans: asyncio.Queue[_Announced] = asyncio.Queue()
        self.newest_round = 0
        self._current: PlanView | None = None
        self._is_closed = asyncio.Event()
        self._forget: Callable[[], None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._is_watching = False
        self._too_early: tuple[Delivery, float] | None = None

    async def listen(self) -> None:
        """Subscribe to all that a device reads outside its rounds; before the links connect."""
        topics = self._party.topics
        self._control.on_connect(self._on_connected)
        self._forget = self._party.on_change(self._on_directory)
        await self._control.subscribe(topics.name("outcome"), self._on_outcome)
        await self._control.subscribe(topics.name("round"), self._on_plan)
        for aggregator_id, link in self._uplinks.items():
            await link.subscribe(topics.name("ack", self._party.ident), self._ack_handler(aggregator_id))

    async def serve(self) -> NoReturn:
        """One round at a time; a newer plan ends the round under way. Until cancelled."""
        round_task: asyncio.Task[None] | None = None
        try:
            while True:
                announced = await self._plans.get()
                if round_task is not None:
                    self._is_closed.set()
                    await round_task
                self._is_closed.clear()
                self._current = announced.view
                self._work.end_entry()
                self._ledger.begin(announced.view.plan.round_id, announced.size_bytes)
                round_task = asyncio.create_task(self._round(announced.view, announced.ends_at))
        finally:
            if round_task is not None:
                await cancel([round_task])

    async def close(self) -> None:
        """Close all links, then the ledger."""
        if self._forget is not None:
            self._forget()
        await cancel(list(self._asking))
        await asyncio.gather(self._control.close(), *(link.close() for link in self._uplinks.values()))
        self._ledger.close()

    async def _round(self, view: PlanView, ends_at: float) -> None:
        """`take_part` with its bookkeeping: whatever happens inside, the device lives on and the ledger is written."""
        if self._party.ident not in view.plan.cohort:
            self._ledger.entry.status = "not-in-cohort"
            self._work.finish(view.plan.round_id)  # no older plan is served any more, also after a restart
            self._work.end_entry()
            return
        part = asyncio.create_task(self._work.take_part(view, ends_at), name=f"round-{view.plan.round_id}")
        closed = asyncio.create_task(self._is_closed.wait())
        try:
            await asyncio.wait({part, closed}, timeout=until(ends_at), return_when=asyncio.FIRST_COMPLETED)
        finally:
            results = await cancel([part, closed])
            self.dispatch.clear()
        if isinstance(results[0], FedPruneShareError):
            await self._decline(view, str(results[0]))
        elif isinstance(results[0], OSError):
            await self._decline(view, f"this device's disk: {results[0].strerror}: {results[0].filename}")
        elif isinstance(results[0], Exception):
            _log.error("round-crashed", round_id=view.plan.round_id, exc_info=results[0])
            await self._decline(view, f"unexpected {type(results[0]).__name__} on the device")
        self._work.finish(view.plan.round_id)
        await self._beat(view)
        self._work.end_entry()

    # ------------------------------------------------------------------ what is said

    async def _on_connected(self, first: bool) -> None:
        """Say hello after every connect: the broker may have forgotten the last one."""
        hello = self._party.sign(Hello(__version__, self._limits.rung_max))
        topic = self._party.topics.name("hello", self._party.ident)
        await self._control.publish(topic, hello, retain=True, on_sent=self._counter(hello))

    def _counter(self, payload: bytes) -> Callable[[], None]:
        return lambda: self._ledger.sent("control", len(payload))

    async def _decline(self, view: PlanView, reason: str) -> None:
        entry = self._ledger.entry
        entry.status, entry.reason = "declined", reason
        _log.warning("declined", device=self._party.ident, round_id=view.plan.round_id, reason=reason)
        payload = self._party.sign(Decline(view.plan.round_id, view.digest, reason[:500]))
        message = (self._party.topics.name("decline", self._party.ident), payload)
        wanted, count = lambda: not self._is_closed.is_set(), self._counter(payload)
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
            await self._control.publish(topic, payload, on_sent=self._counter(payload))
        except LinkError as error:
            _log.info("heartbeat-lost", device=self._party.ident, error=str(error))

    # ------------------------------------------------------------------ what arrives

    async def _on_plan(self, delivery: Delivery) -> None:
        announced = self._announced(delivery, asyncio.get_running_loop().time())
        if announced is None:
            self._ledger.plan_dropped(len(delivery.payload))
        else:
            self._take_up(announced)

    def _take_up(self, announced: _Announced) -> None:
        self._too_early = None
        self.newest_round = announced.view.plan.round_id
        self._plans.put_nowait(announced)

    def _announced(self, delivery: Delivery, came_at: float) -> _Announced | None:
        """A plan worth serving: newer than any before (also before a restart), sound, and for this device."""
        opened = self._party.take("round", delivery)
        if opened is None or not isinstance(opened.message, RoundPlan):
            if delivery.payload:  # perhaps signed by a key that only a newer directory has
                self._keep_for_directory(delivery, came_at)
            return None
        plan = opened.message
        if plan.round_id == self.newest_round:
            return None  # published again, or over for this device
        if plan.directory_version > self._party.directory.version:
            found, wanted = self._party.directory.version, plan.directory_version
            _log.warning("plan-waits", round_id=plan.round_id, reason=f"directory {wanted}, in force is {found}")
            self._keep_for_directory(delivery, came_at)
            return None
        try:
            if plan.round_id < self.newest_round:
                raise PlanError(f"plan for round {plan.round_id}, expected a round after {self.newest_round}")
            if not self._party.is_current():
                raise PlanError(_NOT_CURRENT.format(self._party.ident, self._party.directory.version))
            view = self._work.accept(check_plan(plan, opened.digest, self._party.directory, self._party.now()))
        except PeerError as error:
            _log.error("plan-refused", device=self._party.ident, round_id=plan.round_id, reason=str(error))
            return None
        remaining_s = plan.deadline_s if delivery.expiry_s is None else min(delivery.expiry_s, plan.deadline_s)
        reach("device.plan-verified")
        return _Announced(view, came_at + remaining_s, len(delivery.payload))

    # ------------------------------------------------------------------ another directory

    def _on_directory(self) -> None:
        """Another directory or key is in force."""
        if not self._party.is_current():
            _log.error("not-taking-part", reason=_NOT_CURRENT.format(self._party.ident, self._party.directory.version))
            self._is_closed.set()
        kept, self._too_early = self._too_early, None
        announced = self._announced(*kept) if kept is not None else None
        if announced is not None and until(announced.ends_at) > 0:
            self._take_up(replace(announced, size_bytes=0))  # counted when it came
            self._soon(self._leave_directory())
        else:
            self._soon(self._ask_for_plan())

    def _keep_for_directory(self, delivery: Delivery, came_at: float) -> None:
        """Keep what came too early for the directory in force, and read the one that is published.

        The broker is asked for the plan again only where that was not it: what it retains may be gone before its time
        (iotcore takes the age of every retained message off it at each new subscription, and all devices subscribe).
        """
        self._too_early = delivery, came_at
        self._soon(self._watch_directory())

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside the handlers, which must not wait for the broker."""
        task = asyncio.get_running_loop().create_task(self._unless_cut(work))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _unless_cut(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LinkError as error:  # the next connect subscribes
            _log.info("not-asked-for", device=self._party.ident, error=str(error))

    async def _watch_directory(self) -> None:
        """Read the directory that is published. Only when a plan needs it: it may be larger than a model."""
        if not self._is_watching:
            self._is_watching = True
            await watch_directory(self._party, self._control)

    async def _leave_directory(self) -> None:
        if self._is_watching:
            self._is_watching = False
            await self._control.unsubscribe(self._party.topics.every("directory"))

    async def _ask_for_plan(self) -> None:
        """Have the retained plan again: one may have come for which the directory in force did not do."""
        await self._leave_directory()
        topic = self._party.topics.name("round")
        await self._control.unsubscribe(topic)
        await self._control.subscribe(topic, self._on_plan)

    # ------------------------------------------------------------------ what arrives in a round

    async def _on_outcome(self, delivery: Delivery) -> None:
        opened = self._party.take("outcome", delivery)
        if opened is None or not isinstance(opened.message, Outcome) or self._current is None:
            return
        if opened.message.round_id == self._current.plan.round_id:
            self._is_closed.set()

    def _ack_handler(self, aggregator_id: str) -> Handler:
        async def on_ack(delivery: Delivery) -> None:
            opened = self._party.take("ack", delivery)
            if opened is None or not isinstance(opened.message, (Receipt, Missing)):
                if delivery.payload:  # perhaps signed by a key that only a newer directory has
                    self._soon(self._watch_directory())
                return
            if opened.sender == aggregator_id:
                self.dispatch.answer(aggregator_id, opened.message)
            else:
                _log.warning("receipt-refused", sender=opened.sender, expected=aggregator_id)

        return on_ack
