"""Updates whose sum says who was counted, and how often: in place `i` of segment 0, device `i` alone has a one.

The other places hold small numbers of the device's own, so that a sum is right only if everybody in it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpruneshare.plan import PlanView
from fedpruneshare.rng import stream
from fedpruneshare.sharing.digits import shift
from fedpruneshare.sharing.field import Words
from fedpruneshare.words import SegmentWords
from testbed.faults.recording import replace

_SPREAD = 3


def oracle_words(view: PlanView, rung: int, index: int, devices: int) -> tuple[int, Words]:
    """The weight and the words of device `index` of so many; the same for the same device and round."""
    coding = view.plan.coding
    rng = stream(1, "oracle", index, view.plan.round_id)
    weight, words = int(rng.integers(1, coding.max_weight + 1)), []
    for number, segment in enumerate(view.plan.segments[: rung + 1]):
        values = rng.integers(-_SPREAD, _SPREAD + 1, segment.weights)
        vectors = rng.integers(-_SPREAD, _SPREAD + 1, segment.vectors)
        if number == 0:
            values[:devices] = 0
            values[index] = 1
        parts = shift(vectors, coding.vector_bits), shift(values, coding.value_bits)
        words.append(view.layout.pack(SegmentWords(weight, *parts)))
    return weight, np.concatenate(words)


def in_synthetic_devices(devices: int) -> None:
    """Let the synthetic devices of this process upload oracle words."""
    from testbed.synthetic.words import random_words

    def words(view: PlanView, rung: int, _seed: int, index: int) -> tuple[int, Words]:
        return oracle_words(view, rung, index, devices)

    replace(random_words, words)


def in_real_device(index: int, devices: int) -> None:
    """Let the device of this process train as it always does, and upload oracle words."""
    from edge_client import local_round

    def words(view: PlanView, _table: Any, update: Any, _rng: Any) -> Words:
        return oracle_words(view, update.rung, index, devices)[1]

    replace(local_round.encode_words, words)
