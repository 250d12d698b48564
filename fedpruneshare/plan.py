"""What a signed plan must satisfy, and what follows from it (docs/protocol.md §4.1).

A signature says who made a plan, not that it is sound. `check_plan` is called by the planner before signing and by
every device and aggregator after verifying; all lengths used later come from `PlanView`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fedpruneshare.directory import Directory
from fedpruneshare.errors import PlanError
from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.messages import RoundPlan
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.sharing.shamir import SharingScheme
from fedpruneshare.words import WordLayout, total_words


@dataclass(frozen=True)
class PlanView:
    """A checked plan, its digest (of the exact signed body), and everything derived from it."""

    plan: RoundPlan
    digest: bytes

    @cached_property
    def scheme(self) -> SharingScheme:
        """The sharing scheme of the round."""
        sharing = self.plan.sharing
        return SharingScheme(sharing.n, sharing.k, sharing.t)

    @cached_property
    def prg(self) -> Prg:
        """The keystream of seed shares."""
        return Prg(self.plan.sharing.prg)

    @cached_property
    def layout(self) -> WordLayout:
        """How integers become words."""
        return WordLayout(self.plan.coding)

    @cached_property
    def segment_words(self) -> tuple[int, ...]:
        """Words of each segment."""
        return tuple(segment.words for segment in self.plan.segments)

    @property
    def rungs(self) -> int:
        """Number of rungs (segments)."""
        return len(self.plan.segments)

    def share_bytes(self, rung: int, x: int) -> int:
        """Exact plaintext bytes of a share at a rung and point: 32 for a seed, 4 per word otherwise."""
        return self.scheme.share_bytes(x, total_words(self.segment_words, rung))

    def chunks(self, size_bytes: int) -> int:
        """Chunks that so many plaintext bytes travel in."""
        return max(1, math.ceil(size_bytes / self.plan.chunk_bytes))

    def sum_bytes(self, segments: tuple[int, ...]) -> int:
        """Exact bytes of an aggregator's sum over the opened segments."""
        return 4 * sum(self.segment_words[segment] for segment in segments)

    def keystream_domain(self, device_id: str, upload_id: bytes) -> bytes:
        """Domain of a device's seed shares: another plan, device or attempt gives another keystream."""
        return b"\0".join([self.digest, device_id.encode(), upload_id])


def check_plan(plan: RoundPlan, digest: bytes, directory: Directory) -> PlanView:
    """Check a plan against itself and the directory. Raises `PlanError` with found and expected."""
    _check_parties(plan, directory)
    _check_floors(plan, directory)
    _check_coding(plan)
    view = PlanView(plan, digest)
    _check_segments(view)
    return view


def _check_parties(plan: RoundPlan, directory: Directory) -> None:
    sharing = plan.sharing
    if plan.directory_version != directory.version:
        raise PlanError(f"plan for directory version {plan.directory_version}, expected {directory.version}")
    if sorted(plan.points) != sorted(directory.aggregators):
        raise PlanError(f"plan for aggregators {sorted(plan.points)}, expected {sorted(directory.aggregators)}")
    if sorted(plan.points.values()) != list(range(1, sharing.n + 1)):
        raise PlanError(f"points {sorted(plan.points.values())}, expected 1 to n = {sharing.n}, each once")
    if 2 * sharing.k <= sharing.n:
        raise PlanError(f"k = {sharing.k} of n = {sharing.n}, expected 2k > n: two disjoint sets could open two sums")
    if len(set(plan.cohort)) != len(plan.cohort):
        raise PlanError("the cohort names a device twice")
    if strangers := sorted(set(plan.cohort) - set(directory.devices)):
        raise PlanError(f"cohort names {strangers[0]!r}, which is not on the roster")


def _check_floors(plan: RoundPlan, directory: Directory) -> None:
    floor = max(directory.min_devices, LOWEST_FLOOR)
    if plan.min_devices < floor:
        raise PlanError(f"min_devices = {plan.min_devices}, expected at least {floor}")
    floor = max(directory.min_devices_segment, LOWEST_FLOOR)
    if plan.min_devices_segment < floor:
        raise PlanError(f"min_devices_segment = {plan.min_devices_segment}, expected at least {floor}")
    if len(plan.cohort) < plan.min_devices:
        raise PlanError(f"cohort of {len(plan.cohort)} devices, expected at least min_devices = {plan.min_devices}")


def _check_coding(plan: RoundPlan) -> None:
    coding = plan.coding
    if len(plan.cohort) > coding.max_devices:
        raise PlanError(f"cohort of {len(plan.cohort)} devices, expected at most max_devices = {coding.max_devices}")
    numbers = [*coding.weight_clips, *coding.vector_clips, plan.training.learning_rate, plan.deadline_s]
    if plan.chunk_bytes % 4:
        raise PlanError(f"chunk_bytes = {plan.chunk_bytes}, expected a multiple of 4: chunks hold whole words")
    if not all(math.isfinite(number) for number in [*numbers, plan.training.weight_decay]):
        raise PlanError("a clip, rate or deadline is not finite")


def _check_segments(view: PlanView) -> None:
    plan = view.plan
    if plan.rungs[0] != 0 or list(plan.rungs) != sorted(set(plan.rungs)) or plan.rungs[-1] >= len(plan.segments):
        raise PlanError(f"rungs {plan.rungs}, expected rising numbers from 0 below {len(plan.segments)}")
    if any(segment.vectors for segment in plan.segments[1:]):
        raise PlanError("vectors outside segment 0")
    for index, segment in enumerate(plan.segments):
        expected = view.layout.words(segment.vectors, segment.weights)
        if segment.words != expected:
            raise PlanError(f"segment {index} of {segment.words} words, expected {expected}")
    _ = view.scheme, view.prg
