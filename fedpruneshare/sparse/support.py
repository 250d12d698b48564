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

Positions = NDArray[np.int64]
Codes = NDArray[np.uint16]

_MAGNITUDE: Final = np.uint16(0x7FFF)
_LARGEST: Final = 65504.0
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
    return ((coded & _MAGNITUDE).astype(np.uint64) << np.uint64(49)) | (z >> np.uint64(15))


@dataclass(frozen=True)
class Support:
    """Segments of nested supports: segment j is what rung j adds to rung j − 1. Positions int64, ascending in each."""

    d: int
    segments: tuple[Positions, ...] = field(repr=False)

    def prefix(self, rung: int) -> Positions:
        """Positions of segments 0 to `rung`, one segment after the other: the order of a share's values."""
        return np.concatenate(self.segments[: rung + 1])

    def digests(self, round_id: int) -> tuple[bytes, ...]:
        """Chained SHA-256 of the supports: digest j covers round, d and segments 0 to j with their boundaries."""
        return support_digests(self.segments, round_id, self.d)


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


def derive_support(coded: Codes, round_id: int, counts: Sequence[int]) -> Support:
    """The supports of a round from the coded model uint16[d]: exactly counts[j] coordinates up to rung j.

    Equal magnitudes are told apart by hash; should hashes be equal too, the lower position comes first.
    Raises `PlanError` for counts that fall or exceed d.
    """
    d = coded.size
    if not counts or list(counts) != sorted(counts) or counts[0] < 0 or counts[-1] > d:
        raise PlanError(f"rung counts {list(counts)}, expected non-falling numbers up to d = {d}")
    keys = order_keys(coded, np.arange(d, dtype=np.int64), round_id)
    places = sorted({d - count for count in counts if count})
    ranked = np.partition(keys, places) if places else keys
    segments, taken = [], np.zeros(d, dtype=bool)
    for count in counts:
        kept = _largest(keys, ranked[d - count], count) if count else np.zeros(d, dtype=bool)
        segments.append(np.flatnonzero(kept & ~taken).astype(np.int64))
        taken = kept
    return Support(d, tuple(segments))


def _largest(keys: NDArray[np.uint64], lowest: np.uint64, count: int) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = keys >= lowest
    if surplus := int(np.count_nonzero(kept)) - count:
        kept[np.flatnonzero(keys == lowest)[-surplus:]] = False
    return kept


def check_prefix(
    segments: Sequence[Positions], coded: Sequence[Codes], round_id: int, d: int, supports: Sequence[bytes]
) -> None:
    """What a device that holds only segments 0…j can check of them.

    Positions ascend, are in range and disjoint; every key of a segment is above every key of the next; the digest
    chain is `supports` (of the plan). Raises `SupportMismatchError` naming the segment.
    """
    if len(supports) < len(segments):
        raise SupportMismatchError(f"segment {len(supports)}: {len(supports)} supports, expected {len(segments)}")
    seen = np.zeros(d, dtype=bool)
    lowest: np.uint64 | None = None
    for index, (positions, codes) in enumerate(zip(segments, coded, strict=True)):
        if positions.size != codes.size:
            raise SupportMismatchError(f"segment {index}: {codes.size} values, expected {positions.size}")
        if positions.size == 0:
            continue
        if positions[0] < 0 or positions[-1] >= d or (np.diff(positions) <= 0).any() or seen[positions].any():
            raise SupportMismatchError(f"segment {index}: positions are not ascending, new and below d = {d}")
        seen[positions] = True
        keys = order_keys(codes, positions, round_id)
        if lowest is not None and keys.max() > lowest:
            raise SupportMismatchError(f"segment {index} holds a larger weight than segment {index - 1}")
        lowest = keys.min()
    for index, found in enumerate(support_digests(segments, round_id, d)):
        if found != supports[index]:
            raise SupportMismatchError(
                f"segment {index}: support {found.hex()[:16]}…, expected {supports[index].hex()[:16]}…"
            )


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
