"""RoundLedger: what the coordinator may conclude from what aggregators say (docs/protocol.md §4.3-§4.6).

Rules only, no I/O:

    COLLECTING --attend…--> choose_freeze --freeze--> FROZEN --add_sum_chunk…--> sums --> APPLIED or FAILED

All n attendances end the collection at once; k of them that account for the whole cohort end it after a grace
time; otherwise the deadline does. The Freeze is chosen once. Sums over any other Freeze are refused, because sums of
different contributor sets interpolate to a plausible wrong number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import contributor_counts, open_segments
from fedpruneshare.link.chunks import Joiner
from fedpruneshare.messages import Attendance, Contribution, Freeze, RoundPhase, SumShare
from fedpruneshare.plan import PlanView

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
        self._joiners: dict[str, Joiner] = {}
        self._refusals: dict[str, str] = {}

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

    def is_everything_in(self) -> bool:
        """Whether all aggregators of the plan have attended."""
        return len(self._attendances) == len(self.view.plan.points)

    def is_quorum_settled(self) -> bool:
        """Whether at least k attendances account for the whole cohort, so that only stragglers are missing."""
        cohort = set(self.view.plan.cohort)
        settled = [
            a
            for a in self._attendances.values()
            if cohort <= {upload.device_id for upload in a.uploads} | set(a.declined)
        ]
        return len(settled) >= self.view.plan.sharing.k

    def heard_of(self) -> set[str]:
        """Devices that some aggregator or the Freeze names: they uploaded or declined."""
        heard = {c.device_id for c in self._freeze.contributors} if self._freeze else set()
        for attendance in self._attendances.values():
            heard |= {upload.device_id for upload in attendance.uploads} | set(attendance.declined)
        return heard

    # ------------------------------------------------------------------ freeze

    def choose_freeze(self) -> Freeze | Failure:
        """The contributor set: most devices, then most aggregators (docs/protocol.md §4.4)."""
        plan = self.view.plan
        if len(self._attendances) < plan.sharing.k:
            return Failure(
                f"attendance of {len(self._attendances)} aggregators, expected at least k = {plan.sharing.k}"
            )
        names = self.attended
        subsets = [c for size in range(len(names), plan.sharing.k - 1, -1) for c in combinations(names, size)]
        best = max(subsets, key=lambda subset: (len(self._common(subset)), len(subset)))
        contributors = self._common(best)
        rungs = [c.rung for c in contributors]
        segments = open_segments(rungs, self.view.rungs, plan.min_devices, plan.min_devices_segment)
        if not segments:
            return Failure(
                f"{len(contributors)} devices uploaded to k aggregators, expected min_devices = {plan.min_devices}"
            )
        return Freeze(plan.round_id, self.view.digest, best, contributors, segments)

    def _common(self, aggregators: tuple[str, ...]) -> tuple[Contribution, ...]:
        """The newest upload of each device that every one of these aggregators holds."""
        held = [set(self._attendances[name].uploads) for name in aggregators]
        common: dict[str, Contribution] = {}
        for upload in self._attendances[aggregators[0]].uploads:
            if all(upload in uploads for uploads in held):
                common[upload.device_id] = upload
        return tuple(common[device] for device in sorted(common))

    def freeze(self, freeze: Freeze, digest: bytes) -> None:
        """Enter FROZEN with the Freeze the store has committed."""
        self.phase = RoundPhase.FROZEN
        self._freeze, self._freeze_digest = freeze, digest

    @property
    def frozen(self) -> Freeze:
        """The Freeze of this round."""
        if self._freeze is None:
            raise RuntimeError("the round is not frozen")
        return self._freeze

    def contributors_per_segment(self) -> list[int]:
        """How many of the frozen devices reach each segment."""
        return contributor_counts([c.rung for c in self.frozen.contributors], self.view.rungs)

    # ------------------------------------------------------------------ sums

    def check_sum(self, aggregator_id: str, message: SumShare) -> None:
        """Whether a sum chunk belongs to this Freeze, before it is opened. Raises `ProtocolError`."""
        freeze = self.frozen
        if (message.round_id, message.freeze) != (freeze.round_id, self._freeze_digest):
            raise ProtocolError(
                f"sum for another freeze of round {message.round_id}, expected that of {freeze.round_id}"
            )
        if aggregator_id not in freeze.aggregators or message.x != self.view.plan.points[aggregator_id]:
            raise ProtocolError(f"sum of {aggregator_id!r} at x = {message.x}, which the freeze does not name")
        expected = self.view.chunks(self.view.sum_bytes(freeze.segments))
        if message.chunks != expected or message.chunk >= expected:
            raise ProtocolError(f"sum chunk {message.chunk} of {message.chunks}, expected {expected} chunks")

    def add_sum_chunk(self, aggregator_id: str, chunk: int, data: bytes) -> bool:
        """Note an opened sum chunk; whether this aggregator's sum is complete. Raises `ProtocolError`."""
        size = self.view.sum_bytes(self.frozen.segments)
        joiner = self._joiners.get(aggregator_id)
        if joiner is None:
            joiner = self._joiners[aggregator_id] = Joiner(size, self.view.plan.chunk_bytes, limit_bytes=size)
        joiner.add(chunk, data)
        return joiner.is_complete

    def refuse(self, aggregator_id: str, freeze: bytes, reason: str) -> bool:
        """Note that an aggregator will not sum; whether it concerns this Freeze."""
        if self._freeze is None or freeze != self._freeze_digest or aggregator_id not in self._freeze.aggregators:
            return False
        self._refusals[aggregator_id] = reason
        return True

    def sums(self) -> dict[int, NDArray[np.uint32]]:
        """Complete sums by evaluation point, uint32 words over the opened segments."""
        points = self.view.plan.points
        done = {name: self._joiners[name].payload() for name in self._summed()}
        return {points[name]: np.frombuffer(payload, dtype="<u4") for name, payload in done.items()}

    def _summed(self) -> list[str]:
        return sorted(name for name, joiner in self._joiners.items() if joiner.is_complete)

    def is_every_sum_in(self) -> bool:
        """Whether every named aggregator has answered with a sum or a refusal."""
        return len(self._summed()) + len(self._refusals) >= len(self.frozen.aggregators)

    def can_open(self) -> bool:
        """Whether at least k sums are complete."""
        return len(self._summed()) >= self.view.plan.sharing.k

    def why_not_opened(self) -> str:
        """The reason of a round that ends with too few sums."""
        refusals = "".join(f"; {name}: {reason}" for name, reason in sorted(self._refusals.items()))
        return f"sums of {len(self._summed())} aggregators, expected at least k = {self.view.plan.sharing.k}{refusals}"
