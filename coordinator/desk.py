"""The desk of the open round: what arrives for it, and waiting for that (docs/protocol.md §2, §4.3-§4.6).

Every message is authenticated by `Party.take`, those of devices once they are counted, judged by the round's ledger,
and wakes whoever waits. What the desk knows of devices goes to the store at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from coordinator.ledger import RoundLedger
from coordinator.store import RoundStore
from fedpruneshare.errors import PeerError, ProtocolError, StoreError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.messages import (
    Acceptance,
    Attendance,
    CheckReply,
    Heartbeat,
    Hello,
    Refusal,
    RoundPhase,
    SumShare,
)
from fedpruneshare.party import Party
from fedpruneshare.quota import Turnstile, usual_allowance
from fedpruneshare.sealing import sum_context

_log = structlog.get_logger()
#: Between two sendings of one Freeze: an aggregator whose connection flaps must not set off a storm of answers.
_RESEND_PAUSE_S = 0.5
#: Hellos that come within this are noted together.
_GREETING_PAUSE_S = 0.005
_FULL_DISK_PAUSE_S = 5.0


class Desk:
    """Takes in what is said to the coordinator. `ledger`: the open round's, or None between rounds.

    `decision`: the Check or Freeze that was sent last, as (kind, body); `is_repeat_wanted`: an aggregator may have
    missed it.
    """

    def __init__(self, party: Party, store: RoundStore, link: Link) -> None:
        self._party, self._store, self._link = party, store, link
        self.ledger: RoundLedger | None = None
        self.decision: tuple[str, bytes] | None = None
        self.is_repeat_wanted = False
        self._changed = asyncio.Event()
        self._greetings: dict[str, int] = {}
        self._turnstiles = {channel: Turnstile(party, channel) for channel in ("hello", "heartbeat")}

    async def subscribe(self) -> None:
        """Subscribe to everything the coordinator reads."""
        topics = self._party.topics
        for channel, handler in (
            ("hello", self._on_hello),
            ("heartbeat", self._on_heartbeat),
            ("attendance", self._on_attendance),
            ("checked", self._on_reply),
            ("accepted", self._on_acceptance),
            ("sum", self._on_sum),
        ):
            await self._link.subscribe(topics.every(channel), handler)

    async def hear(self, devices: Iterable[str], are_heard: Callable[[], bool], within_s: float) -> None:
        """Have the broker hand over what it keeps of these devices' hellos. Raises `LinkError`."""
        topics = [self._party.topics.name("hello", device) for device in devices]
        try:
            await asyncio.gather(*(self._link.subscribe(topic, self._on_hello) for topic in topics))
            await self.wait_until(are_heard, within_s)
        finally:
            await asyncio.gather(*(self._link.unsubscribe(topic) for topic in topics))

    def open(self, ledger: RoundLedger) -> None:
        """Begin, or take up again, a round."""
        self.ledger, self.decision, self.is_repeat_wanted = ledger, None, False
        for channel, turnstile in self._turnstiles.items():
            turnstile.open_round(usual_allowance(channel, ledger.view.plan.deadline_s))

    def close(self) -> None:
        """No round is open any more."""
        self.ledger, self.decision, self.is_repeat_wanted = None, None, False

    @property
    def round(self) -> RoundLedger:
        """The ledger of the open round."""
        assert self.ledger is not None
        return self.ledger

    # ------------------------------------------------------------------ waiting

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._changed.set()

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something that arrived makes the predicate true, at most so long; whether it is."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while not predicate():
            left = end - clock()
            if left <= 0:
                return False
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return predicate()
        return True

    async def wait_resending(
        self, predicate: Callable[[], bool], timeout_s: float, resend: Callable[[float], Awaitable[None]]
    ) -> None:
        """Wait, and send Check or Freeze again when an aggregator came back; not more often than the pause allows."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while not predicate() and (left := end - clock()) > 0:
            await self.wait_until(lambda: predicate() or self.is_repeat_wanted, left)
            if self.is_repeat_wanted and not predicate():
                self.is_repeat_wanted = False
                await resend(left)
                await self.wait_until(predicate, min(left, _RESEND_PAUSE_S))

    # ------------------------------------------------------------------ of devices

    async def _on_hello(self, delivery: Delivery) -> None:
        opened = self._turnstiles["hello"].take(delivery)
        if opened and isinstance(opened.message, Hello):
            if not self._greetings:  # a fleet says hello at once: those that come together are one commit
                asyncio.get_running_loop().call_later(_GREETING_PAUSE_S, self._save_greetings)
            self._greetings[opened.sender] = opened.message.rung_limit

    def _save_greetings(self) -> None:
        """Note who said hello. A broker keeps hellos, so that a crash before this loses none."""
        try:
            self._store.greet(self._greetings)
        except StoreError as error:
            _log.error("greetings-wait", devices=len(self._greetings), reason=str(error))
            asyncio.get_running_loop().call_later(_FULL_DISK_PAUSE_S, self._save_greetings)
            return
        self._greetings = {}
        self.wake()

    async def _on_heartbeat(self, delivery: Delivery) -> None:
        opened = self._turnstiles["heartbeat"].take(delivery)
        if opened and isinstance(opened.message, Heartbeat):
            is_held_back = opened.message.constraint not in ("", "plan", "rung_max")
            try:
                self._store.note_rung(opened.sender, opened.message.rung if is_held_back else None)
            except StoreError as error:  # it says so again after the next round
                _log.error("rung-not-noted", device=opened.sender, reason=str(error))

    # ------------------------------------------------------------------ of aggregators

    async def _on_attendance(self, delivery: Delivery) -> None:
        opened = self._party.take("attendance", delivery)
        if opened is None or self.ledger is None:
            return
        if isinstance(opened.message, Refusal):
            if self.ledger.refuse_plan(opened.sender, opened.message.of, opened.message.reason):
                _log.warning("plan-refused", aggregator=opened.sender, reason=opened.message.reason)
            self.wake()
            return
        assert isinstance(opened.message, Attendance)
        try:
            is_new = self.ledger.attend(opened.sender, opened.message)
        except ProtocolError as error:
            _log.warning("attendance-refused", aggregator=opened.sender, reason=str(error))
            return
        if is_new:
            _log.info("attended", aggregator=opened.sender, uploads=len(opened.message.uploads))
        self.is_repeat_wanted = self.decision is not None  # it may have missed the Check or the Freeze
        self.wake()

    async def _on_reply(self, delivery: Delivery) -> None:
        opened = self._party.take("checked", delivery)
        if opened is None or not isinstance(opened.message, CheckReply) or self.ledger is None:
            return
        try:
            self.ledger.reply(opened.sender, opened.message)
        except PeerError as error:
            _log.warning("check-reply-refused", aggregator=opened.sender, reason=str(error))
        self.wake()

    async def _on_acceptance(self, delivery: Delivery) -> None:
        opened = self._party.take("accepted", delivery)
        if opened is None or not isinstance(opened.message, Acceptance) or self.ledger is None:
            return
        self.ledger.accept(opened.sender, opened.message)

    async def _on_sum(self, delivery: Delivery) -> None:
        opened = self._party.take("sum", delivery)
        ledger = self.ledger
        if opened is None or ledger is None or ledger.phase is not RoundPhase.FROZEN:
            return
        message = opened.message
        if isinstance(message, Refusal):
            if ledger.refuse(opened.sender, message.of, message.reason):
                _log.warning("freeze-refused", aggregator=opened.sender, reason=message.reason)
        elif isinstance(message, SumShare):
            self._take_sum(ledger, opened.sender, message)
        self.wake()

    def _take_sum(self, ledger: RoundLedger, sender: str, message: SumShare) -> None:
        parties, position = (sender, self._party.ident), (message.x, message.chunk, message.chunks)
        context = sum_context(self._party.directory.federation, message.freeze, parties, position)
        try:
            ledger.check_answer(sender, message)
            opened = self._party.identity.unseal(message.sealed, context, message.suite, message.key)
            ledger.add_answer_chunk(sender, message.chunk, opened)
        except PeerError as error:
            _log.warning("sum-refused", aggregator=sender, reason=str(error))
