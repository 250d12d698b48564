"""Quantisation is unbiased and bounded, and the clip cannot run away (docs/protocol.md §6.4)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import PlanError, ProtocolError
from fedpruneshare.sharing.digits import zero_point
from fedpruneshare.sparse.update import (
    ClipRule,
    SparseUpdate,
    clamp_weight,
    dequantise_sum,
    per_element_clips,
    quantise,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def full(value: float, size: int) -> np.ndarray:
    return np.full(size, value, dtype=np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_rounding_is_unbiased(bits: int) -> None:
    for value in (0.0, 0.013, -0.037, 0.0999):
        values = full(value, 200_000)
        got = quantise(values, full(0.1, values.size), zero_point(bits), (3, 4), rng(bits)).astype(np.float64)
        step = 0.1 / zero_point(bits)
        mean = got.mean() * step
        assert abs(mean - value * 0.75) < 5 * step * 0.5 / np.sqrt(values.size) + 1e-9


@given(st.integers(2, 16), st.floats(-10, 10, width=32), st.integers(1, 512))
def test_integers_stay_in_range(bits: int, value: float, weight: int) -> None:
    got = quantise(full(value, 20), full(0.5, 20), zero_point(bits), (weight, 512), rng())
    assert got.dtype == np.int32
    assert -zero_point(bits) <= int(got.min()) <= int(got.max()) <= zero_point(bits)


def test_clipped_values_land_on_the_ends() -> None:
    got = quantise(np.array([9, -9], dtype=np.float32), full(1.0, 2), 7, (1, 1), rng())
    assert got.tolist() == [7, -7]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_sent(value: float) -> None:
    with pytest.raises(ProtocolError, match="not finite"):
        quantise(full(value, 1), full(1.0, 1), 7, (1, 1), rng())


def test_a_sum_comes_back_within_its_rounding_error() -> None:
    devices, size, bits = 12, 5000, 4
    values = rng(1).normal(scale=0.02, size=(devices, size)).astype(np.float32).clip(-0.1, 0.1)
    weights = rng(2).integers(1, 512, devices)
    digits = [
        quantise(v, full(0.1, size), zero_point(bits), (int(w), 512), rng(9 + i))
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    ]
    got = dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), full(0.1, size), zero_point(bits))
    exact = (values * weights[:, None] / 512).sum(axis=0)
    assert np.abs(got - exact).max() <= devices * 0.1 / zero_point(bits)
    assert np.abs(got - exact).mean() < 0.5 * np.sqrt(devices) * 0.1 / zero_point(bits)


def test_each_coordinate_has_its_tensors_clip() -> None:
    bounds, positions = np.array([0, 3, 3, 10]), np.array([9, 0, 2, 3])
    assert per_element_clips(bounds, positions, (1.0, 2.0, 3.0)).tolist() == [3, 1, 1, 3]
    with pytest.raises(PlanError, match="2 clips, expected 3"):
        per_element_clips(bounds, positions, (1.0, 2.0))


@pytest.mark.parametrize("clip", [1e-50, 0.0, -1.0, 1e39, np.inf, np.nan])
def test_a_clip_that_is_no_positive_float32_is_refused(clip: float) -> None:
    """1e-50 is a positive double and so passes a plan's schema; as float32 it is zero."""
    with pytest.raises(PlanError, match="positive finite float32"):
        per_element_clips(np.array([0, 3, 6]), np.arange(6), (1.0, clip))


def test_a_model_without_tensors_of_a_kind_has_no_clips() -> None:
    assert per_element_clips(np.array([0]), np.empty(0, dtype=np.int64), ()).size == 0


@pytest.mark.parametrize(
    ("examples", "expected"), [(0, (1, True)), (5, (5, False)), (512, (512, False)), (900, (512, True))]
)
def test_weights_are_clamped(examples: int, expected: tuple[int, bool]) -> None:
    assert clamp_weight(examples, 512) == expected


@given(st.floats(1e-5, 10), st.floats(0, 10), st.integers(3, 100))
def test_the_clip_moves_at_most_fourfold(clip: float, scale: float, contributors: int) -> None:
    mean = rng().normal(scale=scale, size=100)
    moved = ClipRule(3.0).next_clip(clip, mean, contributors)
    assert clip / 4 * 0.999 <= moved <= clip * 4 * 1.001 or moved == 1e-6


def test_the_clip_keeps_its_value_where_nothing_was_opened() -> None:
    assert ClipRule(3.0).next_clip(0.07, np.empty(0), 10) == 0.07
    assert ClipRule(3.0).next_clip(0.07, np.zeros(5), 10) == 0.07


