"""What a round is predicted to cost, against figures worked out by hand."""

from __future__ import annotations

import math

import msgspec
import pytest
from deciding import BOARD, CALIBRATION, PARAMETERS, RUNGS, health, offer, state
from hypothesis import given
from hypothesis import strategies as st

from edge_client.adaptation.calibration import LinkRate
from edge_client.adaptation.estimates import DeviceState, Offer, Prediction, RungCost, cost_at, predict, resolve


def predicted(asked: Offer, at: DeviceState, rung: int = 2, steps: int = 100) -> Prediction:
    return predict(resolve(asked, at), asked.rungs[rung], steps)


# --------------------------------------------------------------------------- steps by width


def test_a_width_that_was_not_timed_is_estimated_on_the_safe_side() -> None:
    known = {0.5: 10.0, 1.0: 40.0}
    assert cost_at(known, 0.5) == 10.0
    assert cost_at(known, 0.75) == 25.0  # the chord; a square law would say 22.5
    assert cost_at(known, 0.25) == pytest.approx(6.0)  # proportional but for a fifth; a square law would say 2.5
    assert cost_at({0.25: 3.0, 0.5: 10.0}, 1.0) == pytest.approx(40.0)  # with the square
    assert cost_at({}, 0.5) is None


def test_noise_does_not_make_a_wider_model_cheaper() -> None:
    assert cost_at({0.25: 9.0, 0.5: 8.0, 1.0: 20.0}, 0.5) == 9.0


WIDTHS = st.floats(0.05, 1.0)


@given(st.dictionaries(WIDTHS, st.floats(0.001, 100), min_size=1, max_size=4), WIDTHS, WIDTHS, st.floats(1, 10))
def test_wider_or_slower_never_costs_less(known: dict[float, float], a: float, b: float, by: float) -> None:
    narrow, wide = (cost_at(known, width) for width in sorted((a, b)))
    assert narrow is not None and wide is not None
    assert narrow <= wide * (1 + 1e-12)
    first = min(known)
    slower = cost_at({**known, first: known[first] * by}, a)
    assert slower is not None and slower >= (cost_at(known, a) or 0.0) * (1 - 1e-12)


