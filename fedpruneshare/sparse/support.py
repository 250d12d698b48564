"""Nested public supports: which coordinates each rung holds, from the public model (docs/protocol.md §6.2, §6.3).

Everything here is integer arithmetic on the model's float16 codes, so every party derives the same supports.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import PeerError, PlanError, SupportMismatchError
from fedpruneshare.messages import SupportRule
from fedpruneshare.sparse.allocation import erk_quotas
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

Positions = NDArray[np.int64]
Codes = NDArray[np.uint16]

_MAGNITUDE: Final = np.uint16(0x7FFF)
_LARGEST: Final = 65504.0
_SHIFT: Final = np.uint64(49)
_HASH: Final = np.uint64(2**49 - 1)
#: `Support.rung_of` of a coordinate that no segment holds.
OUTSIDE: Final = 255
_DOMAIN: Final = b"fedpruneshare/support/1\0"


def code_values(values: NDArray[np.float32]) -> Codes:
    """float32[m] -> float16 bits uint16[m], the coded model. Values beyond ±65504 are clamped to it.

    Raises `PeerError` for a value that is not finite.
    """
    if not np.isfinite(values).all():
        raise PeerError("a model value is not finite, expected finite numbers")
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16).view(np.uint16)


def decode_values(coded: Codes) -> NDArray[np.float32]:
    """float16 bits uint16[m] -> float32[m]."""
    return coded.view(np.float16).astype(np.float32)


def order_keys(coded: Codes, positions: Positions, round_id: int) -> NDArray[np.uint64]:
    """Order keys uint64[m] of coordinates in a round; larger comes first.

    High 15 bits: the code without its sign bit, which orders float16 by magnitude. Low 49 bits: the high 49 bits of
    splitmix64's finaliser over (round_id · 2^40 + position + 1) · 0x9E3779B97F4A7C15, all mod 2^64.
    """
    with np.errstate(over="ignore"):
        z = (np.uint64((round_id << 40) % 2**64) + positions.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((coded & _MAGNITUDE).astype(np.uint64) << _SHIFT) | (z >> np.uint64(15))


@dataclass(frozen=True)
class Support:
    """Segments of nested supports: segment j is what rung j adds to rung j − 1. Positions int64, ascending in each.

    `vectors`: the vector elements each segment adds, in the same way. Without widths all of them are in segment 0.
    """

    d: int
    segments: tuple[Positions, ...] = field(repr=False)
    vectors: tuple[Positions, ...] = field(repr=False, default=())

    def prefix(self, rung: int) -> Positions:
        """Positions of segments 0 to `rung`, one segment after the other: the order of a share's values."""
        return np.concatenate(self.segments[: rung + 1])

    def digests(self, round_id: int) -> tuple[bytes, ...]:
        """Chained SHA-256 of the supports: digest j covers round, d and segments 0 to j with their boundaries."""
        return support_digests(self.segments, round_id, self.d)

    def rung_of(self) -> NDArray[np.uint8]:
        """Segment of every coordinate, uint8[d]; `OUTSIDE` for those of none."""
        found = np.full(self.d, OUTSIDE, dtype=np.uint8)
        for index, positions in enumerate(self.segments):
            found[positions] = index
        return found


