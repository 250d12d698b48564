"""What was not shared is averaged as plain FedAvg does it (docs/protocol.md §5.10)."""

from __future__ import annotations

import numpy as np
import pytest
from builders import DEVICES, plain_view
from numpy.typing import NDArray

from coordinator.plain_updates import open_plain
from fedpruneshare.errors import ProtocolError
from fedpruneshare.messages import Contribution, Freeze
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.field import to_bytes

RUNGS = (0, 1, 1, 2, 2, 2, 1, 0, 0)


class Scene:
    """Nine updates at three rungs, as the aggregator passes them on."""

    def __init__(self) -> None:
        self.view: PlanView = plain_view()
        self.values: dict[str, list[NDArray[np.float32]]] = {}
        parts, contributors = [], []
        for place, (device, rung) in enumerate(zip(DEVICES, RUNGS, strict=False)):
            draw = np.random.default_rng(place)
            words = []
            for segment in self.view.plan.segments[: rung + 1]:
                vectors = draw.normal(size=segment.vectors).astype(np.float32)
                values = draw.normal(size=segment.weights).astype(np.float32)
                self.values.setdefault(device, []).append(values)
                words.append(self.view.plain_layout.pack(place + 1, vectors, values))
            parts.append(bytes(to_bytes(np.concatenate(words), self.view.field)))
            contributors.append(Contribution(device, bytes(16), rung))
        self.parts = parts
        self.freeze = Freeze(1, self.view.digest, ("aggregator-1",), tuple(contributors), (0, 1, 2))

    def answer(self, **wrong: bytes) -> dict[int, bytes]:
        return {1: b"".join(wrong.get(f"at_{place}", part) for place, part in enumerate(self.parts))}


def test_the_sum_is_weighted_and_of_those_who_reach_the_segment() -> None:
    scene = Scene()
    opened = open_plain(scene.view, scene.freeze, scene.answer())
    assert opened.segments == [0, 1, 2]
    assert (opened.is_verified, opened.left_out_devices) == (False, ())
    for index in opened.segments:
        there = [(place + 1, DEVICES[place]) for place, rung in enumerate(RUNGS) if rung >= index]
        expected = sum(weight * scene.values[device][index].astype(np.float64) for weight, device in there)
        assert opened.plain[index].weight == sum(weight for weight, _ in there)
        assert np.allclose(opened.plain[index].values, expected, rtol=1e-12, atol=0)


def test_an_update_that_no_device_may_send_is_left_out_and_named() -> None:
    scene = Scene()
    wrong = b"\xff" * len(scene.parts[8])  # a weight of 2**32 - 1, then NaN
    opened = open_plain(scene.view, scene.freeze, scene.answer(at_8=wrong))
    assert opened.left_out_devices == (DEVICES[8],)
    assert opened.plain[0].weight == sum(range(1, 9))


def test_too_few_sound_updates_open_nothing() -> None:
    scene = Scene()
    wrong = {f"at_{place}": b"\xff" * len(scene.parts[place]) for place in range(7)}
    with pytest.raises(ProtocolError, match="2 updates are sound, expected min_devices = 3"):
        open_plain(scene.view, scene.freeze, scene.answer(**wrong))
