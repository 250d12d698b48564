"""Averaging by segment is plain masked FedAvg (docs/protocol.md §4.6)."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import TABLE

from coordinator.averaging import VARIANCE_FLOOR, SegmentSum, apply_update, server_step
from coordinator.settings import AveragingSettings
from fedpruneshare.errors import ProtocolError
from fedpruneshare.sharing.digits import zero_point
from fedpruneshare.sparse.parameters import Role
from fedpruneshare.sparse.support import Support, code_values, derive_support
from fedpruneshare.sparse.update import dequantise_sum, quantise

MAX_WEIGHT = 512
D, V = TABLE.weight_count, TABLE.vector_count


def world(seed: int = 0, devices: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.normal(size=D).astype(np.float32),
        "vectors": np.abs(rng.normal(size=V)).astype(np.float32),
        "deltas": rng.normal(scale=0.1, size=(devices, D)),
        "vector_deltas": rng.normal(scale=0.1, size=(devices, V)),
        "examples": rng.integers(1, MAX_WEIGHT, devices),
        "rungs": np.arange(devices) % 3,
    }


def supports(weights: np.ndarray, round_id: int, counts: tuple[int, ...]) -> Support:
    made = derive_support(code_values(weights), round_id, counts)
    none = np.empty(0, dtype=np.int64)
    return Support(made.d, made.segments, (np.arange(V), *[none] * (len(counts) - 1)))


def folded(w: dict[str, np.ndarray], support, index: int) -> SegmentSum:  # type: ignore[no-untyped-def]
    there = np.flatnonzero(w["rungs"] >= index)
    fold = (w["examples"][there] / MAX_WEIGHT)[:, None]
    positions = support.segments[index]
    vectors = (w["vector_deltas"][there] * fold).sum(axis=0) if index == 0 else np.empty(0)
    values = (w["deltas"][there][:, positions] * fold).sum(axis=0)
    return SegmentSum(int(w["examples"][there].sum()), there.size, values, vectors)


def test_mixed_rungs_and_unequal_weights_equal_masked_fedavg() -> None:
    w = world()
    support = supports(w["weights"], 1, (20, 50, 100))
    opened = {index: folded(w, support, index) for index in range(3)}
    weights, vectors = apply_update((w["weights"], w["vectors"]), support, opened, TABLE, MAX_WEIGHT)
    held = np.zeros((9, D), dtype=bool)
    for device, rung in enumerate(w["rungs"]):
        held[device, support.prefix(int(rung))] = True
    share = held * w["examples"][:, None]
    expected = np.where(
        held.any(axis=0), w["weights"] + (w["deltas"] * share).sum(axis=0) / np.maximum(share.sum(axis=0), 1), 0.0
    )
    assert weights == pytest.approx(expected, abs=1e-5)
    expected = w["vectors"] + np.average(w["vector_deltas"], axis=0, weights=w["examples"])
    bounds = TABLE.vector_bounds()
    expected[bounds[1] : bounds[2]] = np.maximum(expected[bounds[1] : bounds[2]], VARIANCE_FLOOR)
    assert vectors == pytest.approx(expected, abs=1e-5)


def test_what_was_not_opened_keeps_its_value_and_the_rest_is_zero() -> None:
    w = world()
    support = supports(w["weights"], 1, (20, 50, 100))
    weights, _ = apply_update((w["weights"], w["vectors"]), support, {0: folded(w, support, 0)}, TABLE, MAX_WEIGHT)
    closed = np.concatenate(support.segments[1:])
    assert np.array_equal(weights[closed], w["weights"][closed])
    outside = np.setdiff1d(np.arange(D), support.prefix(2))
    assert not weights[outside].any()
    assert not np.array_equal(weights[support.segments[0]], w["weights"][support.segments[0]])


def test_variances_stay_positive() -> None:
    w = world()
    support = supports(w["weights"], 1, (20,))
    down = SegmentSum(9, 9, np.zeros(20), np.full(V, -1e6))
    _, vectors = apply_update((w["weights"], w["vectors"]), support, {0: down}, TABLE, MAX_WEIGHT)
    bounds = TABLE.vector_bounds()
    assert set(vectors[bounds[1] : bounds[2]].tolist()) == {np.float32(VARIANCE_FLOOR)}
    assert (vectors[: bounds[1]] < 0).all()


@pytest.mark.parametrize("weight", [0, 8, 9 * MAX_WEIGHT + 1])
def test_a_weight_sum_that_contradicts_its_contributors_is_refused(weight: int) -> None:
    w = world()
    support = supports(w["weights"], 1, (20,))
    wrong = SegmentSum(weight, 9, np.zeros(20), np.zeros(V))
    with pytest.raises(ProtocolError, match=f"weight sum {weight}, expected 9 to {9 * MAX_WEIGHT}"):
        apply_update((w["weights"], w["vectors"]), support, {0: wrong}, TABLE, MAX_WEIGHT)


def test_a_sum_of_nobody_is_refused() -> None:
    w = world()
    support = supports(w["weights"], 1, (20,))
    with pytest.raises(ProtocolError, match="weight sum 0, expected 1"):
        nobody = SegmentSum(0, 0, np.zeros(20), np.zeros(V))
        apply_update((w["weights"], w["vectors"]), support, {0: nobody}, TABLE, MAX_WEIGHT)


@pytest.mark.parametrize(("index", "values", "vectors"), [(0, 1, V), (0, 20, 1), (0, 20, 0), (1, 30, V), (2, 20, 0)])
def test_a_sum_of_another_size_is_refused(index: int, values: int, vectors: int) -> None:
    w = world()
    support = supports(w["weights"], 1, (20, 50))
    wrong = SegmentSum(9, 9, np.ones(values), np.ones(vectors))
    with pytest.raises(ProtocolError, match=f"segment {index}"):
        apply_update((w["weights"], w["vectors"]), support, {index: wrong}, TABLE, MAX_WEIGHT)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_quantised_rounds_are_fedavg_within_the_rounding_error(bits: int) -> None:
    """Each device is off by less than one step of clip/Q, so Σ by less than N steps, the mean by N·max_weight/Σw."""
    w, clip, q = world(), 0.5, zero_point(bits)
    support = supports(w["weights"], 1, (20, 50, 100))
    exact = {index: folded(w, support, index) for index in range(3)}
    opened = {}
    for index, whole in exact.items():
        there = np.flatnonzero(w["rungs"] >= index)
        parts = [w["deltas"][there][:, support.segments[index]]] + ([w["vector_deltas"][there]] if index == 0 else [])
        sums = []
        for part in parts:
            clips = np.full(part.shape[1], clip, dtype=np.float32)
            digits = [
                quantise(v.astype(np.float32), clips, q, (int(w["examples"][i]), MAX_WEIGHT), np.random.default_rng(i))
                for i, v in zip(there, part, strict=True)
            ]
            sums.append(dequantise_sum(np.sum(digits, axis=0, dtype=np.int64), clips, q))
        opened[index] = SegmentSum(whole.weight, whole.contributors, sums[0], sums[1] if index == 0 else np.empty(0))
    before = (w["weights"], w["vectors"])
    for found, expected, segments in zip(
        apply_update(before, support, opened, TABLE, MAX_WEIGHT),
        apply_update(before, support, exact, TABLE, MAX_WEIGHT),
        (range(3), range(1)),
        strict=True,
    ):
        step = clip / (2 ** (bits - 1) - 1)
        bound = max(exact[i].contributors * step * MAX_WEIGHT / exact[i].weight for i in segments)
        assert 0 < np.abs(found - expected).max() < bound + 1e-6


def test_a_model_that_is_not_finite_is_refused() -> None:
    w = world()
    support = supports(w["weights"], 1, (20,))
    # Finite as float64, so the check must come after the cast.
    overflowing = SegmentSum(9, 9, np.zeros(20), np.full(V, 1e38))
    with pytest.raises(ProtocolError, match="not finite"):
        apply_update((w["weights"], w["vectors"]), support, {0: overflowing}, TABLE, MAX_WEIGHT)
    wrong = SegmentSum(9, 9, np.full(20, np.inf), np.zeros(V))
    with pytest.raises(ProtocolError, match="not finite"):
        apply_update((w["weights"], w["vectors"]), support, {0: wrong}, TABLE, MAX_WEIGHT)


# --------------------------------------------------------------------------- server optimisers


def rounds_of_means(count: int) -> list[dict[int, SegmentSum]]:
    """Opened sums of several rounds over the supports of `world`; segment 2 stays closed in every other one."""
    w = world()
    support = supports(w["weights"], 1, (20, 50, 100))
    made = []
    for place in range(count):
        draw = np.random.default_rng(place)
        opened = {
            index: SegmentSum(
                10 + index, 5, draw.normal(size=support.segments[index].size),
                draw.normal(size=TABLE.vector_count if index == 0 else 0),
            )
            for index in (range(3) if place % 2 == 0 else range(2))
        }  # fmt: skip
        made.append(opened)
    return made


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_server_optimisers_are_their_formulas(name: str) -> None:
    """Against the textbook, coordinate by coordinate, over three rounds."""
    w = world()
    support = supports(w["weights"], 1, (20, 50, 100))
    settings = AveragingSettings(name, server_learning_rate=0.5, beta_1=0.8, beta_2=0.9, tau=0.01)  # type: ignore[arg-type]
    moments, m, v = None, dict[tuple[int, int], float](), dict[tuple[int, int], float]()
    trained = np.concatenate([np.full(p.size, p.role is Role.VECTOR) for p in TABLE.vectors()])
    for opened in rounds_of_means(3):
        stepped, moments = server_step(opened, support, TABLE, MAX_WEIGHT, moments, settings)
        assert stepped.keys() == opened.keys()
        for index, segment in opened.items():
            scale = MAX_WEIGHT / segment.weight
            parts = [(0, support.segments[index], segment.values, stepped[index].values)]
            parts += [(1, np.arange(TABLE.vector_count), segment.vectors, stepped[index].vectors)] if index == 0 else []
            for kind, places, sums, steps in parts:
                for place, total, step in zip(places.tolist(), sums.tolist(), steps.tolist(), strict=True):
                    mean, key = total * scale, (kind, place)
                    if kind == 1 and not trained[place]:
                        expected = mean
                    elif name == "fedavg":
                        expected = 0.5 * mean
                    elif name == "fedavgm":
                        m[key] = 0.8 * m.get(key, 0.0) + mean
                        expected = 0.5 * m[key]
                    else:
                        m[key] = 0.8 * m.get(key, 0.0) + 0.2 * mean
                        v[key] = 0.9 * v.get(key, 0.0) + 0.1 * mean**2
                        expected = 0.5 * m[key] / (v[key] ** 0.5 + 0.01)
                    assert step * scale == pytest.approx(expected, rel=1e-4, abs=1e-5)  # moments are float32
    assert (moments is None) == (name == "fedavg")


def test_plain_averaging_leaves_the_sums_to_the_last_bit() -> None:
    w = world()
    support = supports(w["weights"], 1, (20, 50, 100))
    (opened,) = rounds_of_means(1)
    stepped, moments = server_step(opened, support, TABLE, MAX_WEIGHT, None, AveragingSettings())
    assert moments is None
    assert all(stepped[index] is opened[index] for index in opened)


def test_moments_are_kept_where_nothing_was_opened_and_lost_with_the_coordinate() -> None:
    w = world()
    wide = supports(w["weights"], 1, (20, 50, 100))
    first, second = rounds_of_means(2)
    settings = AveragingSettings("fedavgm")
    _, before = server_step(first, wide, TABLE, MAX_WEIGHT, None, settings)
    _, after = server_step(second, wide, TABLE, MAX_WEIGHT, before, settings)
    assert before is not None
    assert after is not None
    closed, opened = wide.segments[2], wide.segments[0]
    assert np.array_equal(after.first[closed], before.first[closed])
    assert np.abs(before.first[closed]).min() > 0
    assert not np.array_equal(after.first[opened], before.first[opened])
    narrow = supports(w["weights"], 2, (20, 50))
    _, pruned = server_step(
        {0: SegmentSum(9, 3, np.ones(20), np.ones(TABLE.vector_count))}, narrow, TABLE, MAX_WEIGHT, after, settings
    )
    assert pruned is not None
    outside = np.setdiff1d(np.arange(TABLE.weight_count), narrow.prefix(1))
    assert not pruned.first[outside].any()
