"""What a device refuses to train on, and what honest rounds look like: the gate tells the two apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_client.gate import Known, batch_size, check_model, check_steps
from edge_client.receiving import ReceivedModel
from edge_client.settings import GateSettings
from edge_client.training import count_steps
from fedpruneshare.errors import GateError
from fedpruneshare.messages import Training
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.support import code_values

TABLE = ParameterTable(
    (
        Parameter("conv.weight", (8, 3, 5), Role.WEIGHT, 0),
        Parameter("conv.bias", (8,), Role.VECTOR),
        Parameter("norm.weight", (8,), Role.VECTOR),
        Parameter("norm.running_mean", (8,), Role.BUFFER),
        Parameter("norm.running_var", (8,), Role.VARIANCE),
        Parameter("head.weight", (4, 8), Role.WEIGHT, 0),
        Parameter("head.bias", (4,), Role.VECTOR),
    )
)
RNG = np.random.default_rng(3)
WEIGHTS = (0.1 * RNG.standard_normal(TABLE.weight_count)).astype(np.float32)
BIAS, SCALE, MEAN, VARIANCE, HEAD_BIAS = slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 32), slice(32, 36)


def vectors(**changes: Any) -> np.ndarray:
    flat = np.zeros(TABLE.vector_count, np.float32)
    flat[SCALE] = flat[VARIANCE] = 1.0
    places = {"bias": BIAS, "scale": SCALE, "mean": MEAN, "variance": VARIANCE, "head_bias": HEAD_BIAS}
    for name, value in changes.items():
        flat[places[name]] = value
    return flat


def received(weights: np.ndarray = WEIGHTS, own: np.ndarray | None = None, density: float = 1.0) -> ReceivedModel:
    count = round(density * weights.size)
    positions = np.sort(np.argsort(-np.abs(weights), kind="stable")[:count])
    codes = code_values(weights[positions])
    flat = vectors() if own is None else own
    return ReceivedModel((positions,), (codes,), np.arange(flat.size), flat, (), None)


def check(model: ReceivedModel, version: int = 1, before: Known | None = None, **settings: float) -> Known:
    return check_model(model, version, TABLE, GateSettings(**settings), before)  # type: ignore[arg-type]


def known(**changes: Any) -> Known:
    return check(received(own=vectors(**changes)), 1)


def test_honest_rounds_pass_while_weights_are_pruned_and_grow() -> None:
    """Two hundred rounds of random steps, the density falling, the norm rising twentyfold."""
    rng, weights, own, before = np.random.default_rng(0), WEIGHTS.copy(), vectors(), None
    for version in range(200):
        weights += (0.05 * rng.standard_normal(weights.size)).astype(np.float32)
        own += (0.05 * rng.standard_normal(own.size)).astype(np.float32)
        own[VARIANCE] = np.abs(own[VARIANCE])
        before = check(received(weights, own, density=1.0 - 0.9 * version / 200), version, before)


def test_a_device_that_was_away_takes_what_has_grown_meanwhile() -> None:
    before = known()
    with pytest.raises(GateError, match=r"'conv\.weight' went from .* in 1 rounds, expected at most"):
        check(received(WEIGHTS * 40), 2, before)
    check(received(WEIGHTS * 40), 4, before)


@pytest.mark.parametrize(
    ("weights", "own", "reason"),
    [
        (WEIGHTS * 30, {}, r"'conv.weight' went from 0.1"),
        (WEIGHTS, {"head_bias": 300.0}, r"'head.bias' went from 0 to 300 .* \(gate.growth = 10 a round\)"),
        (WEIGHTS, {"scale": 101.0}, "'norm.weight' reaches 101, expected at most 100"),
        (WEIGHTS, {"variance": -0.5}, "'norm.running_var' has a variance below zero"),
        (WEIGHTS, {"mean": 2e6}, r"'norm.running_mean' reaches 2e\+06, expected at most 1e\+06"),
        (WEIGHTS, {"bias": np.nan}, "not finite"),
        (WEIGHTS, {"bias": -80.0}, "8 of 8 units of 'conv.weight' went dead at once, expected at most 50%"),
        (np.where(np.arange(WEIGHTS.size) < 90, 0, WEIGHTS), {}, "6 of 8 units of 'conv.weight' went dead"),
    ],
)
def test_a_crafted_model_is_refused_by_name(weights: np.ndarray, own: dict[str, Any], reason: str) -> None:
    with pytest.raises(GateError, match=f"model gate: .*{reason}"):
        check(received(weights.astype(np.float32), vectors(**own)), 2, known(bias=-8.9))


def test_a_first_model_has_absolute_bounds_alone() -> None:
    check(received(WEIGHTS * 300, vectors(head_bias=300.0)))
    with pytest.raises(GateError, match="8 of 8 units"):
        check(received(own=vectors(bias=-80.0)))


def test_units_that_were_pruned_or_off_before_are_nobodys_doing() -> None:
    """With the density, whole channels leave the support; what was dead before is dead after."""
    gone = WEIGHTS.copy()
    gone[:90] *= 1e-3
    check(received(gone, density=0.4), 2, known())
    before = Known(1, WEIGHTS, vectors(bias=-80.0))
    check(received(own=vectors(bias=-80.0)), 2, before)


def test_a_probe_that_is_drawn_anew_kills_nobody() -> None:
    """Units that only a probe had weights of are at zero again, and were not switched off."""
    tested = np.where(np.arange(WEIGHTS.size) < 90, 0, WEIGHTS).astype(np.float32)
    places = np.arange(WEIGHTS.size)
    parts = places[90:], places[:90]
    codes = tuple(code_values(tested[part]) for part in parts)
    model = ReceivedModel(parts, codes, np.arange(TABLE.vector_count), vectors(), (), None)
    check_model(model, 2, TABLE, GateSettings(), known(), True)
    with pytest.raises(GateError, match="6 of 8 units"):
        check_model(model, 2, TABLE, GateSettings(), known(), False)


def test_bounds_are_settings() -> None:
    check(received(WEIGHTS * 30), 2, known(), growth=100.0)
    check(received(own=vectors(scale=101.0)), scale_max=200.0)
    check(received(own=vectors(bias=-80.0)), 2, known(bias=-8.9), dead_share=1.0)


@pytest.mark.parametrize("examples", [4, 9, 31, 32, 33, 64, 500])
@pytest.mark.parametrize("planned", [2, 32, 65_536])
def test_no_upload_is_one_gradient(examples: int, planned: int) -> None:
    """Also where the plan's batches are as large as the data: then the device halves them."""
    training = Training(1, planned, 0.1)
    size = batch_size(examples, training, GateSettings())
    assert count_steps(examples, size) >= 2
    if count_steps(examples, planned) >= 2:
        assert size == planned
    assert batch_size(examples, training, GateSettings(least_steps=1)) == planned


def test_too_few_examples_for_two_steps_is_a_reason_to_decline() -> None:
    steps = count_steps(3, batch_size(3, Training(1, 32, 0.1), GateSettings()))
    with pytest.raises(GateError, match=r"1 local steps, expected at least 2 \(gate.least_steps\)"):
        check_steps(steps, GateSettings())
    check_steps(1, GateSettings(least_steps=1))
