"""What a synthetic device uploads: random words, coded as a real update is (docs/protocol.md §5.10, §6.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.plan import PlanView
from fedpruneshare.rng import stream
from fedpruneshare.sharing.digits import Digits, shift, zero_point
from fedpruneshare.sharing.field import Words
from fedpruneshare.sparse.update import quantise
from fedpruneshare.words import SegmentWords

#: Spread of the values, as a part of the clip: the coordinator's own factor, so that clips stay about what they are.
_SPREAD = 1.0 / 3.0


def random_words(view: PlanView, rung: int, seed: int, index: int) -> tuple[int, Words]:
    """The weight and the words of device `index` at a rung: the same for the same seed, device and round."""
    coding = view.plan.coding
    rng = stream(seed, "synthetic", index, view.plan.round_id)
    weight = int(rng.integers(1, coding.max_weight + 1))
    if view.is_plain:
        return weight, _plain_words(view, rung, weight, rng)
    fold = (weight, coding.max_weight)
    segments = [
        SegmentWords(
            weight,
            _digits(segment.vectors, coding.vector_bits, fold, rng),
            _digits(segment.weights, coding.value_bits, fold, rng),
        )
        for segment in view.plan.segments[: rung + 1]
    ]
    return weight, np.concatenate([view.layout.pack(segment) for segment in segments])


def _plain_words(view: PlanView, rung: int, weight: int, rng: np.random.Generator) -> Words:
    """Random numbers as they are, where nothing is shared (docs/protocol.md §5.10)."""
    parts = [
        view.plain_layout.pack(weight, _draw(segment.vectors, rng), _draw(segment.weights, rng))
        for segment in view.plan.segments[: rung + 1]
    ]
    return np.concatenate(parts)


def _draw(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(count, dtype=np.float32)


def _digits(count: int, bits: int, fold: tuple[int, int], rng: np.random.Generator) -> Digits:
    values = _draw(count, rng) * np.float32(_SPREAD)
    return shift(quantise(values, np.ones(count, dtype=np.float32), zero_point(bits), fold, rng), bits)