@dataclass(frozen=True)
class Frame:
    """What else decides a support besides the order of magnitudes (docs/protocol.md §6.2, §6.7).

    `coordinates`: by segment, which of the d coordinates exist at its width (bool[d]); none: all of them, everywhere.
    """

    table: ParameterTable
    rule: SupportRule = field(default_factory=SupportRule)
    coordinates: tuple[NDArray[np.bool_], ...] = field(repr=False, default=())

    def exists(self, segment: int) -> NDArray[np.bool_]:
        """Which coordinates a segment may take from."""
        if self.coordinates:
            return self.coordinates[segment]
        return np.ones(self.table.weight_count, dtype=np.bool_)

    @property
    def is_by_tensor(self) -> bool:
        """Whether coordinates compete within their tensor only."""
        return self.rule.allocation == "erk"

    def tensors(self, positions: Positions) -> NDArray[np.int64]:
        """Tensor of each coordinate, where they compete within it; else 0."""
        if not self.is_by_tensor:
            return np.zeros(positions.size, dtype=np.int64)
        return np.searchsorted(self.table.weight_bounds(), positions, side="right") - 1

    def quotas(self, total: int, before: NDArray[np.int64], exists: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Coordinates of each tensor (of all, without allocation by tensor) that a rung of `total` keeps, int64[T].

        `before`: how many of each the rung below keeps.
        """
        if not self.is_by_tensor:
            return np.array([min(max(total, int(before.sum())), int(np.count_nonzero(exists)))], dtype=np.int64)
        bounds, sums, sizes = self.table.weight_bounds(), [], []
        for index, weight in enumerate(self.table.weights()):
            kept = exists[bounds[index] : bounds[index + 1]].reshape(weight.shape)
            axes = range(kept.ndim)
            sums.append(sum(int(kept.any(axis=tuple(a for a in axes if a != axis)).sum()) for axis in axes))
            sizes.append(int(np.count_nonzero(kept)))
        return erk_quotas(total, np.array(sums, dtype=np.int64), before, np.array(sizes, dtype=np.int64))

    @property
    def blank(self) -> NDArray[np.int64]:
        """No coordinate of any tensor, int64[T]."""
        return np.zeros(len(self.table.weights()) if self.is_by_tensor else 1, dtype=np.int64)


def support_digests(segments: Sequence[Positions], round_id: int, d: int) -> tuple[bytes, ...]:
    """Digest j = SHA-256(domain ‖ digest j−1 ‖ round ‖ d ‖ number of positions ‖ positions), integers as 8 bytes LE."""
    digests: list[bytes] = []
    last = b""
    for positions in segments:
        numbers = np.array([round_id, d, positions.size], dtype="<i8").tobytes()
        last = hashlib.sha256(_DOMAIN + last + numbers + positions.astype("<i8").tobytes()).digest()
        digests.append(last)
    return tuple(digests)


def rung_counts(d: int, fractions: Sequence[float], density: float) -> tuple[int, ...]:
    """Coordinates each rung keeps: max(1, ⌊fraction · density · d + ½⌋), never falling from rung to rung."""
    if list(fractions) != sorted(fractions) or not fractions or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise PlanError(f"rung fractions {list(fractions)}, expected rising numbers in (0, 1]")
    if not 0 < density <= 1:
        raise PlanError(f"density {density}, expected a number in (0, 1]")
    return tuple(min(d, max(1, math.floor(fraction * density * d + 0.5))) for fraction in fractions)


def derive_support(
    coded: Codes,
    round_id: int,
    counts: Sequence[int],
    frame: Frame | None = None,
    last_rungs: NDArray[np.uint8] | None = None,
) -> Support:
    """The supports of a round from the coded model uint16[d]: counts[j] coordinates up to rung j.

    A rung whose width leaves fewer coordinates than that keeps all of those. Equal magnitudes are told apart by hash;
    should hashes be equal too, the lower position comes first. `last_rungs` (uint8[d], `Support.rung_of` of the round
    before): a coordinate that was in a rung or below it counts as larger by the churn tolerance of the frame's rule.
    Raises `PlanError` for counts that fall or exceed d.
    """
    d = coded.size
    if not counts or list(counts) != sorted(counts) or counts[0] < 0 or counts[-1] > d:
        raise PlanError(f"rung counts {list(counts)}, expected non-falling numbers up to d = {d}")
    frame = frame or plain_frame(d)
    keys = order_keys(coded, np.arange(d, dtype=np.int64), round_id)
    quotas, segments, taken = frame.blank, [], np.zeros(d, dtype=np.bool_)
    for index, count in enumerate(counts):
        is_probe = frame.rule.is_probing and index == len(counts) - 1
        own = frame if not is_probe else plain_frame(d)
        before = quotas if not is_probe else np.array([quotas.sum()], dtype=np.int64)
        exists = frame.exists(index)
        free = np.flatnonzero(exists & ~taken).astype(np.int64)
        stays = None if last_rungs is None or is_probe else last_rungs[free] <= index
        quotas = own.quotas(count, before, exists)
        ranked = keys[free] if stays is None else np.where(stays, _boosted(keys[free], frame), keys[free])
        segment = np.sort(free[_chosen(ranked, own.tensors(free), quotas - before)])
        segments.append(segment)
        taken[segment] = True
    return Support(d, tuple(segments))


def plain_frame(d: int) -> Frame:
    """All d coordinates in one row, by magnitude alone."""
    return Frame(ParameterTable((Parameter("weights", (d,), Role.WEIGHT),)))


def _boosted(keys: NDArray[np.uint64], frame: Frame) -> NDArray[np.uint64]:
    """Keys of coordinates whose magnitude counts as so many code steps larger."""
    codes = np.minimum((keys >> _SHIFT) + np.uint64(frame.rule.churn_codes), np.uint64(_MAGNITUDE))
    boosted: NDArray[np.uint64] = (codes << _SHIFT) | (keys & _HASH)
    return boosted


def _chosen(keys: NDArray[np.uint64], tensors: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The `wanted[t]` largest keys of every tensor t, bool of the shape of `keys`."""
    chosen = np.zeros(keys.size, dtype=np.bool_)
    for tensor, count in enumerate(wanted.tolist()):
        places = np.flatnonzero(tensors == tensor) if wanted.size > 1 else np.arange(keys.size)
        if count:
            own = keys[places]
            chosen[places[_largest(own, np.partition(own, own.size - count)[own.size - count], count)]] = True
    return chosen


def _largest(keys: NDArray[np.uint64], lowest: np.uint64, count: int) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = keys >= lowest
    if surplus := int(np.count_nonzero(kept)) - count:
        kept[np.flatnonzero(keys == lowest)[-surplus:]] = False
    return kept


def check_prefix(
    segments: Sequence[Positions],
    coded: Sequence[Codes],
    round_id: int,
    frame: Frame,
    supports: Sequence[bytes],
) -> None:
    """What a device that holds only segments 0…j can check of them. `supports`: of all segments of the plan.

    Positions ascend, are in range, new, and exist at their width; no coordinate of a later segment had a larger key
    than one that an earlier segment took where both could choose; quotas are those of the allocation; the digest chain
    is `supports`. Raises `SupportMismatchError` naming the segment.
    """
    if len(supports) < len(segments):
        raise SupportMismatchError(f"segment {len(supports)}: {len(supports)} supports, expected {len(segments)}")
    _check_places(segments, coded, frame)
    probe = len(supports) - 1 if frame.rule.is_probing else len(supports)
    for index in range(min(len(segments), probe)):
        _check_order(index, segments, coded, round_id, frame)
    if frame.is_by_tensor:
        _check_quotas(segments[:probe], frame)
    for index, found in enumerate(support_digests(segments, round_id, frame.table.weight_count)):
        if found != supports[index]:
            raise SupportMismatchError(
                f"segment {index}: support {found.hex()[:16]}…, expected {supports[index].hex()[:16]}…"
            )


def _check_places(segments: Sequence[Positions], coded: Sequence[Codes], frame: Frame) -> None:
    d = frame.table.weight_count
    seen = np.zeros(d, dtype=bool)
    for index, (positions, codes) in enumerate(zip(segments, coded, strict=True)):
        if positions.size != codes.size:
            raise SupportMismatchError(f"segment {index}: {codes.size} values, expected {positions.size}")
        if positions.size == 0:
            continue
        if positions[0] < 0 or positions[-1] >= d or (np.diff(positions) <= 0).any() or seen[positions].any():
            raise SupportMismatchError(f"segment {index}: positions are not ascending, new and below d = {d}")
        if not frame.exists(index)[positions].all():
            raise SupportMismatchError(f"segment {index} holds a coordinate that does not exist at its width")
        seen[positions] = True


def _check_order(
    index: int, segments: Sequence[Positions], coded: Sequence[Codes], round_id: int, frame: Frame
) -> None:
    """No later coordinate that segment `index` could have taken beats one that it took."""
    lowest = np.full(frame.blank.size, np.iinfo(np.uint64).max, dtype=np.uint64)
    own = _boosted(order_keys(coded[index], segments[index], round_id), frame)
    np.minimum.at(lowest, frame.tensors(segments[index]), own)
    for later in range(index + 1, len(segments)):
        could = frame.exists(index)[segments[later]]
        positions, codes = segments[later][could], coded[later][could]
        if (order_keys(codes, positions, round_id) > lowest[frame.tensors(positions)]).any():
            raise SupportMismatchError(f"segment {later} holds a larger weight than segment {index}")


def _check_quotas(segments: Sequence[Positions], frame: Frame) -> None:
    before = frame.blank
    for index, positions in enumerate(segments):
        found = before + np.bincount(frame.tensors(positions), minlength=before.size)
        expected = frame.quotas(int(found.sum()), before, frame.exists(index))
        if (found != expected).any():
            tensor = int(np.flatnonzero(found != expected)[0])
            name = frame.table.weights()[tensor].name
            raise SupportMismatchError(
                f"segment {index}: {found[tensor]} coordinates of {name!r}, expected {expected[tensor]}"
            )
        before = found


@dataclass(frozen=True)
class DensitySchedule:
    """Density by number of applied rounds: `start` for `dense_rounds`, then a cubic fall to `target` at `final_round`.

    ρ = target + (start − target)·(1 − u)^3 with u from 0 to 1 in between (Zhu and Gupta 2017, eq. 1).
    Raises `PlanError` for settings that do not fall.
    """

    start: float
    target: float
    dense_rounds: int
    final_round: int

    def __post_init__(self) -> None:
        if not 0 < self.target <= self.start <= 1 or not 0 <= self.dense_rounds < self.final_round:
            raise PlanError(f"schedule {self}, expected 0 < target <= start <= 1 and dense_rounds < final_round")

    def density(self, applied: int) -> float:
        """Density of the round that follows `applied` applied ones."""
        span = self.final_round - self.dense_rounds
        u = min(max((applied + 1 - self.dense_rounds) / span, 0.0), 1.0)
        if u <= 0.0:  # target + (start − target) may be one bit off start
            return self.start
        return min(self.start, self.target + (self.start - self.target) * (1.0 - u) ** 3)