@given(st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_narrower_step_is_never_taken_for_less_than_its_proportion(known: float, asked: float) -> None:
    cost = cost_at({known: 1.0}, asked)
    assert cost is not None
    assert cost >= min(1.0, asked / known) * (1 - 1e-12)


# --------------------------------------------------------------------------- seconds


def test_phases_by_hand() -> None:
    seconds = predicted(offer(), state()).seconds
    assert seconds == pytest.approx(
        {"receive": 50_000 / 1e6 + 0.01, "train": 100 * 0.2, "share": 100_000 / 1e7, "send": 100_000 / 1e6 + 0.01}
    )


def test_shares_leave_in_parallel_over_one_uplink() -> None:
    fast, slow = LinkRate(1e6, 0.02), LinkRate(1e4, 0.5)

    def send_s(uplink: float | None) -> float:
        at = state(links={"agg-1": fast, "agg-2": slow}, uplink_bytes_s=uplink)
        return predicted(offer(), at).seconds["send"]

    assert send_s(None) == pytest.approx(50_000 / 1e4 + 0.5)  # the slowest broker
    assert send_s(5e3) == pytest.approx(100_000 / 5e3 + 0.5)  # the uplink they share
    equal = state(links={"agg-1": fast, "agg-2": fast})
    assert predicted(offer(), equal).seconds["send"] == pytest.approx(100_000 / 1e6 + 0.02)  # one after the other


def test_the_best_source_is_believed() -> None:
    bare = resolve(offer(), DeviceState(BOARD))
    assert bare.inputs["links"]["uplink"] == {"bytes_s": 1e6, "source": "profile"}
    assert bare.inputs["links"]["receive"] == {"bytes_s": 2e6, "source": "profile"}
    assert bare.inputs["step_source"] == "unmeasured"
    calibrated = resolve(offer(), state())
    assert calibrated.inputs["links"]["to agg-1"]["source"] == "calibrated"
    assert calibrated.inputs["links"]["uplink"]["source"] == "fastest link"
    at = state(step_s={0.5: 0.3}, links={"agg-1": LinkRate(5e5, 0.0)}, receive_bytes_s=7e5)
    measured = resolve(offer(), at)
    assert measured.inputs["step_s"] == {"0.25": 0.05, "0.5": 0.3, "1": 0.2}
    assert measured.inputs["step_source"] == "measured and calibrated"
    assert measured.inputs["links"]["to agg-1"] == {"bytes_s": 5e5, "source": "measured"}
    assert measured.inputs["links"]["to agg-2"] == {"bytes_s": 1e6, "source": "calibrated"}
    assert measured.inputs["links"]["receive"] == {"bytes_s": 7e5, "source": "measured"}
    assert predicted(offer(), at).seconds["train"] == pytest.approx(30.0)  # as slow as the narrower one at least


def test_a_calibration_of_something_else_is_not_used() -> None:
    other_task = state(calibration=msgspec.structs.replace(CALIBRATION, task="cnn4"))
    resolved = resolve(offer(), other_task)
    assert resolved.inputs["step_s"] == resolved.inputs["base_mib"] == "unmeasured"
    assert "of task 'cnn4', this is 'toy'" in resolved.inputs["calibration"]
    assert resolved.inputs["links"]["to agg-1"]["source"] == "calibrated"
    other_board = state(calibration=msgspec.structs.replace(CALIBRATION, board="raspberry-pi-5"))
    resolved = resolve(offer(), other_board)
    assert "raspberry-pi-5" in resolved.inputs["calibration"]
    assert resolved.inputs["links"]["to agg-1"]["source"] == "profile"
    assert resolved.inputs["share_bytes_s"] == "unmeasured"


def test_a_larger_batch_costs_more_and_a_smaller_one_not_less() -> None:
    for batch_size, factor in ((32, 1.0), (64, 2.0), (8, 1.0)):
        assert predicted(offer(batch_size=batch_size), state()).seconds["train"] == pytest.approx(20.0 * factor)


def test_a_throttled_processor_is_slower() -> None:
    at = state(health=health(is_throttled=True))
    assert predicted(offer(), at).seconds["train"] == pytest.approx(30.0)


def test_corrections_apply_to_their_phase_only() -> None:
    plain = predicted(offer(), state())
    at = state(corrections={"train": 2.0, "send": 0.5})
    seconds = predicted(offer(), at).seconds
    assert seconds["train"] == 2 * plain.seconds["train"]
    assert seconds["send"] == plain.seconds["send"] / 2
    assert seconds["receive"] == plain.seconds["receive"]
    assert predicted(offer(), state(corrections={"energy": 3.0})).joules == 3 * plain.joules


def test_a_link_that_stands_still_is_slow_beyond_any_deadline() -> None:
    total_s = predicted(offer(), state(uplink_bytes_s=0.0)).total_s
    assert 10_000 < total_s < math.inf


def test_impossible_measurements_count_as_unmeasured() -> None:
    at = state(step_s={1.0: math.nan}, uplink_bytes_s=math.inf, receive_bytes_s=-1.0)
    assert predicted(offer(), at) == predicted(offer(), state())


# --------------------------------------------------------------------------- joules, MiB, degrees


def test_joules_by_hand() -> None:
    at = state()
    seconds = predicted(offer(), at).seconds
    expected = 2.5 * seconds["receive"] + 4.0 * (seconds["train"] + seconds["share"]) + 3.0 * seconds["send"]
    assert predicted(offer(), at).joules == pytest.approx(expected)
    measured = msgspec.structs.replace(CALIBRATION, idle_w=3.0, busy_w=7.0)
    at = state(calibration=measured)  # the radio adds what it adds in the profile: 1 W and 0.5 W over idle
    expected = 3.5 * seconds["receive"] + 7.0 * (seconds["train"] + seconds["share"]) + 4.0 * seconds["send"]
    assert predicted(offer(), at).joules == pytest.approx(expected)
    assert resolve(offer(), at).inputs["power"] == "calibrated, radio from profile"


def test_mebibytes_by_hand() -> None:
    prediction = predicted(offer(), state())
    buffers = (12 * PARAMETERS + 12 * 50_000 + 16 * 12_500) / 2**20
    assert prediction.extra_mib == pytest.approx(100 + buffers)
    assert prediction.mib == pytest.approx(200 + 100 + buffers)
    doubled = predicted(offer(), state(corrections={"memory": 2.0}))
    assert doubled.extra_mib == pytest.approx(2 * (100 + buffers))
    assert doubled.mib == pytest.approx(200 + doubled.extra_mib)
    assert predicted(offer(), DeviceState(BOARD)).mib == pytest.approx(buffers)


def test_degrees_by_hand() -> None:
    def peak(temperature_c: float | None, coolest_c: float | None, steps: int) -> float | None:
        at = state(health=health(temperature_c=temperature_c), coolest_c=coolest_c)
        return predicted(offer(), at, steps=steps).peak_c

    assert peak(None, None, 100) is None
    assert peak(40.0, None, 100) == pytest.approx(40 + 30 * (1 - math.exp(-0.2001)), abs=0.001)
    assert peak(40.0, None, 10_000) == pytest.approx(70.0, abs=0.001)
    assert peak(60.0, 40.0, 100) == pytest.approx(60 + 10 * (1 - math.exp(-0.2001)), abs=0.001)
    assert peak(60.0, 40.0, 10_000) == pytest.approx(70.0, abs=0.001)
    assert peak(75.0, 40.0, 100) == 75.0  # hotter than training keeps it: it will not get hotter
    assert peak(50.0, 60.0, 10_000) == pytest.approx(80.0, abs=0.001)  # cooler than ever before


def test_bytes_are_the_plans() -> None:
    for cost in RUNGS:
        prediction = predicted(offer(), state(), rung=cost.rung)
        assert (prediction.down_bytes, prediction.up_bytes) == (cost.down_bytes, cost.up_bytes)
    assert isinstance(RUNGS[0], RungCost)