def test_the_clip_follows_the_updates() -> None:
    """Ten devices with independent updates of deviation 0.01: factor 3 asks for a clip of 0.03."""
    clip, rule = 0.5, ClipRule(3.0)
    for step in range(8):
        draws = rng(step).normal(scale=0.01, size=(10, 4000)).astype(np.float32)
        digits = [quantise(v, full(clip, 4000), 7, (1, 1), rng(50 + step)) for v in draws]
        folded = dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), full(clip, 4000), 7)
        clip = rule.next_clip(clip, folded / 10, 10)
    assert 0.025 < clip < 0.04


def test_rounding_noise_alone_lets_the_clip_fall() -> None:
    """Also with weights far below max_weight, where folded updates are all but nothing."""
    clip, rule = 0.1, ClipRule(3.0)
    for step in range(10):
        draws = rng(step).normal(scale=0.01, size=(10, 2000)).astype(np.float32)
        digits = [quantise(v, full(clip, 2000), 7, (5, 100_000), rng(50 + step + i)) for i, v in enumerate(draws)]
        folded = dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), full(clip, 2000), 7)
        clip = rule.next_clip(clip, folded / 10, 10)
    assert clip < 0.001


@pytest.mark.parametrize(("bits", "devices", "weight", "max_weight"), [(4, 10, 5, 100_000), (4, 10, 5, 512),
                                        (8, 50, 64, 2**20), (4, 3, 1, 1), (2, 10, 1, 1), (2, 10, 1, 64)])  # fmt: skip
def test_thirty_rounds_of_noise_never_raise_the_clip(bits: int, devices: int, weight: int, max_weight: int) -> None:
    """Updates without a direction and a tenth of the clip; the lighter they are, the more of the sum is rounding."""
    clip, rule, moved = 0.1, ClipRule(3.0), 0
    for step in range(30):
        draws = rng(step).normal(scale=0.01, size=(devices, 500)).astype(np.float32)
        one = rng(100 + step)
        digits = [quantise(v, full(clip, 500), zero_point(bits), (weight, max_weight), one) for v in draws]
        folded = dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), full(clip, 500), zero_point(bits))
        following = rule.next_clip(clip, folded / devices, devices)
        assert (following == clip) if not folded.any() else (clip / 4 * 0.999 <= following <= 0.1)
        moved += bool(folded.any())
        clip = following
    assert moved
    assert clip < 0.1


def test_what_overflows_leaves_the_clip_alone() -> None:
    with np.errstate(over="ignore"):
        assert ClipRule(3.0).next_clip(0.07, np.full(3, 1e200), 10) == 0.07
    assert ClipRule(3.0).next_clip(0.07, np.array([1.0, np.nan]), 10) == 0.07
    assert ClipRule(3.0).next_clip(1e-6, np.full(3, 1e-30), 10) == 1e-6


@given(st.integers(2, 16), st.integers(1, 40), st.integers(1, 512))
def test_a_sum_of_many_devices_is_inverted_within_one_step_each(bits: int, devices: int, weight: int) -> None:
    values = rng(devices).uniform(-0.1, 0.1, size=(devices, 50)).astype(np.float32)
    clips = np.linspace(0.1, 0.5, 50).astype(np.float32)
    draw = rng(weight)
    digits = [quantise(v, clips, zero_point(bits), (weight, 512), draw) for v in values]
    got = dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), clips, zero_point(bits))
    exact = (values.astype(np.float64) * weight / 512).sum(axis=0)
    assert (np.abs(got - exact) < devices * clips / zero_point(bits) + 1e-9).all()


def test_integers_on_the_grid_come_back_exactly() -> None:
    q, clips = zero_point(4), full(0.875, 15)
    steps = np.arange(-q, q + 1, dtype=np.float32) / q * 0.875
    got = quantise(steps[1:-1].astype(np.float32), clips[: 2 * q - 1], q, (1, 1), rng())
    assert got.tolist() == list(range(1 - q, q))
    assert dequantise_sum(got.astype(np.int64), clips[: 2 * q - 1], q) == pytest.approx(steps[1:-1], abs=1e-7)


def test_an_update_shows_no_value() -> None:
    values = full(0.123456, 3)
    update = SparseUpdate(1, bytes(32), 0, 5, np.arange(3), values, np.arange(3), values)
    assert "0.123" not in repr(update)
    assert "values=3" in repr(update)


def test_quantising_takes_little_more_room_than_what_comes_of_it() -> None:
    """On a board of 512 MiB the values in between must not take five times the result."""
    count = 1_000_000
    values, clips = np.full(count, 0.03, dtype=np.float32), np.full(count, 0.1, dtype=np.float32)
    tracemalloc.start()
    made = quantise(values, clips, 7, (3, 4), np.random.default_rng(0))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < made.nbytes + 8 * 2**20
    scaled = np.float64(0.03) * 0.75 / 0.1 * 7
    assert np.array_equal(made, np.floor(scaled) + (np.random.default_rng(0).random(count) < scaled - np.floor(scaled)))
