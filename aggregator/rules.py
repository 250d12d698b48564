"""What an aggregator refuses on its own account, whatever a signed plan or Freeze says (docs/protocol.md §4.4, §8).

Every rule raises `ProtocolError` with what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aggregator.settings import AggregatorFloors
from aggregator.uploads import Uploads
from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import DealerCheck, Freeze
from fedpruneshare.plan import PlanView


@dataclass(frozen=True)
class Order:
    """Where the last plan stood: its round, and the version of its model."""

    round_id: int = 0
    model_version: int = 0

    def check(self, view: PlanView) -> None:
        """Rounds strictly rise; within an epoch the model never falls back to an older one."""
        round_id, version = view.plan.round_id, view.plan.model_version
        if round_id <= self.round_id:
            raise ProtocolError(f"plan for round {round_id}, expected a round after {self.round_id}")
        is_same_epoch = round_id // ROUNDS_PER_EPOCH == self.round_id // ROUNDS_PER_EPOCH
        if is_same_epoch and version < self.model_version:
            raise ProtocolError(f"plan with version {version} of the model, expected {self.model_version} or later")


def check_privacy(view: PlanView, floors: AggregatorFloors) -> None:
    """The plan shows nobody more than this aggregator's own settings allow (docs/protocol.md §8.3)."""
    if view.is_plain:
        if not floors.allow_plain:
            raise ProtocolError(
                "plan has updates travel unshared (reveal = plain),"
                " expected shares: this aggregator's allow_plain is off"
            )
        return
    if view.scheme.t < floors.privacy_threshold:
        raise ProtocolError(
            f"plan with t = {view.scheme.t}, expected at least the privacy_threshold of this aggregator,"
            f" {floors.privacy_threshold}"
        )
    if view.is_each_revealed and not floors.allow_reveal_each:
        raise ProtocolError(
            "plan shows every single update to the coordinator (reveal = each),"
            " expected reveal = sum: this aggregator's allow_reveal_each is off"
        )
    if view.plan.freeze_quorum < floors.freeze_quorum:
        raise ProtocolError(
            f"plan with freeze_quorum = {view.plan.freeze_quorum}, expected at least that of this aggregator,"
            f" {floors.freeze_quorum}"
        )


def check_parties(asked: Freeze | DealerCheck, view: PlanView, uploads: Uploads, aggregator_id: str) -> None:
    """At least k aggregators of the plan, devices of the roster once each, uploads that are held here complete."""
    what, plan, names = "freeze" if isinstance(asked, Freeze) else "check", view.plan, asked.aggregators
    if len(set(names)) != len(names) or not set(names) <= set(plan.points) or len(names) < plan.sharing.k:
        raise ProtocolError(f"{what} names aggregators {names}, expected at least k = {plan.sharing.k} of the plan")
    devices = [c.device_id for c in asked.contributors]
    if len(set(devices)) != len(devices):
        raise ProtocolError(f"{what} names a device twice")
    for device_id in devices:
        if uploads.was_expelled(device_id):
            raise ProtocolError(f"{what} names {device_id!r}, which the directory has revoked since the plan")
        if not uploads.is_open_to(device_id):
            raise ProtocolError(f"{what} names {device_id!r}, which is not in the cohort")
    if aggregator_id not in names:
        return
    for c in asked.contributors:
        attempt = uploads.of(c.device_id).get(c.upload_id)
        if attempt is None or not attempt.is_complete or attempt.rung != c.rung:
            raise ProtocolError(
                f"{what} names an upload of {c.device_id!r} that is not held here complete at that rung"
            )


def check_floors(freeze: Freeze, view: PlanView, floors: AggregatorFloors) -> None:
    """Exactly the segments that the plan's and this aggregator's own floors allow."""
    floor = max(floors.min_devices, view.plan.min_devices)
    allowed = open_segments([c.rung for c in freeze.contributors], view.rungs, floor, segment_floor(view, floors))
    if not allowed:
        raise ProtocolError(f"freeze of {len(freeze.contributors)} devices, expected at least {floor}")
    if freeze.segments != allowed:
        raise ProtocolError(f"freeze opens segments {freeze.segments}, expected {allowed} for these contributors")


def segment_floor(view: PlanView, floors: AggregatorFloors) -> int:
    """The fewest devices whose sum may become known, by opening a segment or as the difference of two sums."""
    return max(floors.min_devices_segment, view.plan.min_devices_segment)


# --------------------------------------------------------------------------- differences between rounds


@dataclass(frozen=True)
class Summed:
    """Whom an earlier Freeze named, segment by segment. `supports`: what the segments were made of."""

    round_id: int
    supports: bytes
    sets: dict[int, frozenset[str]]


def summed(round_id: int, supports: bytes, freeze: Freeze) -> Summed:
    """The contributors to each opened segment."""
    sets = {
        segment: frozenset(c.device_id for c in freeze.contributors if c.rung >= segment) for segment in freeze.segments
    }
    return Summed(round_id, supports, sets)


def supports_of(view: PlanView) -> bytes:
    """What tells whether two plans cut the model into the same segments."""
    return b"".join(segment.support for segment in view.plan.segments)


def check_differences(now: Summed, earlier: Iterable[Summed], floor: int) -> None:
    """No two sums differ by so few devices that their difference shows them (docs/protocol.md §4.4).

    Each way none or at least `floor` devices: the rule within a round, across rounds. Segments of the same support are
    compared with each other; where the supports changed, any of one round may overlap any of the other.
    """
    for other in earlier:
        for mine, theirs in _compared(now, other):
            gone, come = len(theirs - mine), len(mine - theirs)
            if 0 < gone < floor or 0 < come < floor:
                raise ProtocolError(
                    f"freeze differs from that of round {other.round_id} by {come} devices that came and {gone} that"
                    f" went, expected none or at least {floor} each way: the difference of two sums would show them"
                )


def _compared(now: Summed, other: Summed) -> Iterable[tuple[frozenset[str], frozenset[str]]]:
    if now.supports == other.supports:
        return [(now.sets[segment], other.sets[segment]) for segment in now.sets if segment in other.sets]
    return [(mine, theirs) for mine in now.sets.values() for theirs in other.sets.values()]
