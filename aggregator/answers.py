"""What an aggregator answers a DealerCheck and a Freeze with, and when it may (docs/protocol.md §4.4, §4.5, §5.7).

A Freeze (or check) is committed, then accepted in public where the plan wants a quorum, and answered once enough
aggregators have accepted the same one: so a coordinator that shows two of them different ones gets no answer at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from aggregator.burning import Burner
from aggregator.desk import Desk
from aggregator.post import Letter
from aggregator.quorum import Quorum
from aggregator.rules import Summed, summed, supports_of
from aggregator.store import SumGiven
from aggregator.summing import answer_freeze, reply_to_check
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import ProtocolError, SignatureError
from fedpruneshare.link import Delivery
from fedpruneshare.link.chunks import cut
from fedpruneshare.messages import Acceptance, CheckReply, DealerCheck, Freeze, SumShare, decode, encode
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import Opened, PublicKeys, Suite, seal, sum_context
from fedpruneshare.topics import Role

_log = structlog.get_logger()
#: Between two sendings of one acceptance: others are reminded, and reminded of, at most so often.
_REMIND_S: Final = 1.0


class Answers:
    """Judges what the coordinator asks for, and answers it. `flush`: has everything that was received committed."""

    def __init__(self, desk: Desk, flush: Callable[[], None], differencing_rounds: int) -> None:
        self._desk, self._flush, self._differencing_rounds = desk, flush, differencing_rounds
        self._quorum, self._burner = Quorum(), Burner(desk.store, desk.disk, self.repeat_sum)
        self._check: tuple[DealerCheck, bytes] | None = None
        self._reply: bytes | None = None
        self._accepted_at: dict[bytes, float] = {}
        self._reminder: asyncio.TimerHandle | None = None

    def begin_round(self, view: PlanView) -> None:
        """A round has opened, or been put back from the store."""
        self.end_round()
        self._quorum = Quorum(view.plan.freeze_quorum, view.plan.points)
        self._quorum.resume(self._desk.store.acceptances(view.plan.round_id))

    def end_round(self) -> None:
        """Nothing of the round is answered any more; what is left of its shares is burned."""
        self.stop()
        self._check, self._reply, self._accepted_at = None, None, {}
        self._burner.start()

    def stop(self) -> None:
        """Do nothing by itself any more."""
        self._burner.stop()
        if self._reminder is not None:
            self._reminder.cancel()
        self._reminder = None

    # ------------------------------------------------------------------ dealer check

    async def on_check(self, delivery: Delivery) -> None:
        """A DealerCheck."""
        opened = self._desk.party.take("check", delivery)
        if opened is not None and isinstance(opened.message, DealerCheck):
            self._desk.disk.keep("check", partial(self._answer_check, opened, opened.message))

    def _answer_check(self, opened: Opened, check: DealerCheck) -> None:
        book = self._desk.book
        if book.view is None:
            return
        try:
            is_ours = book.check_dealer_check(check, opened.digest)
        except ProtocolError as error:
            _log.warning("check-refused", round_id=check.round_id, reason=str(error))
            return
        if book.checked is None:
            self._desk.store.note_check(check.round_id, opened.digest)
            book.note_check(opened.digest)
        self._check = (check, opened.digest) if is_ours else None
        self._accept(opened.digest)
        self._reply_if_accepted()

    def _reply_if_accepted(self) -> None:
        if self._check is None or self._desk.book.frozen is not None or not self._is_accepted(self._check[1]):
            return
        payload = self._sign_reply(*self._check)
        self._desk.publish(Letter("checked", lambda: payload))

    def _sign_reply(self, check: DealerCheck, check_digest: bytes) -> bytes:
        """The signed answer, computed once: a check is repeated often, and takes a pass over every share."""
        if self._reply is None:
            book = self._desk.book
            shares = self._desk.store.shares(check.round_id, check.contributors)
            values = reply_to_check(self._desk.view, book.x, check.challenge, shares, book.prg_of)
            self._reply = self._desk.party.sign(CheckReply(check.round_id, check_digest, book.x, values))
        return self._reply

    # ------------------------------------------------------------------ freeze

    async def on_freeze(self, delivery: Delivery) -> None:
        """A Freeze."""
        opened = self._desk.party.take("freeze", delivery)
        if opened is not None and isinstance(opened.message, Freeze):
            self._desk.disk.keep("freeze", partial(self._answer_freeze, opened, opened.message))

    def _answer_freeze(self, opened: Opened, freeze: Freeze) -> None:
        book = self._desk.book
        if book.view is None:
            return
        self._flush()
        try:
            is_ours = book.check_freeze(freeze, opened.digest, () if book.frozen else self._earlier())
        except ProtocolError as error:
            _log.warning("freeze-refused", round_id=freeze.round_id, reason=str(error))
            self._desk.post.refuse("sum", freeze.round_id, opened.digest, str(error))
            return
        if book.frozen is None:
            reach("aggregator.freeze-persisted.before")
            self._desk.store.freeze(freeze.round_id, opened.body, opened.digest)
            book.freeze(opened.digest)
            reach("aggregator.freeze-persisted.after")
            _log.info("frozen", round_id=freeze.round_id, contributors=len(freeze.contributors), is_ours=is_ours)
        self._sum(freeze, opened.digest)

    def _earlier(self) -> list[Summed]:
        """The sets that this round's must not differ from by a few devices."""
        plan, found = self._desk.view.plan, []
        for given in self._desk.store.sums_given(plan.round_id, plan.model_version, self._differencing_rounds):
            freeze = decode("freeze", given.freeze)
            assert isinstance(freeze, Freeze)
            found.append(summed(given.round_id, given.supports, freeze))
        return found

    # ------------------------------------------------------------------ acceptance

    def _accept(self, of: bytes) -> None:
        """Say in public that this one was committed, where the plan wants a quorum."""
        if not self._quorum.is_wanted:
            return
        self._quorum.add(of, self._desk.party.ident)
        self._publish_acceptance(of)

    def _publish_acceptance(self, of: bytes) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._accepted_at.get(of, -_REMIND_S) >= _REMIND_S:
            self._accepted_at[of] = loop.time()
            payload = self._desk.party.sign(Acceptance(self._desk.view.plan.round_id, of))
            self._desk.publish(Letter("accepted", lambda: payload, of))
        if self._reminder is None and not self._quorum.is_met(of):
            self._reminder = loop.call_later(_REMIND_S, self._remind)

    def _remind(self) -> None:
        """Whoever had accepted it before this aggregator began to listen says so again when it hears of it."""
        self._reminder, book = None, self._desk.book
        wanted = book.frozen or book.checked
        if book.view is not None and wanted is not None and not self._quorum.is_met(wanted):
            self._publish_acceptance(wanted)

    async def on_acceptance(self, delivery: Delivery) -> None:
        """What another aggregator has accepted."""
        opened = self._desk.party.take("accepted", delivery)
        if opened is None or not isinstance(opened.message, Acceptance):
            return
        if opened.sender != self._desk.party.ident and self._quorum.is_wanted:
            step = partial(self._note_acceptance, opened.sender, opened.message)
            self._desk.disk.keep(f"acceptance of {opened.sender}", step)

    def _note_acceptance(self, aggregator_id: str, message: Acceptance) -> None:
        book, of = self._desk.book, message.of
        if book.view is None or message.round_id != book.view.plan.round_id:
            return
        if self._quorum.knows(of, aggregator_id):
            if of in (book.frozen, book.checked):
                self._publish_acceptance(of)  # it says so again: it lacks somebody's
            return
        if not self._quorum.takes(aggregator_id):
            return
        self._desk.store.note_acceptance(message.round_id, of, aggregator_id)
        self._quorum.add(of, aggregator_id)
        self._reply_if_accepted()
        if of == book.frozen:
            self.repeat_sum()

    def _is_accepted(self, of: bytes) -> bool:
        return not self._quorum.is_wanted or self._quorum.is_met(of)

    # ------------------------------------------------------------------ sum

    def repeat_sum(self) -> None:
        """Answer the Freeze of the open round (again): answers are idempotent and may have been lost."""
        stored = self._desk.store.latest()
        if stored is None or not self._desk.is_open_round(stored.round_id):
            return
        if stored.freeze is not None and stored.freeze_digest is not None:
            freeze = decode("freeze", stored.freeze)
            assert isinstance(freeze, Freeze)
            self._sum(freeze, stored.freeze_digest)

    def _sum(self, freeze: Freeze, freeze_digest: bytes) -> None:
        """Accept, add up, burn the shares, and send the sum once they are gone and enough others have accepted it."""
        if self._quorum.is_wanted:  # named or not: who helps it to its sum must refuse what is too like it
            self._note_sum(freeze)
        self._accept(freeze_digest)
        stored = self._desk.store.latest()
        if stored is None or stored.round_id != freeze.round_id or self._desk.party.ident not in freeze.aggregators:
            return
        answer = stored.answer
        if answer is None:
            book = self._desk.book
            shares = self._desk.store.shares(freeze.round_id, freeze.contributors)
            answer = answer_freeze(self._desk.view, book.x, freeze.segments, shares, book.prg_of)
            reach("aggregator.sum-computed")
            reach("aggregator.sum-persisted.before")
            self._desk.store.burn(freeze.round_id, answer)
            reach("aggregator.sum-persisted.after")
        if self._burner.start():
            return  # it comes back here
        if self._is_accepted(freeze_digest):
            self._note_sum(freeze)
            self._send_sum(freeze, freeze_digest, answer)

    def _note_sum(self, freeze: Freeze) -> None:
        """Commit whom a sum is, or may become, of: what later ones are compared with."""
        view = self._desk.view
        self._desk.store.note_sum(SumGiven(freeze.round_id, view.plan.model_version, supports_of(view), encode(freeze)))

    def _send_sum(self, freeze: Freeze, freeze_digest: bytes, answer: bytes) -> None:
        party, x = self._desk.party, self._desk.book.x
        receiver = party.directory.coordinator_id
        try:
            key = party.sealing_keys(Role.COORDINATOR, receiver)
            suite = self._suite_for(key)
        except SignatureError as error:
            _log.error("sum-not-sent", round_id=freeze.round_id, reason=str(error))
            return
        pieces = cut(answer, self._desk.view.plan.chunk_bytes)

        def sealed_chunk(index: int) -> bytes:
            position = (x, index, len(pieces))
            context = sum_context(party.directory.federation, freeze_digest, (party.ident, receiver), position)
            sealed = seal(key, bytes(pieces[index]), context, suite)
            return party.sign(SumShare(freeze.round_id, freeze_digest, *position, suite, key.key_id, sealed))

        for index in range(len(pieces)):
            self._desk.publish(Letter("sum", partial(sealed_chunk, index), index))

    def _suite_for(self, key: PublicKeys) -> Suite:
        """The first suite of the plan that this key can open. Raises `SignatureError` where there is none."""
        suites = self._desk.view.plan.suites
        for suite in suites:
            if key.hybrid or not suite.is_hybrid:
                return suite
        raise SignatureError(f"key {key.key_id.hex()} of the coordinator opens none of {', '.join(suites)}")
