"""The coordinator's decisions of a round: whom to check, whom to freeze (docs/protocol.md §4.4, §5.7).

Each is committed before it is sent, and sent again unchanged: a restart repeats, never contradicts.
"""

from __future__ import annotations

import asyncio
import os

import msgspec
import structlog

from coordinator.desk import Desk
from coordinator.differences import Frozen, Past
from coordinator.ledger import Failure, RoundLedger
from coordinator.outcomes import Seconds
from coordinator.publishing import Publisher
from coordinator.settings import RoundSettings
from coordinator.store import FrozenRound, OpenRound, RoundStore
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import SharingError
from fedpruneshare.floors import RETRY_ROUNDS
from fedpruneshare.messages import DealerCheck, Freeze, RoundPlan, decode, digest, encode
from fedpruneshare.sharing.dealer_check import Judgement

_log = structlog.get_logger()


class Decider:
    """Chooses, commits and sends the DealerCheck and the Freeze of the round on the desk."""

    def __init__(self, desk: Desk, store: RoundStore, publisher: Publisher, rounds: RoundSettings) -> None:
        self._desk, self._store, self._publisher, self._rounds = desk, store, publisher, rounds

    async def send(self, within_s: float | None = None) -> None:
        """Publish the newest decision, again or for the first time; at most so long, where the broker is away."""
        limit_s = self._rounds.sum_timeout_s if within_s is None else within_s
        await self._publisher.send(self._desk.decision, limit_s)

    # ------------------------------------------------------------------ dealer check

    async def check_dealers(self, begun: OpenRound, seconds: Seconds) -> Failure | None:
        """Leave out devices whose shares fit no polynomial, if the plan has checks (docs/protocol.md §5.7)."""
        desk, ledger, rounds = self._desk, self._desk.round, self._rounds
        if not ledger.view.checks or not self._open_check(begun):
            return None
        await self.send()
        await desk.wait_resending(
            lambda: ledger.is_every_reply_in() or ledger.can_judge(), rounds.sum_timeout_s, self.send
        )
        await desk.wait_resending(ledger.is_every_reply_in, rounds.grace_s if ledger.can_judge() else 0.0, self.send)
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
            chosen = self._desk.round.choose_check(os.urandom(32))
            if chosen is None:
                _log.warning(
                    "dealers-not-checked", round_id=begun.round_id, reason="too few uploads are held by more than k"
                )
                return False
            body = encode(chosen)
            self._store.note_check(begun.round_id, body)
        check = decode("dealer-check", body)
        assert isinstance(check, DealerCheck)
        self._desk.round.check(check, digest(body))
        self._desk.decision = ("dealer-check", body)
        return True

    # ------------------------------------------------------------------ freeze

    def recall(self, ledger: RoundLedger) -> None:
        """Tell a ledger which earlier Freezes aggregators will compare its own with.

        Those of rounds that failed just before it on the same model, and with `differencing_rounds` those of the last
        sums of each aggregator. Where every update is shown anyway no difference shows more, and nobody compares.
        """
        plan, last = ledger.view.plan, self._rounds.differencing_rounds
        if ledger.view.is_each_revealed:
            return
        retried = tuple(map(_freeze_of, self._store.frozen_in_vain(plan.round_id - RETRY_ROUNDS)))
        ledger.past = Past(retried, tuple(map(_frozen, self._store.frozen() if last else ())), last)

    def frozen_before(self, begun: OpenRound) -> Freeze | None:
        """The Freeze of this round, if it was committed before a restart."""
        if begun.freeze is None:
            return None
        freeze = _freeze_of(begun.freeze)
        if begun.judged is not None:
            self._desk.round.judgement = msgspec.json.decode(begun.judged, type=Judgement)
        return self._enter_frozen(freeze, begun.freeze)

    def choose_freeze(self) -> Freeze | Failure:
        """Choose the Freeze of this round and commit it."""
        ledger = self._desk.round
        freeze = ledger.choose_freeze()
        if isinstance(freeze, Failure):
            return freeze
        body = encode(freeze)
        reach("coordinator.freeze-chosen")
        self._store.freeze(freeze.round_id, body)
        found = {"contributors": len(freeze.contributors), "left_out": ledger.lone_devices}
        _log.info("frozen", round_id=freeze.round_id, by=freeze.aggregators, **found)
        return self._enter_frozen(freeze, body)

    def _enter_frozen(self, freeze: Freeze, body: bytes) -> Freeze:
        self._desk.round.freeze(freeze, digest(body))
        self._desk.decision = ("freeze", body)
        return freeze

    async def send_freeze(self) -> None:
        """Publish the committed Freeze."""
        await self.send()
        reach("coordinator.freeze-sent")

    async def await_sums(self) -> None:
        """Wait for every named sum; with k of them only a grace time longer."""
        desk, ledger, rounds = self._desk, self._desk.round, self._rounds
        await desk.wait_resending(
            lambda: ledger.is_every_answer_in() or ledger.can_open(), rounds.sum_timeout_s, self.send
        )
        await desk.wait_resending(ledger.is_every_answer_in, rounds.grace_s if ledger.can_open() else 0.0, self.send)


def _freeze_of(body: bytes) -> Freeze:
    freeze = decode("freeze", body)
    assert isinstance(freeze, Freeze)
    return freeze


def _frozen(stored: FrozenRound) -> Frozen:
    plan = decode("round-plan", stored.plan)
    assert isinstance(plan, RoundPlan)
    return Frozen(_freeze_of(stored.freeze), plan.freeze_quorum > 0, stored.summed_by)
