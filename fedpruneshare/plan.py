"""What a signed plan must satisfy, and what follows from it (docs/protocol.md §4.1).

A signature says who made a plan, not that it is sound. `check_plan` is called by the planner before signing and by
every device and aggregator after verifying; all lengths used later come from `PlanView`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fedpruneshare.directory import ROUNDS_PER_EPOCH, Directory, utc
from fedpruneshare.errors import PlanError
from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.messages import MAX_CHUNKS, Freeze, Reveal, RoundPlan
from fedpruneshare.plain import PlainLayout
from fedpruneshare.sharing.checksum import CHECKSUM_WORDS
from fedpruneshare.sharing.dispersal import fragment_bytes
from fedpruneshare.sharing.field import FIELDS, Field
from fedpruneshare.sharing.prg import SEED_BYTES
from fedpruneshare.sharing.shamir import SharingScheme
from fedpruneshare.words import WordLayout

#: The largest answer to a Freeze: what an aggregator's store keeps as one value.
MAX_ANSWER_BYTES: Final = 2**29


@dataclass(frozen=True)
class PlanView:
    """A checked plan, its digest (of the exact signed body), and everything derived from it."""

    plan: RoundPlan
    digest: bytes

    @cached_property
    def scheme(self) -> SharingScheme:
        """The sharing scheme of the round."""
        sharing = self.plan.sharing
        return SharingScheme(sharing.n, sharing.k, sharing.t, self.field)

    @cached_property
    def field(self) -> Field:
        """The field of the round's words."""
        return FIELDS[self.plan.sharing.field]

    @property
    def is_each_revealed(self) -> bool:
        """Whether the coordinator gets every single update instead of their sum (docs/protocol.md §5.9, §5.10)."""
        return self.plan.sharing.reveal is not Reveal.SUM

    @property
    def is_plain(self) -> bool:
        """Whether updates travel whole, without sharing; there is no `scheme` then (docs/protocol.md §5.10)."""
        return self.plan.sharing.reveal is Reveal.PLAIN

    @property
    def checks(self) -> int:
        """Mask elements at the end of every share (docs/protocol.md §5.7)."""
        return self.plan.sharing.dealer_checks

    @cached_property
    def layout(self) -> WordLayout:
        """How integers become words."""
        return WordLayout(self.plan.coding, self.field)

    @cached_property
    def plain_layout(self) -> PlainLayout:
        """How numbers become words where they are not shared."""
        return PlainLayout(self.plan.coding)

    @cached_property
    def segment_words(self) -> tuple[int, ...]:
        """Words of each segment."""
        return tuple(segment.words for segment in self.plan.segments)

    @cached_property
    def segment_elements(self) -> tuple[int, ...]:
        """Elements that a full share has of each segment: its words, or fewer in ramp sharing."""
        return tuple(self.scheme.elements(words) for words in self.segment_words)

    @property
    def rungs(self) -> int:
        """Number of rungs (segments)."""
        return len(self.plan.segments)

    def upload_words(self, rung: int) -> int:
        """Words of an upload at a rung: segments 0 to `rung`, one after the other."""
        return sum(self.segment_words[: rung + 1])

    def share_elements(self, rung: int) -> int:
        """Elements of a share at a rung: those of its segments, then the masks."""
        return sum(self.segment_elements[: rung + 1]) + self.checks

    def share_bytes(self, rung: int, x: int) -> int:
        """Exact plaintext bytes of what point x is sent of an upload: a seed, elements, a fragment, or all of it."""
        if self.is_plain:
            return self.upload_words(rung) * self.field.word_bytes
        if self.is_each_revealed:
            return fragment_bytes(self.upload_words(rung) * self.field.word_bytes, self.scheme.n, self.scheme.k)
        return SEED_BYTES if self.scheme.is_seed_point(x) else self.share_elements(rung) * self.field.word_bytes

    def chunks(self, size_bytes: int) -> int:
        """Chunks that so many plaintext bytes travel in."""
        return max(1, math.ceil(size_bytes / self.plan.chunk_bytes))

    def sum_bytes(self, freeze: Freeze) -> int:
        """Exact bytes of an aggregator's answer to a Freeze: its sum, or the fragments of all contributors in order."""
        if self.is_each_revealed:
            return sum(self.share_bytes(contributor.rung, 1) for contributor in freeze.contributors)
        return self.field.word_bytes * sum(self.segment_elements[segment] for segment in freeze.segments)

    def keystream_domain(self, device_id: str, upload_id: bytes) -> bytes:
        """Domain of a device's seed shares: another plan, device or attempt gives another keystream."""
        return b"\0".join([self.digest, device_id.encode(), upload_id])

    def dispersal_context(self, device_id: str, upload_id: bytes, rung: int) -> bytes:
        """What the fragments of an upload are bound to (docs/protocol.md §5.9)."""
        return b"\0".join([self.keystream_domain(device_id, upload_id), str(rung).encode()])


