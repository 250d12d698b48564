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
from dataclasses import dataclass, field

from aggregator.settings import AggregatorFloors
from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import open_segments
from fedpruneshare.link.chunks import Bitmap
from fedpruneshare.messages import (
    Attendance,
    Contribution,
    DealerCheck,
    Freeze,
    ShareUpload,
    Verdict,
)
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.prg import Prg

#: Complete or half-done uploads kept per device and round (docs/protocol.md §4.2).
MAX_ATTEMPTS = 2


@dataclass
class Attempt:
    """One upload of one device: its rung and the chunks stored so far."""

    device_id: str
    upload_id: bytes
    rung: int
    prg: str
    chunks: int
    stored: set[int] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is stored."""
        return len(self.stored) == self.chunks

    def missing(self) -> bytes:
        """Bitmap of the chunks not stored yet."""
        return Bitmap.encode(set(range(self.chunks)) - self.stored, self.chunks)


@dataclass(frozen=True)
class Refused:
    """An upload that will not be taken, and why."""

    verdict: Verdict
    detail: str


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
        self._cohort: frozenset[str] = frozenset()
        self._attempts: dict[str, dict[bytes, Attempt]] = {}
        self._uploaded: set[str] = set()
        self._declined: set[str] = set()
        self._attended = False
        self._check: bytes | None = None
        self._freeze: bytes | None = None
        self._last_round = 0

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
        return self._attended

    @property
    def frozen(self) -> bytes | None:
        """Digest of the Freeze of the open round."""
        return self._freeze

    def forget_up_to(self, round_id: int) -> None:
        """Never open a round up to `round_id` again (from the store, at start)."""
        self._last_round = max(self._last_round, round_id)

    def open_round(self, view: PlanView) -> bool:
        """Open the round of a checked plan; False if it is the open round published again.

        Raises `ProtocolError` for an older round, a second, different plan of the open one, or a plan below this
        aggregator's floors.
        """
        round_id = view.plan.round_id
        if self._view is not None and round_id == self._view.plan.round_id:
            if view.digest != self._view.digest:
                raise ProtocolError(f"second plan for round {round_id}, expected the one already open")
            return False
        if round_id <= self._last_round:
            raise ProtocolError(f"plan for round {round_id}, expected a round after {self._last_round}")
        self._check_privacy(view)
        self._view, self._last_round = view, round_id
        self._cohort = frozenset(view.plan.cohort)
        self._attempts, self._uploaded, self._declined = {}, set(), set()
        self._attended, self._check, self._freeze = False, None, None
        return True

    def _check_privacy(self, view: PlanView) -> None:
        if view.is_plain:
            if not self._floors.allow_plain:
                raise ProtocolError(
                    "plan has updates travel unshared (reveal = plain),"
                    " expected shares: this aggregator's allow_plain is off"
                )
            return
        if view.scheme.t < self._floors.privacy_threshold:
            raise ProtocolError(
                f"plan with t = {view.scheme.t}, expected at least the privacy_threshold of this aggregator,"
                f" {self._floors.privacy_threshold}"
            )
        if view.is_each_revealed and not self._floors.allow_reveal_each:
            raise ProtocolError(
                "plan shows every single update to the coordinator (reveal = each),"
                " expected reveal = sum: this aggregator's allow_reveal_each is off"
            )

    def resume(self, attempts: Iterable[Attempt], declined: Iterable[str], committed: Committed) -> None:
        """Put back what the store held of the open round."""
        self._attempts = {}
        for attempt in attempts:
            self._attempts.setdefault(attempt.device_id, {})[attempt.upload_id] = attempt
        self._uploaded = {attempt.device_id for attempt in self.attempts() if attempt.is_complete}
        self._declined = set(declined) - self._uploaded  # who declined may have thought better of it
        self._attended, self._check, self._freeze = committed.attended, committed.check, committed.freeze

    # ------------------------------------------------------------------ uploads

    def admit(self, device_id: str, upload: ShareUpload) -> Attempt | Refused:
        """Whether a chunk of an authentic upload may be opened and stored.

        Checks round, plan, cohort, point, rung and every length that follows from the plan, before anything
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
        if self._attended:
            return Refused(Verdict.LATE, "the attendance of this round is closed")
        return known or self._new_attempt(device_id, upload)

    def _refuse_round(self, device_id: str, upload: ShareUpload) -> Refused | None:
        if self._view is None or upload.round_id != self._view.plan.round_id:
            verdict = Verdict.LATE if upload.round_id <= self._last_round else Verdict.WRONG_ROUND
            open_round = self._view.plan.round_id if self._view else "none"
            return Refused(verdict, f"round {upload.round_id}, open is {open_round}")
        if upload.plan != self._view.digest:
            return Refused(Verdict.WRONG_ROUND, "made for another plan of this round")
        if device_id not in self._cohort:
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
        length = min(view.plan.chunk_bytes, size - upload.chunk * view.plan.chunk_bytes)
        if upload.suite not in view.plan.suites:
            return Refused(Verdict.MALFORMED, f"sealed with {upload.suite}, expected {' or '.join(view.plan.suites)}")
        if len(upload.sealed) != length + upload.suite.seal_bytes:
            found, expected = len(upload.sealed), length + upload.suite.seal_bytes
            return Refused(Verdict.MALFORMED, f"sealed chunk of {found} bytes, expected {expected}")
        return None

    def _new_attempt(self, device_id: str, upload: ShareUpload) -> Attempt | Refused:
        mine = self._attempts.setdefault(device_id, {})
        if len(mine) >= MAX_ATTEMPTS:
            unfinished = [attempt for attempt in mine.values() if not attempt.is_complete]
            if not unfinished:
                return Refused(Verdict.TOO_MANY_UPLOADS, f"{len(mine)} complete uploads already, expected at most that")
            del mine[unfinished[0].upload_id]
        attempt = Attempt(device_id, upload.upload_id, upload.rung, upload.prg, upload.chunks)
        mine[upload.upload_id] = attempt
        self._declined.discard(device_id)
        return attempt

    def stored(self, attempt: Attempt, chunk: int) -> bool:
        """Note a chunk that the store has committed; whether the upload is complete by it."""
        attempt.stored.add(chunk)
        if attempt.is_complete:
            self._uploaded.add(attempt.device_id)
            self._declined.discard(attempt.device_id)
        return attempt.is_complete

    def discard(self, attempt: Attempt) -> None:
        """Forget an attempt whose share turned out malformed."""
        self._attempts.get(attempt.device_id, {}).pop(attempt.upload_id, None)

    def decline(self, device_id: str, round_id: int, plan: bytes) -> bool:
        """Note that a device will not upload; whether that is news for the open round."""
        view = self._view
        if view is None or (round_id, plan) != (view.plan.round_id, view.digest) or device_id not in self._cohort:
            return False
        if self._attended or device_id in self._declined or device_id in self._uploaded:
            return False
        self._declined.add(device_id)
        return True

    def attempts(self) -> list[Attempt]:
        """All attempts of the open round."""
        return [attempt for mine in self._attempts.values() for attempt in mine.values()]

    def attempts_of(self, device_id: str) -> Mapping[bytes, Attempt]:
        """The attempts of one device by upload id."""
        return self._attempts.get(device_id, {})

    # ------------------------------------------------------------------ closing

    def is_everyone_done(self) -> bool:
        """Whether the whole cohort has uploaded or declined, so that waiting longer is useless."""
        self._require()
        return len(self._uploaded) + len(self._declined) == len(self._cohort)  # a device is never in both

    def attend(self) -> Attendance:
        """Fix the attendance: nothing new is admitted from here on."""
        view = self._require()
        self._attended = True
        complete = [attempt for attempt in self.attempts() if attempt.is_complete]
        uploads = tuple(Contribution(a.device_id, a.upload_id, a.rung) for a in complete)
        present = {a.device_id for a in complete}
        return Attendance(view.plan.round_id, view.digest, uploads, tuple(sorted(self._declined - present)))

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
        if not self._attended or self._freeze is not None:
            raise ProtocolError("dealer check outside the time between attendance and freeze")
        if self._check not in (None, digest):
            raise ProtocolError(f"second dealer check for round {check.round_id}: the first one stands")
        self._check_parties("check", check)
        return self._id in check.aggregators

    @property
    def checked(self) -> bytes | None:
        """Digest of the DealerCheck of the open round."""
        return self._check

    def note_check(self, digest: bytes) -> None:
        """Note the DealerCheck the store has committed: no other one is answered in this round."""
        self._check = digest

    def prg_of(self, contributor: Contribution) -> Prg:
        """Keystream algorithm of an upload that is held here."""
        return Prg(self._attempts[contributor.device_id][contributor.upload_id].prg)

    def check_freeze(self, freeze: Freeze, digest: bytes) -> bool:
        """Whether this aggregator is to sum for an authentic Freeze; False if it names others only.

        Raises `ProtocolError` with the reason if it must not (docs/protocol.md §4.4, §8).
        """
        view = self._require()
        if (freeze.round_id, freeze.plan) != (view.plan.round_id, view.digest):
            raise ProtocolError(f"freeze for round {freeze.round_id}, expected {view.plan.round_id} and its plan")
        if self._freeze is not None:
            if digest != self._freeze:
                raise ProtocolError(f"second freeze for round {freeze.round_id}: the first one stands")
            return self._id in freeze.aggregators
        self._check_parties("freeze", freeze)
        self._check_floors(freeze, view)
        return self._id in freeze.aggregators

    def _check_parties(self, what: str, asked: Freeze | DealerCheck) -> None:
        plan, names = self._require().plan, asked.aggregators
        if len(set(names)) != len(names) or not set(names) <= set(plan.points) or len(names) < plan.sharing.k:
            raise ProtocolError(f"{what} names aggregators {names}, expected at least k = {plan.sharing.k} of the plan")
        devices = [c.device_id for c in asked.contributors]
        if len(set(devices)) != len(devices):
            raise ProtocolError(f"{what} names a device twice")
        if self._id not in names:
            return
        for c in asked.contributors:
            attempt = self.attempts_of(c.device_id).get(c.upload_id)
            if attempt is None or not attempt.is_complete or attempt.rung != c.rung:
                raise ProtocolError(
                    f"{what} names an upload of {c.device_id!r} that is not held here complete at that rung"
                )

    def _check_floors(self, freeze: Freeze, view: PlanView) -> None:
        floor = max(self._floors.min_devices, view.plan.min_devices)
        floor_segment = max(self._floors.min_devices_segment, view.plan.min_devices_segment)
        allowed = open_segments([c.rung for c in freeze.contributors], view.rungs, floor, floor_segment)
        if not allowed:
            raise ProtocolError(f"freeze of {len(freeze.contributors)} devices, expected at least {floor}")
        if freeze.segments != allowed:
            raise ProtocolError(f"freeze opens segments {freeze.segments}, expected {allowed} for these contributors")

    def freeze(self, digest: bytes) -> None:
        """Note the Freeze the store has committed. The round is bound to it for ever."""
        self._attended, self._freeze = True, digest

    def close_round(self) -> None:
        """The coordinator has closed the round: nothing of it is admitted, summed or repeated any more."""
        self._view = None
        self._attempts, self._uploaded, self._declined = {}, set(), set()

    def _require(self) -> PlanView:
        if self._view is None:
            raise RuntimeError("no round is open")
        return self._view
