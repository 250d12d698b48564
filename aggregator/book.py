"""ShareBook: what one aggregator may do with the shares it is sent. Rules only, no I/O (docs/protocol.md §4.2-§4.5).

One round is open at a time:

    (no round) --open_round--> COLLECTING --attend--> ATTENDED --freeze--> FROZEN --close_round--> (no round)

A new plan with a higher number closes whatever is open.

COLLECTING admits chunks; the first complete chunk set of an upload earns a receipt. ATTENDED admits nothing new
(LATE), so that what was receipted in time is what the attendance lists. FROZEN is entered once per round: a second,
different Freeze is refused for ever, also after a restart, because the store hands the first one back to `resume`.
Round numbers strictly rise, also after a restart; a second plan for the same number is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aggregator.rules import (
    Order,
    Summed,
    check_differences,
    check_floors,
    check_parties,
    check_privacy,
    segment_floor,
    summed,
    supports_of,
)
from aggregator.settings import AggregatorFloors
from aggregator.uploads import Attempt, Refused, Uploads
from fedpruneshare.errors import ProtocolError
from fedpruneshare.messages import Attendance, Contribution, DealerCheck, Freeze, ShareUpload, Verdict
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.prg import Prg


@dataclass(frozen=True)
class Committed:
    """How far a round had got: whether attendance was sent, and the digests of its DealerCheck and Freeze."""

    attended: bool = False
    check: bytes | None = None
    freeze: bytes | None = None


class ShareBook:
    """The rules of one aggregator for the round that is open."""

    def __init__(self, aggregator_id: str, floors: AggregatorFloors) -> None:
        self._id = aggregator_id
        self._floors = floors
        self._view: PlanView | None = None
        self._uploads = Uploads(())
        self._committed = Committed()
        self._last = Order()

    # ------------------------------------------------------------------ the round

    @property
    def view(self) -> PlanView | None:
        """The plan of the open round."""
        return self._view

    @property
    def x(self) -> int:
        """This aggregator's evaluation point in the open round."""
        return self._require().plan.points[self._id]

    @property
    def has_attended(self) -> bool:
        """Whether the attendance of the open round is fixed."""
        return self._committed.attended

    @property
    def checked(self) -> bytes | None:
        """Digest of the DealerCheck of the open round."""
        return self._committed.check

    @property
    def frozen(self) -> bytes | None:
        """Digest of the Freeze of the open round."""
        return self._committed.freeze

    def forget_up_to(self, round_id: int, model_version: int = 0) -> None:
        """Never open a round up to `round_id` again, nor one with an older model (from the store, at start)."""
        if round_id > self._last.round_id:
            self._last = Order(round_id, model_version)

    def check_new(self, view: PlanView) -> bool:
        """Whether a checked plan may open a round; False if it is that of the open round, published again.

        Raises `ProtocolError` for an older round or model, a second, different plan of the open one, or a plan below
        this aggregator's floors.
        """
        round_id = view.plan.round_id
        if self._view is not None and round_id == self._view.plan.round_id:
            if view.digest != self._view.digest:
                raise ProtocolError(f"second plan for round {round_id}, expected the one already open")
            return False
        self._last.check(view)
        check_privacy(view, self._floors)
        return True

    def open_round(self, view: PlanView) -> bool:
        """Open the round of a checked plan; False, and nothing else, where `check_new` says so. Raises as that does."""
        if not self.check_new(view):
            return False
        self._view, self._last = view, Order(view.plan.round_id, view.plan.model_version)
        self._uploads, self._committed = Uploads(view.plan.cohort), Committed()
        return True

    def resume(self, attempts: Iterable[Attempt], declined: Iterable[str], committed: Committed) -> None:
        """Put back what the store held of the open round."""
        self._uploads.resume(attempts, declined)
        self._committed = committed

    def tainted(self, devices: Iterable[str], revoked_keys: Iterable[bytes]) -> list[Attempt]:
        """What is to be deleted of the open round: the attempts of revoked devices, and what revoked keys signed."""
        return self._uploads.tainted(devices, revoked_keys)

    def expel(self, devices: Iterable[str], tainted: Iterable[Attempt]) -> None:
        """Take devices out of the open round, and forget the attempts that the store has deleted."""
        self._uploads.expel(devices, tainted)

    # ------------------------------------------------------------------ uploads

    def admit(self, device_id: str, upload: ShareUpload) -> Attempt | Refused:
        """Whether a chunk of an authentic upload may be opened and stored.

        Checks round, plan, cohort, point, rung, suite and every length that follows from the plan, before anything
        is decrypted. The attempt returned may already hold the chunk (a repeat).
        """
        if refused := self._refuse_round(device_id, upload):
            return refused
        known = self.attempts_of(device_id).get(upload.upload_id)
        if known and (known.rung, known.prg) != (upload.rung, upload.prg):
            found = f"rung {upload.rung} with {upload.prg}"
            return Refused(Verdict.MALFORMED, f"{found}, expected {known.rung} with {known.prg} as before")
        if refused := self._refuse_shape(upload):
            return refused
        if known and (known.is_complete or upload.chunk in known.stored):
            return known
        if self.has_attended:
            return Refused(Verdict.LATE, "the attendance of this round is closed")
        return known or self._uploads.begin(device_id, upload)

    def _refuse_round(self, device_id: str, upload: ShareUpload) -> Refused | None:
        if self._view is None or upload.round_id != self._view.plan.round_id:
            verdict = Verdict.LATE if upload.round_id <= self._last.round_id else Verdict.WRONG_ROUND
            open_round = self._view.plan.round_id if self._view else "none"
            return Refused(verdict, f"round {upload.round_id}, open is {open_round}")
        if upload.plan != self._view.digest:
            return Refused(Verdict.WRONG_ROUND, "made for another plan of this round")
        if not self._uploads.is_open_to(device_id):
            return Refused(Verdict.NOT_IN_COHORT, f"{device_id} is not in the cohort")
        return None

    def _refuse_shape(self, upload: ShareUpload) -> Refused | None:
        view = self._require()
        if upload.x != self.x:
            return Refused(Verdict.MALFORMED, f"point {upload.x}, expected {self.x}")
        if upload.rung not in view.plan.rungs:
            return Refused(Verdict.MALFORMED, f"rung {upload.rung}, expected one of {view.plan.rungs}")
        size = view.share_bytes(upload.rung, upload.x)
        chunks = view.chunks(size)
        if upload.chunks != chunks or upload.chunk >= chunks:
            return Refused(Verdict.MALFORMED, f"chunk {upload.chunk} of {upload.chunks}, expected {chunks} chunks")
        if upload.suite not in view.plan.suites:
            return Refused(Verdict.MALFORMED, f"sealed with {upload.suite}, expected {' or '.join(view.plan.suites)}")
        length = min(view.plan.chunk_bytes, size - upload.chunk * view.plan.chunk_bytes)
        if len(upload.sealed) != length + upload.suite.seal_bytes:
            found, expected = len(upload.sealed), length + upload.suite.seal_bytes
            return Refused(Verdict.MALFORMED, f"sealed chunk of {found} bytes, expected {expected}")
        return None

    def stored(self, attempt: Attempt, chunk: int) -> bool:
        """Note a chunk that the store has committed; whether the upload is complete by it."""
        return self._uploads.stored(attempt, chunk)

    def discard(self, attempt: Attempt) -> None:
        """Forget an attempt of which nothing is kept."""
        self._uploads.discard(attempt)

    def is_news(self, device_id: str, round_id: int, plan: bytes) -> bool:
        """Whether it is news for the open round that a device will not upload."""
        view = self._view
        if view is None or (round_id, plan) != (view.plan.round_id, view.digest) or self.has_attended:
            return False
        return self._uploads.is_undecided(device_id)

    def decline(self, device_id: str, round_id: int, plan: bytes) -> bool:
        """Note that a device will not upload; whether that is news for the open round."""
        if not self.is_news(device_id, round_id, plan):
            return False
        self._uploads.decline(device_id)
        return True

    def attempts(self) -> list[Attempt]:
        """All attempts of the open round."""
        return self._uploads.all()

    def attempts_of(self, device_id: str) -> Mapping[bytes, Attempt]:
        """The attempts of one device by upload id."""
        return self._uploads.of(device_id)

    # ------------------------------------------------------------------ closing

    def is_everyone_done(self) -> bool:
        """Whether the whole cohort has uploaded or declined, so that waiting longer is useless."""
        self._require()
        return self._uploads.is_everyone_done()

    def attendance(self) -> Attendance:
        """What the attendance would say now."""
        return self._uploads.attendance(self._require())

    def note_attendance(self) -> None:
        """Note the attendance that the store has committed: nothing new is admitted from here on."""
        self._commit(attended=True)

    def check_dealer_check(self, check: DealerCheck, digest: bytes) -> bool:
        """Whether this aggregator is to answer an authentic DealerCheck; False if it names others only.

        Raises `ProtocolError` with the reason if it must not (docs/protocol.md §5.7): a challenge is answered after the
        attendance and before the Freeze, and only the first one of a round.
        """
        view = self._require()
        if (check.round_id, check.plan) != (view.plan.round_id, view.digest):
            raise ProtocolError(f"check for round {check.round_id}, expected {view.plan.round_id} and its plan")
        if not view.checks:
            raise ProtocolError("dealer check in a round whose plan has none")
        if not self.has_attended or self.frozen is not None:
            raise ProtocolError("dealer check outside the time between attendance and freeze")
        if self.checked not in (None, digest):
            raise ProtocolError(f"second dealer check for round {check.round_id}: the first one stands")
        check_parties(check, view, self._uploads, self._id)
        return self._id in check.aggregators

    def note_check(self, digest: bytes) -> None:
        """Note the DealerCheck the store has committed: no other one is answered in this round."""
        self._commit(check=digest)

    def prg_of(self, contributor: Contribution) -> Prg:
        """Keystream algorithm of an upload that is held here."""
        return Prg(self.attempts_of(contributor.device_id)[contributor.upload_id].prg)

    def check_freeze(self, freeze: Freeze, digest: bytes, earlier: Iterable[Summed] = ()) -> bool:
        """Whether this aggregator is to sum for an authentic Freeze; False if it names others only.

        `earlier`: the sets of other rounds that this one must not differ from by a few devices (§4.4).
        Raises `ProtocolError` with the reason if it must not (docs/protocol.md §4.4, §8).
        """
        view = self._require()
        if (freeze.round_id, freeze.plan) != (view.plan.round_id, view.digest):
            raise ProtocolError(f"freeze for round {freeze.round_id}, expected {view.plan.round_id} and its plan")
        if self.frozen is not None:
            if digest != self.frozen:
                raise ProtocolError(f"second freeze for round {freeze.round_id}: the first one stands")
            return self._id in freeze.aggregators
        if self._id in freeze.aggregators and not self.has_attended:
            raise ProtocolError("freeze before this aggregator has said what it holds, expected its attendance first")
        check_parties(freeze, view, self._uploads, self._id)
        check_floors(freeze, view, self._floors)
        if not view.is_each_revealed:
            now = summed(freeze.round_id, supports_of(view), freeze)
            check_differences(now, earlier, segment_floor(view, self._floors))
        return self._id in freeze.aggregators

    def freeze(self, digest: bytes) -> None:
        """Note the Freeze the store has committed. The round is bound to it for ever."""
        self._commit(attended=True, freeze=digest)

    def close_round(self) -> None:
        """The coordinator has closed the round: nothing of it is admitted, summed or repeated any more."""
        self._view = None
        self._uploads = Uploads(())

    def _commit(self, attended: bool | None = None, check: bytes | None = None, freeze: bytes | None = None) -> None:
        old = self._committed
        self._committed = Committed(attended or old.attended, check or old.check, freeze or old.freeze)

    def _require(self) -> PlanView:
        if self._view is None:
            raise RuntimeError("no round is open")
        return self._view
