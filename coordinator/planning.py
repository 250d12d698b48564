"""From the model and the fleet to a plan: cohort, rungs, supports, coding (docs/protocol.md §4.1, §6.2, §8.2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.averaging import ServerMoments
from coordinator.settings import CoordinatorSettings, RoundSettings, SharingSettings
from fedpruneshare.directory import Directory
from fedpruneshare.errors import PlanError
from fedpruneshare.messages import Coding, Reveal, RoundPlan, Segment, Sharing, Suite, SupportRule, Training, digest
from fedpruneshare.plain import PlainLayout
from fedpruneshare.rng import stream
from fedpruneshare.sharing.field import FIELDS
from fedpruneshare.sparse.channels import Groups
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import Support
from fedpruneshare.words import WordLayout

#: A plan expires so long after its deadline: a clock that is a day off changes nothing, one found later is no use.
_GENEROUS_S: Final = 2 * 24 * 3600


@dataclass(frozen=True)
class ModelState:
    """The global model between rounds. `coded` uint16[d] (float16 bits) and `vectors` float32[v] *are* the model."""

    coded: NDArray[np.uint16] = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)
    weight_clips: tuple[float, ...]
    vector_clips: tuple[float, ...]
    applied: int
    """Rounds applied so far: the clock of the density schedule."""
    moments: ServerMoments | None = field(default=None, repr=False)
    """What a server optimiser remembers; None for plain averaging."""
    last_rungs: NDArray[np.uint8] | None = field(default=None, repr=False)
    """Segment of every coordinate in the last applied round (uint8[d]), for the churn tolerance."""
    last_channels: tuple[bytes, ...] = field(default=(), repr=False)
    """Channel bitmaps of that round's rungs, from narrow to wide; empty for rungs of full width."""


@dataclass(frozen=True)
class PublishedModel:
    """The model as a round publishes it: the supports and one coded blob per segment.

    `coded` uint16[d]: the values that were published, and that updates are differences to.
    """

    support: Support
    densities: tuple[float, ...]
    widths: tuple[float, ...]
    rule: SupportRule
    blobs: tuple[bytes, ...] = field(repr=False)
    coded: NDArray[np.uint16] = field(repr=False)
    channels: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class TaskFacts:
    """What the plan says of the task: name, digest of the bundle; and what a model of it consists of."""

    name: str
    bundle: bytes
    table: ParameterTable
    groups: Groups = ()


@dataclass(frozen=True)
class AvailableDevices:
    """Who may be drawn: the highest rung each device says it may take, and the one it is expected to.

    Expected is what its last measurements left it, which may be different next time. So rungs are merged by what
    devices say, and cohorts drawn by what is expected of them.
    """

    limits: Mapping[str, int]
    expected: Mapping[str, int] = field(default_factory=dict)

    def likely(self) -> dict[str, int]:
        """The rung each will probably take."""
        return {device: min(limit, self.expected.get(device, limit)) for device, limit in self.limits.items()}


# --------------------------------------------------------------------------- rungs and cohort


def merge_rungs(limits: Sequence[int], rungs: int, floor: int, cohort: int) -> tuple[int, ...]:
    """The rungs devices may take, so that every stratum of the fleet reaches the floor (docs/protocol.md §8.2).

    `limits`: each available device's highest rung. A device takes the highest allowed rung up to its limit, so
    removing a rung moves its devices down. Removed until each stratum is empty or holds >= `floor` devices, and
    the cohort has room for `floor` of each.
    """
    allowed = list(range(rungs))
    while len(allowed) > 1:
        strata = _strata(limits, allowed)
        small = [rung for rung in allowed if 0 < strata[rung] < floor]
        filled = [rung for rung in allowed if strata[rung]]
        if small:
            rung = small[-1]
            above = [r for r in filled if r > 0]
            if rung > 0:
                allowed.remove(rung)
            elif above:
                allowed.remove(above[0])
            else:
                break
        elif len(filled) * floor > cohort and len(filled) > 1:
            allowed.remove(min((r for r in filled if r > 0), key=lambda r: (strata[r], r)))
        else:
            break
    return tuple(allowed)