def check_plan(plan: RoundPlan, digest: bytes, directory: Directory, now: float = 0.0) -> PlanView:
    """Check a plan against itself and the directory. Raises `PlanError` with found and expected.

    `now`: seconds since 1970 (`Party.now`), by which plan and directory must not have expired; 0 where no clock counts.
    """
    _check_times(plan, directory, now)
    _check_parties(plan, directory)
    _check_seals(plan, directory)
    _check_floors(plan, directory)
    view = PlanView(plan, digest)
    if view.is_plain or directory.plain_updates:
        _check_plain(view, directory)
    else:
        _check_threshold(view, directory)
        _check_sharing(view)
    _check_checksum(view)
    _check_coding(view)
    _check_segments(view)
    _check_sizes(view)
    return view


def _check_parties(plan: RoundPlan, directory: Directory) -> None:
    sharing = plan.sharing
    if plan.directory_version > directory.version:
        raise PlanError(f"plan for directory version {plan.directory_version}, expected at most {directory.version}")
    if sorted(plan.points) != sorted(directory.aggregators):
        raise PlanError(f"plan for aggregators {sorted(plan.points)}, expected {sorted(directory.aggregators)}")
    if sorted(plan.points.values()) != list(range(1, sharing.n + 1)):
        raise PlanError(f"points {sorted(plan.points.values())}, expected 1 to n = {sharing.n}, each once")
    _check_quorum(plan)
    if len(set(plan.cohort)) != len(plan.cohort):
        raise PlanError("the cohort names a device twice")
    strangers = [device for device in plan.cohort if device not in directory.devices]
    if strangers and plan.directory_version == directory.version:
        # Who has left the roster since the plan was made stays in its cohort, and is refused whatever it says.
        raise PlanError(f"cohort names {min(strangers)!r}, which is not on the roster")


def _check_times(plan: RoundPlan, directory: Directory, now: float) -> None:
    for what, expires_at in (("directory", directory.expires_at), ("plan", plan.expires_at)):
        if 0 < expires_at <= now:
            raise PlanError(f"{what} expired at {utc(expires_at)}, and this machine's clock says {utc(now)}")
    first = directory.round_epoch * ROUNDS_PER_EPOCH + 1
    if not first <= plan.round_id < first + ROUNDS_PER_EPOCH - 1:
        raise PlanError(f"round {plan.round_id}, expected one from {first} on: epoch {directory.round_epoch}")


def _check_quorum(plan: RoundPlan) -> None:
    """Two sets of aggregators that each could open a sum must meet in an honest one (docs/protocol.md §4.5)."""
    sharing, quorum = plan.sharing, plan.freeze_quorum
    if not quorum and 2 * sharing.k <= sharing.n:
        raise PlanError(f"k = {sharing.k} of n = {sharing.n}, expected 2k > n: two disjoint sets could open two sums")
    if quorum and not (sharing.n + sharing.t < 2 * quorum <= 2 * sharing.n):
        least = (sharing.n + sharing.t) // 2 + 1
        raise PlanError(
            f"freeze_quorum = {quorum} with n = {sharing.n}, t = {sharing.t}, expected {least} to {sharing.n}"
        )


def _check_seals(plan: RoundPlan, directory: Directory) -> None:
    is_hybrid = any(suite.is_hybrid for suite in plan.suites)
    if directory.post_quantum and not all(suite.is_hybrid for suite in plan.suites):
        raise PlanError(f"suites {', '.join(plan.suites)}, expected hybrid ones only: the directory says post_quantum")
    services = {directory.coordinator_id: directory.coordinator, **directory.aggregators}
    if lacking := [name for name, service in services.items() if is_hybrid and not service.keys[0].hybrid]:
        raise PlanError(f"suites {', '.join(plan.suites)}, but {min(lacking)!r} has no hybrid key in the directory")


def _check_checksum(view: PlanView) -> None:
    """The words reserved at the end of every segment are those of the checksum, or none (docs/protocol.md §5.11)."""
    sharing, commitment, found = view.plan.sharing, view.plan.checksum, view.plan.coding.tail_words
    if commitment and (view.is_each_revealed or len(commitment) != 32):
        raise PlanError(f"checksum of {len(commitment)} bytes with reveal = {sharing.reveal}, expected 32 with sum")
    expected = CHECKSUM_WORDS[sharing.field] if commitment else 0
    if found != expected:
        raise PlanError(f"tail_words = {found}, expected {expected}")


def _check_floors(plan: RoundPlan, directory: Directory) -> None:
    floor = max(directory.min_devices, LOWEST_FLOOR)
    if plan.min_devices < floor:
        raise PlanError(f"min_devices = {plan.min_devices}, expected at least {floor}")
    floor = max(directory.min_devices_segment, LOWEST_FLOOR)
    if plan.min_devices_segment < floor:
        raise PlanError(f"min_devices_segment = {plan.min_devices_segment}, expected at least {floor}")
    if len(plan.cohort) < plan.min_devices:
        raise PlanError(f"cohort of {len(plan.cohort)} devices, expected at least min_devices = {plan.min_devices}")


