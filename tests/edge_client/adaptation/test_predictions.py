"""Predicted beside actual: what is learnt, how fast, and what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from deciding import offer, state
from hypothesis import given
from hypothesis import strategies as st

from edge_client.adaptation.estimates import Prediction, predict, resolve
from edge_client.adaptation.predictions import Actual, Correction, PredictionLog, corrected
from edge_client.density import DeviceState, decide
from edge_client.settings import DeviceLimits

# --------------------------------------------------------------------------- the rule


def test_a_lasting_misprediction_is_learnt_in_a_few_rounds() -> None:
    for truth in (2.0, 0.5):
        correction, errors = Correction(), []
        for _ in range(5):
            predicted = 10.0 * correction.ratio
            errors.append(abs(10.0 * truth / predicted - 1))
            correction = corrected(correction, predicted, 10.0 * truth)
        assert errors[0] >= 0.5
        assert errors[4] < 0.1
        assert correction.ratio == pytest.approx(truth, rel=0.03)


def test_one_outlier_moves_nothing() -> None:
    for before in (Correction(), Correction(1.5, (1.5, 1.5))):
        correction = corrected(before, 10.0, 100.0)
        assert correction.ratio == before.ratio
        for _ in range(3):
            correction = corrected(correction, 10.0 * correction.ratio, 10.0 * before.ratio)
            assert correction.ratio == pytest.approx(before.ratio)


RATIOS = st.floats(0.25, 4.0)


@given(RATIOS, RATIOS, RATIOS, st.floats(), st.floats())
def test_whatever_happens_it_stays_bounded(
    ratio: float, older: float, newer: float, predicted: float, actual: float
) -> None:
    after = corrected(Correction(ratio, (older, newer)), predicted, actual)
    assert all(0.25 <= value <= 4.0 for value in (after.ratio, *after.recent))


@pytest.mark.parametrize("nothing", [0.0, -1.0, float("nan"), float("inf")])
def test_nothing_is_learnt_from_nothing(nothing: float) -> None:
    before = Correction(1.5, (1.2, 1.3))
    assert corrected(before, nothing, 1.0) == corrected(before, 1.0, nothing) == before


# --------------------------------------------------------------------------- round after round


def prediction(at: DeviceState | None = None) -> Prediction:
    return predict(resolve(offer(), at or state()), offer().rungs[2], 100)


def outcome(of: Prediction, factor: float = 1.0, **changes: object) -> Actual:
    seconds = {phase: factor * value for phase, value in of.seconds.items()}
    return dataclasses.replace(Actual(seconds, of.down_bytes, of.up_bytes), **changes)  # type: ignore[arg-type]


def test_both_sides_stand_in_the_entry(tmp_path: Path) -> None:
    predicted = prediction()
    seconds = {"receive": 0.1, "train": 21.0, "prune": 1.0, "encode": 0.4, "share": 0.2, "send": 0.3, "idle": 9.0}
    actual = Actual(seconds, down_bytes=50_500, up_bytes=101_000, joules=88.5, mib=310.0)
    entry = PredictionLog(tmp_path).record(predicted, actual)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["predicted"]["seconds"]["train"] == 20.0
    assert entry["predicted"]["up_bytes"] == 100_000
    assert entry["actual"] == {
        "seconds": {"receive": 0.1, "train": 22.0, "share": pytest.approx(0.6), "send": 0.3},
        "down_bytes": 50_500,
        "up_bytes": 101_000,
        "joules": 88.5,
        "mib": 310.0,
    }
    assert set(entry["corrections"]) == {"receive", "train", "share", "send", "energy", "memory"}


def test_a_slower_device_than_predicted_learns_it_and_takes_a_lower_rung(tmp_path: Path) -> None:
    taken, log = [], PredictionLog(tmp_path)
    for _ in range(5):
        at = state(corrections=log.ratios(), last_rung=taken[-1] if taken else None)
        decision = decide(offer(remaining_s=40.0), DeviceLimits(), at)
        assert decision.rung is not None and decision.predicted is not None
        taken.append(decision.rung)
        truth = {**decision.predicted.seconds, "train": 2 * 0.2 * decision.width * 100}
        log.record(decision.predicted, Actual(truth, 0, 0))
    assert taken[0] == 2
    assert taken[-1] == 1
    assert PredictionLog(tmp_path).ratios() == log.ratios()
    assert log.ratios()["train"] == pytest.approx(2.0, rel=0.05)


def test_one_slow_round_does_not_flip_the_decision(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for factor in (1.0, 1.0, 10.0, 1.0, 1.0):
        decision = decide(offer(remaining_s=26.0), DeviceLimits(), state(corrections=log.ratios(), last_rung=2))
        assert decision.rung == 2
        assert decision.predicted is not None
        log.record(decision.predicted, outcome(decision.predicted, factor))
    assert decide(offer(remaining_s=26.0), DeviceLimits(), state(corrections=log.ratios(), last_rung=2)).rung == 2


def test_waiting_for_a_broker_is_no_slow_link(tmp_path: Path) -> None:
    """A sparse rung's shares take milliseconds and a receipt longer: that must not keep a device from going up."""
    log = PredictionLog(tmp_path)
    for _ in range(5):
        made = prediction(state(corrections=log.ratios()))
        log.record(made, outcome(made, seconds={"receive": 0.001, "share": 0.05, "send": 0.3}))
    assert log.ratios()["receive"] > 0.85
    assert log.ratios()["share"] < 1.5
    assert log.ratios()["send"] < 1.5


def test_what_was_cut_short_or_unpredicted_teaches_nothing(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    unmeasured = prediction(state(calibration=None))
    assert "train" not in unmeasured.seconds
    log.record(unmeasured, Actual({"train": 50.0, "send": 1.0}, 0, 0, joules=500.0, mib=900.0))
    assert set(log.ratios()) == {"send"}


def test_memory_is_learnt_on_top_of_the_base(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for _ in range(6):
        at = state(corrections=log.ratios())
        log.record(prediction(at), outcome(prediction(at), mib=200.0 + 2 * prediction().extra_mib))
    assert log.ratios()["memory"] == pytest.approx(2.0, rel=0.05)
    assert prediction(state(corrections=log.ratios())).mib == pytest.approx(200 + 2 * prediction().extra_mib, rel=0.05)


# --------------------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\x00",
        b"[" * 100_000,
        b'{"schema": 2, "corrections": {}}',
        b'{"schema": 1, "corrections": {"train": {"ratio": 99, "recent": [1, 1]}}}',
        b'{"schema": 1, "corrections": {"train": {"ratio": NaN, "recent": [1, 1]}}}',
        b'{"schema": 1, "corrections": {"train": {"ratio": 1, "recent": [1]}}}',
    ],
)
def test_a_damaged_file_is_forgotten_and_written_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "corrections.json"
    path.write_bytes(damage)
    log = PredictionLog(tmp_path)
    assert log.ratios() == {}
    log.record(prediction(), outcome(prediction()))
    assert PredictionLog(tmp_path).ratios() == log.ratios() != {}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_its_place_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "corrections.json").mkdir()
    assert PredictionLog(tmp_path).ratios() == {}