def make_room(expected: Sequence[int], allowed: Sequence[int], floor: int, cohort: int) -> tuple[int, ...]:
    """The allowed rungs, less those whose floors a cohort has no room for (docs/protocol.md §8.2).

    `expected`: the rung each available device will probably take. Only strata of `floor` devices or more are given
    their floor; of these the smallest goes first, and its devices take the next lower rung.
    """
    left = list(allowed)
    while True:
        strata = _strata(expected, left)
        filled = [rung for rung in left if strata[rung] >= floor]
        if len(filled) * floor <= cohort or len(filled) < 2:
            return tuple(left)
        left.remove(min((rung for rung in filled if rung > 0), key=lambda rung: (strata[rung], rung)))


def _strata(limits: Sequence[int], allowed: Sequence[int]) -> Counter[int]:
    return Counter(max(rung for rung in allowed if rung <= limit) for limit in limits)


def draw_cohort(
    limits: Mapping[str, int], allowed: Sequence[int], size: int, floor: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """Draw a cohort stratified by effective rung: each stratum of `floor` devices or more gets at least `floor`.

    A smaller one gets its proportional part only: alone on their rung, its devices may be left out of the sum.
    `limits`: highest rung by device. Returns sorted names; all of them if the fleet is not larger than `size`.
    """
    if len(limits) <= size:
        return tuple(sorted(limits))
    strata: dict[int, list[str]] = {}
    for device in sorted(limits):
        strata.setdefault(max(rung for rung in allowed if rung <= limits[device]), []).append(device)
    quota = _quotas({rung: len(devices) for rung, devices in strata.items()}, size, floor)
    drawn = [rng.choice(np.array(devices), quota[rung], replace=False) for rung, devices in sorted(strata.items())]
    return tuple(sorted(str(device) for devices in drawn for device in devices))


def _quotas(sizes: Mapping[int, int], size: int, floor: int) -> dict[int, int]:
    """Largest-remainder shares of `size`, each at least the floor where a stratum reaches it, at most its stratum."""
    total = sum(sizes.values())
    quota = {rung: floor if count >= floor else 0 for rung, count in sizes.items()}
    while sum(quota.values()) > size:  # a cohort too small for all floors: make_room left one stratum only
        largest = max(quota, key=lambda rung: quota[rung])
        quota[largest] -= 1
    while sum(quota.values()) < size:
        open_rungs = [rung for rung in sizes if quota[rung] < sizes[rung]]
        neediest = max(open_rungs, key=lambda rung: (sizes[rung] * size / total - quota[rung], -rung))
        quota[neediest] += 1
    return quota


# --------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Terms:
    """What else a plan says: when it is made (seconds since 1970), the commitment to its checksum's seed, if any."""

    now: float = 0.0
    checksum: bytes = b""


_NO_TERMS: Final = Terms()


def plan_round(
    round_id: int,
    state: ModelState,
    published: PublishedModel,
    facts: TaskFacts,
    fleet: tuple[AvailableDevices, CoordinatorSettings, Directory],
    terms: Terms = _NO_TERMS,
) -> RoundPlan:
    """The plan of a round. `fleet` = (available devices, settings, directory). One made at time 0 never expires.

    Raises `PlanError` if too few devices are available; `fedpruneshare.plan.check_plan` checks the rest.
    """
    available, settings, directory = fleet
    rounds, limits = settings.rounds, available.limits
    if len(limits) < rounds.min_devices:
        raise PlanError(f"{len(limits)} devices are there, expected at least min_devices = {rounds.min_devices}")
    allowed, cohort = _rungs_and_cohort(round_id, len(published.blobs), available, rounds)
    coding = _coding(settings, state, len(cohort), len(terms.checksum))
    return RoundPlan(
        round_id=round_id,
        directory_version=directory.version,
        task=facts.name,
        bundle=facts.bundle,
        table=facts.table.digest(),
        sharing=_sharing(settings, len(directory.aggregators)),
        points=_points(sorted(directory.aggregators), round_id),
        coding=coding,
        segments=_segments(round_id, published, _layout(coding, settings)),
        rungs=allowed,
        training=_training(settings),
        cohort=cohort,
        min_devices=rounds.min_devices,
        min_devices_segment=rounds.min_devices_segment,
        deadline_s=rounds.deadline_s,
        chunk_bytes=settings.coding.chunk_bytes,
        support=published.rule,
        model_version=state.applied,
        suites=suites(settings.sharing, directory),
        freeze_quorum=settings.sharing.freeze_quorum,
        checksum=terms.checksum,
        expires_at=math.ceil(terms.now + rounds.deadline_s) + _GENEROUS_S if terms.now else 0,
    )


def suites(sharing: SharingSettings, directory: Directory) -> tuple[Suite, ...]:
    """What seals of a round may be made with (docs/protocol.md §7.3)."""
    is_hybrid = sharing.suite == "hybrid" or directory.post_quantum
    return tuple(suite for suite in Suite if suite.is_hybrid == is_hybrid)


def _rungs_and_cohort(
    round_id: int, rungs: int, available: AvailableDevices, rounds: RoundSettings
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The rungs that devices may take, and who is drawn."""
    floor, limits, likely = rounds.min_devices_segment, available.limits, available.likely()
    allowed = merge_rungs(list(limits.values()), rungs, floor, rounds.cohort)
    allowed = make_room(list(likely.values()), allowed, floor, rounds.cohort)
    drawn_by, strata = likely, allowed
    if rounds.strata:
        drawn_by, strata = dict(limits), merge_rungs(list(limits.values()), rounds.strata, floor, rounds.cohort)
    return allowed, draw_cohort(drawn_by, strata, rounds.cohort, floor, stream(rounds.seed, "cohort", round_id))


def _layout(coding: Coding, settings: CoordinatorSettings) -> WordLayout | PlainLayout:
    if settings.sharing.reveal == "plain":
        return PlainLayout(coding)
    return WordLayout(coding, FIELDS[settings.sharing.field])


def _sharing(settings: CoordinatorSettings, n: int) -> Sharing:
    own = settings.sharing
    return Sharing(n, own.threshold, own.t, own.field, own.dealer_checks, Reveal(own.reveal))


def _points(aggregators: Sequence[str], round_id: int) -> dict[str, int]:
    """X of each aggregator; rotated by round so that the traffic-free seed shares go round (docs/protocol.md §5.4)."""
    return {name: 1 + (index + round_id) % len(aggregators) for index, name in enumerate(aggregators)}


def _coding(settings: CoordinatorSettings, state: ModelState, devices: int, checksum_bytes: int) -> Coding:
    coding = settings.coding
    return Coding(
        value_bits=coding.value_bits,
        vector_bits=coding.vector_bits,
        weight_clips=state.weight_clips,
        vector_clips=state.vector_clips,
        max_weight=coding.max_weight,
        max_devices=devices,
        tail_words=settings.sharing.tail_words if checksum_bytes else 0,
        radix=coding.radix,
    )


def _training(settings: CoordinatorSettings) -> Training:
    t = settings.training
    return Training(
        t.local_epochs, t.batch_size, t.learning_rate, t.momentum, t.weight_decay, t.proximal_mu, t.least_work
    )


def _segments(round_id: int, published: PublishedModel, layout: WordLayout | PlainLayout) -> tuple[Segment, ...]:
    segments = []
    support = published.support
    supports = support.digests(round_id)
    for index, (positions, blob) in enumerate(zip(support.segments, published.blobs, strict=True)):
        vectors = support.vectors[index].size
        segments.append(
            Segment(
                weights=positions.size,
                vectors=vectors,
                words=layout.words(vectors, positions.size),
                density=published.densities[index],
                blob=digest(blob),
                blob_bytes=len(blob),
                support=supports[index],
                width=published.widths[index],
            )
        )
    return tuple(segments)