def _check_plain(view: PlanView, directory: Directory) -> None:
    sharing, coding = view.plan.sharing, view.plan.coding
    if not directory.plain_updates:
        raise PlanError("plan without sharing (reveal = plain), expected shares: the directory does not allow it")
    if not view.is_plain:
        raise PlanError(f"reveal = {sharing.reveal}, expected plain: the directory is of a federation without sharing")
    found = (sharing.n, sharing.k, sharing.t, sharing.field, sharing.dealer_checks)
    if found != (1, 1, 0, "F31", 0):
        raise PlanError(f"sharing {found} with reveal = plain, expected n = k = 1, t = 0, F31 and no dealer checks")
    if not {coding.value_bits, coding.vector_bits} <= {16, 32} or coding.tail_words:
        raise PlanError(f"value_bits = {coding.value_bits}, vector_bits = {coding.vector_bits}, expected 16 or 32 each")


def _check_threshold(view: PlanView, directory: Directory) -> None:
    """What an aggregator refuses, devices have dealt for already: so the root says how many may collude."""
    found, least = view.scheme.t, directory.privacy_threshold
    if found < least:
        raise PlanError(f"t = {found}, expected at least the directory's privacy_threshold, {least}")


def _check_sharing(view: PlanView) -> None:
    sharing, coding, scheme = view.plan.sharing, view.plan.coding, view.scheme
    if max(coding.value_bits, coding.vector_bits) > 16:
        raise PlanError(f"value_bits = {coding.value_bits}, vector_bits = {coding.vector_bits}, expected at most 16")
    if scheme.k + scheme.t < scheme.n and not view.plan.freeze_quorum:
        # k aggregators open one sum; the n - k others, given another freeze, would show so many shares of one device.
        raise PlanError(f"k = {scheme.k}, t = {scheme.t} of n = {scheme.n}, expected k + t >= n: t shares tell nothing")
    if sharing.dealer_checks and scheme.n == scheme.k:
        raise PlanError(f"dealer checks with n = k = {scheme.k}, expected n > k: k shares always agree")
    if view.is_each_revealed and (scheme.secrets > 1 or sharing.dealer_checks):
        raise PlanError("reveal = each with ramp sharing or dealer checks, expected t = k - 1 and no checks")


def _check_sizes(view: PlanView) -> None:
    """Shares fit into chunks; with `reveal = "each"` an aggregator answers with all fragments at once."""
    largest = max(view.share_bytes(len(view.plan.segments) - 1, x) for x in view.plan.points.values())
    if view.chunks(largest) > MAX_CHUNKS:
        raise PlanError(f"shares of {largest} bytes, expected at most {MAX_CHUNKS} chunks of {view.plan.chunk_bytes}")
    if not view.is_each_revealed:
        return
    most = len(view.plan.cohort) * view.share_bytes(len(view.plan.segments) - 1, 1)
    if most > MAX_ANSWER_BYTES or view.chunks(most) > MAX_CHUNKS:
        raise PlanError(f"fragments of the cohort of up to {most} bytes, expected at most {MAX_ANSWER_BYTES}")


def _check_coding(view: PlanView) -> None:
    plan, coding = view.plan, view.plan.coding
    if len(plan.cohort) > coding.max_devices:
        raise PlanError(f"cohort of {len(plan.cohort)} devices, expected at most max_devices = {coding.max_devices}")
    numbers = [*coding.weight_clips, *coding.vector_clips, plan.training.learning_rate, plan.deadline_s]
    if plan.chunk_bytes % view.field.word_bytes:
        raise PlanError(
            f"chunk_bytes = {plan.chunk_bytes}, expected a multiple of {view.field.word_bytes}: chunks hold whole words"
        )
    if not all(math.isfinite(n) for n in [*numbers, plan.training.weight_decay, plan.training.proximal_mu]):
        raise PlanError("a clip, rate or deadline is not finite")


def _check_segments(view: PlanView) -> None:
    plan = view.plan
    if plan.rungs[0] != 0 or list(plan.rungs) != sorted(set(plan.rungs)) or plan.rungs[-1] >= len(plan.segments):
        raise PlanError(f"rungs {plan.rungs}, expected rising numbers from 0 below {len(plan.segments)}")
    _check_widths(plan)
    for index, segment in enumerate(plan.segments):
        layout = view.plain_layout if view.is_plain else view.layout
        expected = layout.words(segment.vectors, segment.weights)
        if segment.words != expected:
            raise PlanError(f"segment {index} of {segment.words} words, expected {expected}")


def _check_widths(plan: RoundPlan) -> None:
    """Widths do not fall, and only a wider segment brings vector elements of its own (docs/protocol.md §6.7)."""
    widths = [segment.width for segment in plan.segments]
    if widths != sorted(widths):
        raise PlanError(f"widths {widths}, expected numbers that do not fall")
    for index, segment in enumerate(plan.segments[1:], 1):
        if segment.vectors and segment.width == widths[index - 1]:
            raise PlanError(f"segment {index} has vector elements, expected none: it is no wider than the one before")
