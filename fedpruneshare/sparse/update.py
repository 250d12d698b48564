"""Updates as small integers and back (docs/protocol.md §6.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import PlanError, ProtocolError
from fedpruneshare.sparse.support import Positions

Floats = NDArray[np.float32]
#: Values that are quantised at a time: what is in between takes five times the room of what comes out.
_BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class SparseUpdate:
    """What one device learnt, and its weight. Secret.

    Values float32[m] on positions int64[m], vector elements float32[u] on `vector_positions` int64[u].
    """

    round_id: int
    table: bytes
    rung: int
    weight: int
    positions: Positions
    values: Floats
    vector_positions: Positions
    vectors: Floats

    def __repr__(self) -> str:
        sizes = f"values={self.values.size}, vectors={self.vectors.size}"
        return f"SparseUpdate(round_id={self.round_id}, rung={self.rung}, {sizes})"


def clamp_weight(examples: int, max_weight: int) -> tuple[int, bool]:
    """Number of examples -> weight 1…max_weight, and whether it was clamped."""
    weight = min(max(examples, 1), max_weight)
    return weight, weight != examples


def per_element_clips(bounds: NDArray[np.int64], positions: Positions, clips: tuple[float, ...]) -> Floats:
    """Clip of each flat coordinate, float32[m]: tensor i owns coordinates bounds[i] to bounds[i+1].

    Raises `PlanError` if there is not one clip per tensor, or one is not a positive finite float32.
    """
    if len(clips) != bounds.size - 1:
        raise PlanError(f"{len(clips)} clips, expected {bounds.size - 1}: one per tensor")
    with np.errstate(over="ignore"):  # what overflows is named below
        rounded = np.asarray(clips, dtype=np.float64).astype(np.float32)
    if not (np.isfinite(rounded) & (rounded > 0)).all():
        raise PlanError(f"clips from {min(clips)} to {max(clips)}, expected positive finite float32 numbers")
    tensor = np.searchsorted(bounds, positions, side="right") - 1
    return rounded[tensor] if len(clips) else rounded


def quantise(
    values: Floats, clips: Floats, q: int, fold: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Values float32[m] -> integers int32[m] in −Q…Q: folded by weight/max_weight, clipped, rounded stochastically.

    `q`: the integer that the clip becomes; `fold` = (weight, max_weight). Rounding is unbiased: the expectation is the
    folded value, where it is not clipped. Raises `ProtocolError` for a value that is not finite: such an update must
    not be sent.
    """
    if not np.isfinite(values).all():
        raise ProtocolError("the update holds a value that is not finite, expected finite numbers")
    whole = np.empty(values.size, dtype=np.int32)
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        scaled = values[block].astype(np.float64) * (fold[0] / fold[1]) / clips[block] * q
        np.clip(scaled, -q, q, out=scaled)
        floor = np.floor(scaled)
        whole[block] = floor + (rng.random(scaled.size) < scaled - floor)
    return whole


def dequantise_sum(sums: NDArray[np.int64], clips: Floats, q: int) -> NDArray[np.float64]:
    """Sums of such integers int64[m] -> Σ v·w/max_weight, float64[m]."""
    return sums.astype(np.float64) * clips.astype(np.float64) / q


@dataclass(frozen=True)
class ClipRule:
    """How the clip of a tensor follows what was opened: factor·√N·rms(mean), changed at most `growth_max`-fold.

    The mean is that of the *folded* values, the ones that are clipped. So what rounding noise adds to the next clip is
    about 0.41·factor/Q of this one, whatever the weights are, and cannot run away.
    """

    factor: float
    growth_max: float = 4.0
    floor: float = 1e-6

    def next_clip(self, clip: float, mean: NDArray[np.float64], contributors: int) -> float:
        """Next clip from the opened mean of folded values; the old one if nothing was opened or nothing moved."""
        rms = float(np.sqrt(np.mean(np.square(mean)))) if mean.size else 0.0
        if not 0.0 < rms < math.inf:
            return clip
        wanted = self.factor * contributors**0.5 * rms
        return float(max(min(wanted, clip * self.growth_max), clip / self.growth_max, self.floor))
