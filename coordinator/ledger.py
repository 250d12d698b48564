"""RoundLedger: what the coordinator may conclude from what aggregators say (docs/protocol.md §4.3-§4.6).

Rules only, no I/O:

    COLLECTING --attend…--> (choose_check --check--> reply…-->) choose_freeze --freeze--> FROZEN
        --add_answer_chunk…--> answers --> APPLIED or FAILED

All n attendances end the collection at once; k of them that account for the whole cohort end it after a grace
time; otherwise the deadline does. The Freeze is chosen once. Sums over any other Freeze are refused, because sums of
different contributor sets interpolate to a plausible wrong number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from coordinator.differences import Choice, Past, choose
from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import lone_rungs, open_segments
from fedpruneshare.link.chunks import Joiner
from fedpruneshare.messages import (
    Acceptance,
    Attendance,
    CheckReply,
    Contribution,
    DealerCheck,
    Freeze,
    RoundPhase,
    SumShare,
)
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dealer_check import Judgement, judge
from fedpruneshare.sharing.field import Words, check_canonical, from_bytes

_MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class Failure:
    """A round that cannot be applied, and why."""

    reason: str


class RoundLedger:
    """The rules of one round at the coordinator."""

    def __init__(self, view: PlanView) -> None:
        self.view = view
        self.phase = RoundPhase.COLLECTING
        self._attendances: dict[str, Attendance] = {}
        self._freeze: Freeze | None = None
        self._freeze_digest = b""
        self._answer_bytes = 0
        self._joiners: dict[str, Joiner] = {}
        self._refusals: dict[str, str] = {}
        self._plan_refusals: dict[str, str] = {}
        self._check: DealerCheck | None = None
        self._check_digest = b""
        self._checked: frozenset[Contribution] = frozenset()
        self._replies: dict[str, dict[str, Words]] = {}
        self._acceptances: dict[bytes, set[str]] = defaultdict(set)
        self.judgement: Judgement | None = None
        self.lone_devices: tuple[str, ...] = ()
        """They uploaded and are not summed: alone on their rung, or the sum would tell too much beside another one."""
        self.revoked: frozenset[str] = frozenset()
        """Devices of which a key was revoked since the plan was made: aggregators drop what it has signed."""
        self.shut_out: frozenset[str] = frozenset()
        """Aggregators whose keys were: no sum of theirs would be taken, so none is asked for."""
        self.past = Past()
        """What earlier rounds froze: from those that count still, this one must not differ by a few devices."""

    # ------------------------------------------------------------------ attendance

    def attend(self, aggregator_id: str, attendance: Attendance) -> bool:
        """Note an authentic attendance; False if it is a repeat.

        Raises `ProtocolError` if it is for another plan, names strangers, impossible rungs or too many attempts,
        or contradicts the aggregator's earlier attendance.
        """
        plan = self.view.plan
        if (attendance.round_id, attendance.plan) != (plan.round_id, self.view.digest):
            raise ProtocolError(f"attendance for round {attendance.round_id}, expected {plan.round_id} and its plan")
        if aggregator_id not in plan.points:
            raise ProtocolError(f"attendance of {aggregator_id!r}, expected one of {sorted(plan.points)}")
        if aggregator_id in self._attendances:
            if attendance != self._attendances[aggregator_id]:
                raise ProtocolError(f"second attendance of {aggregator_id!r} differs from its first")
            return False
        self._check_uploads(attendance)
        self._attendances[aggregator_id] = attendance
        return True

    def _check_uploads(self, attendance: Attendance) -> None:
        cohort = set(self.view.plan.cohort)
        seen: dict[str, set[bytes]] = {}
        for upload in attendance.uploads:
            ids = seen.setdefault(upload.device_id, set())
            if upload.device_id not in cohort or upload.rung not in self.view.plan.rungs:
                raise ProtocolError(
                    f"attendance names {upload.device_id!r} at rung {upload.rung}, which the plan does not"
                )
            if upload.upload_id in ids or len(ids) == _MAX_ATTEMPTS:
                raise ProtocolError(f"attendance names too many uploads of {upload.device_id!r}")
            ids.add(upload.upload_id)
        if strangers := set(attendance.declined) - cohort:
            raise ProtocolError(f"attendance names {sorted(strangers)[0]!r}, which is not in the cohort")

    @property
    def attended(self) -> tuple[str, ...]:
        """Aggregators whose attendance has come."""
        return tuple(sorted(self._attendances))

    def refuse_plan(self, aggregator_id: str, plan: bytes, reason: str) -> bool:
        """Note that an aggregator will not take part in this plan; whether it is this one and that is news."""
        if plan != self.view.digest or aggregator_id not in self.view.plan.points:
            return False
        is_new = aggregator_id not in self._plan_refusals
        self._plan_refusals[aggregator_id] = reason
        return is_new

    def is_everything_in(self) -> bool:
        """Whether all aggregators of the plan have attended or refused, or too many refused for any opening."""
        names, refused = self.view.plan.points, self._plan_refusals.keys() - self._attendances.keys()
        is_hopeless = len(names) - len(refused) < self._least
        return is_hopeless or len(self._attendances) + len(refused) == len(names)

    def is_quorum_settled(self) -> bool:
        """Whether at least k attendances account for the whole cohort, so that only stragglers are missing."""
        cohort = set(self.view.plan.cohort)
        settled = [
            a
            for a in self._attendances.values()
            if cohort <= {upload.device_id for upload in a.uploads} | set(a.declined)
        ]
        return len(settled) >= self._least

    @property
    def _least(self) -> int:
        """Aggregators without which nothing can be opened: k, or as many as must accept a Freeze first."""
        return max(self.view.plan.sharing.k, self.view.plan.freeze_quorum)

    def heard_of(self) -> set[str]:
        """Devices that some aggregator or the Freeze names: they uploaded or declined."""
        heard = {c.device_id for c in self._freeze.contributors} if self._freeze else set()
        for attendance in self._attendances.values():
            heard |= {upload.device_id for upload in attendance.uploads} | set(attendance.declined)
        return heard

    # ------------------------------------------------------------------ freeze

    def choose_freeze(self) -> Freeze | Failure:
        """The contributor set: most devices, then most aggregators (docs/protocol.md §4.4).

        Devices and aggregators that failed the dealer check are left out, and devices by which the sum would tell too
        much beside one of an earlier round.
        """
        plan = self.view.plan
        best, contributors = self._choose_set(plan.sharing.k)
        if not best or len(self._attendances) < plan.freeze_quorum:
            refusals, found = _listed(self._plan_refusals), f"attendance of {len(self._attendances)} aggregators"
            name = "k" if self._least == plan.sharing.k else "freeze_quorum"
            return Failure(f"{found}, expected at least {name} = {self._least}{refusals}")
        floor = plan.min_devices_segment
        past = self.past.freezes(self.attended if plan.freeze_quorum else best)
        choice = choose(contributors, past, floor, self._without_lone, self.past.last > 0)
        if choice is None:
            return self._none_allowed(contributors)
        chosen, segments = choice
        self.lone_devices = tuple(c.device_id for c in contributors if c not in chosen)
        return Freeze(plan.round_id, self.view.digest, best, chosen, segments)

    def _none_allowed(self, contributors: tuple[Contribution, ...]) -> Failure:
        """Why nothing of what was uploaded may be summed: too few devices, or too few without the difference's."""
        kept, segments = self._without_lone(contributors)
        plan, last = self.view.plan, self.past.last
        if not segments:
            return Failure(f"{len(kept)} devices uploaded to k aggregators, expected min_devices = {plan.min_devices}")
        which = f"summed in the last rounds (differencing_rounds = {last})" if last else "frozen on the same model"
        return Failure(
            f"{len(contributors)} devices uploaded to k aggregators, but every set of at least min_devices ="
            f" {plan.min_devices} of them differs by fewer than {plan.min_devices_segment} devices from one that was"
            f" {which}"
        )

    def _without_lone(self, contributors: tuple[Contribution, ...]) -> Choice:
        """The contributors but for those alone on their rung, and the segments that these open."""
        plan = self.view.plan
        floors = (plan.min_devices, plan.min_devices_segment)
        lone = lone_rungs([c.rung for c in contributors], self.view.segment_words, *floors)
        kept = tuple(c for c in contributors if c.rung not in lone)
        return kept, open_segments([c.rung for c in kept], self.view.rungs, *floors)

    def _choose_set(self, at_least: int) -> tuple[tuple[str, ...], tuple[Contribution, ...]]:
        """At least so many aggregators, and the uploads that all of them hold."""
        liars, points = self.judgement.points if self.judgement else (), self.view.plan.points
        names = [name for name in self.attended if points[name] not in liars and name not in self.shut_out]
        holders, places = self._holders(names), range(len(names))
        subsets = [c for size in range(len(names), at_least - 1, -1) for c in combinations(places, size)]
        chosen = max(subsets, key=lambda subset: (_devices_of(holders, subset), len(subset)), default=())
        best = tuple(names[place] for place in chosen)
        return best, self._common(best) if best else ()

    def _holders(self, names: Sequence[str]) -> Counter[frozenset[int]]:
        """How many devices have uploads held alike: for each upload, who holds it, bit i for `names[i]`.

        Of 16 aggregators there are tens of thousands of subsets, but few ways that uploads are held.
        """
        masks: dict[Contribution, int] = defaultdict(int)
        for place, name in enumerate(names):
            for upload in self._attendances[name].uploads:
                masks[upload] |= 1 << place
        by_device: dict[str, set[int]] = defaultdict(set)
        for upload, mask in masks.items():
            if self._passed(upload):
                by_device[upload.device_id].add(mask)
        return Counter(frozenset(held) for held in by_device.values())

    def _common(self, aggregators: tuple[str, ...]) -> tuple[Contribution, ...]:
        """The newest upload of each device that every one of these aggregators holds."""
        held = [set(self._attendances[name].uploads) for name in aggregators]
        common: dict[str, Contribution] = {}
        for upload in self._attendances[aggregators[0]].uploads:
            if all(upload in uploads for uploads in held) and self._passed(upload):
                common[upload.device_id] = upload
        return tuple(common[device] for device in sorted(common))

    def _passed(self, upload: Contribution) -> bool:
        """Whether an upload may be summed: not if its device was revoked, and not unless it passed a dealer check.

        An upload that was kept from one aggregator would otherwise evade the check.
        """
        if upload.device_id in self.revoked:
            return False
        if self._check is None or self.judgement is None:
            return True
        return upload in self._checked and upload.device_id not in self.judgement.dealers

    def freeze(self, freeze: Freeze, digest: bytes) -> None:
        """Enter FROZEN with the Freeze the store has committed."""
        self.phase = RoundPhase.FROZEN
        self._freeze, self._freeze_digest = freeze, digest
        self._answer_bytes = self.view.sum_bytes(freeze)

    @property
    def frozen(self) -> Freeze:
        """The Freeze of this round."""
        if self._freeze is None:
            raise RuntimeError("the round is not frozen")
        return self._freeze

    # ------------------------------------------------------------------ dealer check

    def choose_check(self, challenge: bytes) -> DealerCheck | None:
        """The check of what more than k aggregators hold; None where that is not enough for any opening.

        After a check nothing else is summed: one aggregator that lost its uploads must not fail the round.

        `challenge`: 32 fresh random bytes; devices must not have known them when they dealt (docs/protocol.md §5.7).
        """
        plan = self.view.plan
        names, contributors = self._choose_set(plan.sharing.k + 1)
        rungs = [c.rung for c in contributors]
        if not contributors or not open_segments(rungs, self.view.rungs, plan.min_devices, plan.min_devices_segment):
            return None
        return DealerCheck(plan.round_id, self.view.digest, challenge, names, contributors)

    def check(self, check: DealerCheck, digest: bytes) -> None:
        """Note the check the store has committed."""
        self._check, self._check_digest = check, digest
        self._checked = frozenset(check.contributors)

    def reply(self, aggregator_id: str, reply: CheckReply) -> bool:
        """Note an aggregator's combinations; False if they are a repeat or of no concern.

        Raises `ProtocolError` for the wrong point or number of values, `SharingError` for one that is not canonical.
        """
        check, view = self._check, self.view
        if check is None or reply.check != self._check_digest or aggregator_id not in check.aggregators:
            return False
        if reply.x != view.plan.points[aggregator_id]:
            raise ProtocolError(f"check reply at x = {reply.x}, expected {view.plan.points[aggregator_id]}")
        values = from_bytes(reply.values, len(check.contributors) * view.checks, view.field)
        check_canonical(values, view.field)
        rows = values.reshape(len(check.contributors), view.checks)
        is_new = aggregator_id not in self._replies
        self._replies[aggregator_id] = {c.device_id: row for c, row in zip(check.contributors, rows, strict=True)}
        return is_new

    def is_every_reply_in(self) -> bool:
        """Whether every aggregator the check names has answered."""
        return self._check is None or len(self._replies) == len(self._check.aggregators)

    def can_judge(self) -> bool:
        """Whether more than k aggregators have answered the check."""
        return len(self._replies) > self.view.plan.sharing.k

    def judge(self) -> Judgement:
        """Whose dealing fits no polynomial, and who answered wrongly. Raises as `dealer_check.judge`."""
        points, replies = self.view.plan.points, dict(self._replies)  # late ones go on coming
        self.judgement = judge(self.view.scheme, {points[name]: given for name, given in replies.items()})
        return self.judgement

    # ------------------------------------------------------------------ answers

    def check_answer(self, aggregator_id: str, message: SumShare) -> None:
        """Whether a chunk of an answer belongs to this Freeze, before it is opened. Raises `ProtocolError`."""
        freeze = self.frozen
        if (message.round_id, message.freeze) != (freeze.round_id, self._freeze_digest):
            raise ProtocolError(
                f"sum for another freeze of round {message.round_id}, expected that of {freeze.round_id}"
            )
        if aggregator_id not in freeze.aggregators or message.x != self.view.plan.points[aggregator_id]:
            raise ProtocolError(f"sum of {aggregator_id!r} at x = {message.x}, which the freeze does not name")
        if message.suite not in self.view.plan.suites:
            raise ProtocolError(f"sum sealed with {message.suite}, expected {' or '.join(self.view.plan.suites)}")
        expected = self.view.chunks(self._answer_bytes)
        if message.chunks != expected or message.chunk >= expected:
            raise ProtocolError(f"sum chunk {message.chunk} of {message.chunks}, expected {expected} chunks")

    def add_answer_chunk(self, aggregator_id: str, chunk: int, data: bytes) -> bool:
        """Note an opened chunk; whether this aggregator's answer is complete. Raises `ProtocolError`."""
        size = self._answer_bytes
        joiner = self._joiners.get(aggregator_id)
        if joiner is None:
            joiner = self._joiners[aggregator_id] = Joiner(size, self.view.plan.chunk_bytes, limit_bytes=size)
        joiner.add(chunk, data)
        return joiner.is_complete

    def accept(self, aggregator_id: str, acceptance: Acceptance) -> None:
        """Note that an aggregator has accepted a Check or Freeze; only ever told as a reason."""
        if aggregator_id in self.view.plan.points and acceptance.of in (self._freeze_digest, self._check_digest):
            self._acceptances[acceptance.of].add(aggregator_id)

    def refuse(self, aggregator_id: str, freeze: bytes, reason: str) -> bool:
        """Note that an aggregator will not sum; whether it concerns this Freeze."""
        if self._freeze is None or freeze != self._freeze_digest or aggregator_id not in self._freeze.aggregators:
            return False
        self._refusals[aggregator_id] = reason
        return True

    def answers(self) -> dict[int, bytes]:
        """Complete answers by evaluation point: sums over the opened segments, or all contributors' fragments."""
        points = self.view.plan.points
        return {points[name]: self._joiners[name].payload() for name in self._answered()}

    def _answered(self) -> list[str]:
        return sorted(name for name, joiner in self._joiners.items() if joiner.is_complete)

    def is_every_answer_in(self) -> bool:
        """Whether every named aggregator has answered with a sum or a refusal."""
        return len({*self._answered(), *self._refusals}) >= len(self.frozen.aggregators)

    def can_open(self) -> bool:
        """Whether at least k answers are complete."""
        return len(self._answered()) >= self.view.plan.sharing.k

    def why_not_opened(self) -> str:
        """The reason of a round that ends with too few answers."""
        found, plan = f"sums of {len(self._answered())} aggregators", self.view.plan
        why = f"{found}, expected at least k = {plan.sharing.k}"
        if plan.freeze_quorum:
            accepted = len(self._acceptances[self._freeze_digest])
            why += f"; accepted by {accepted} aggregators, freeze_quorum = {plan.freeze_quorum}"
        return why + _listed(self._refusals)


def _devices_of(holders: Mapping[frozenset[int], int], subset: Sequence[int]) -> int:
    """Devices with an upload that all of these aggregators hold."""
    wanted = sum(1 << place for place in subset)
    return sum(count for masks, count in holders.items() if any(mask & wanted == wanted for mask in masks))


def _listed(refusals: Mapping[str, str]) -> str:
    return "".join(f"; {name}: {reason}" for name, reason in sorted(refusals.items()))
