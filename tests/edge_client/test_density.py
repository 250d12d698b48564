"""What a device decides: inside the plan, never more in worse conditions, steady in noise, and with its reason."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from deciding import BOARD, CALIBRATION, PARAMETERS, RUNGS, health, offer, rung, state
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from edge_client.adaptation.calibration import Calibration, LinkRate
from edge_client.density import DECLINED, Constraint, DensityDecision, DeviceState, Offer, decide
from edge_client.settings import DeviceLimits

Case = tuple[Offer, DeviceLimits, DeviceState]


# --------------------------------------------------------------------------- each limit, by hand


def test_a_device_that_nothing_bounds_takes_the_largest_rung() -> None:
    decision = decide(offer(), DeviceLimits(), state())
    assert (decision.rung, decision.width, decision.local_steps) == (2, 1.0, 100)
    assert decision.constraint == Constraint.PLAN
    assert decision.predicted is not None
    assert decision.predicted.seconds["train"] == pytest.approx(20.0)
    assert decision.reason.startswith("rung 2 (width 1, density 0.1): the largest the plan offers, ")


def test_its_own_rung_max_is_named() -> None:
    decision = decide(offer(), DeviceLimits(rung_max=1), state())
    assert (decision.rung, decision.constraint) == (1, Constraint.RUNG_MAX)
    assert decision.reason.endswith("limits.rung_max is 1, the plan offers up to rung 2")
    merged = offer(rungs=(RUNGS[0], RUNGS[2]))
    assert decide(merged, DeviceLimits(rung_max=1), state()).rung == 0
    assert decide(offer(rungs=RUNGS[:1]), DeviceLimits(rung_max=1), state()).constraint == Constraint.PLAN


def test_a_plan_without_a_rung_it_may_take_is_declined() -> None:
    decision = decide(offer(rungs=RUNGS[2:]), DeviceLimits(rung_max=1), state())
    assert (decision.rung, decision.constraint, decision.predicted) == (None, Constraint.RUNG_MAX, None)
    assert decision.reason == "the plan offers rung 2, limits.rung_max allows at most 1"


@pytest.mark.parametrize(
    ("changes", "limits", "expected", "why"),
    [
        ({"remaining_s": 20.0}, {}, (1, 100, "deadline"), "rung 2 would need 20.18 s, at most 16 s of the 20 s left"),
        ({"remaining_s": 20.0}, {"deadline_safety": 0.5}, (0, 100, "deadline"), "at most 10 s of the 20 s left"),
        ({"remaining_s": 3.0}, {}, (0, 46, "deadline"), "all 100 steps would need 5.06 s, at most 2.4 s"),
        ({"remaining_s": 1.0}, {}, (None, 0, "deadline"), "rung 0 with 20 steps would need 1.06 s, at most 0.8 s"),
        ({}, {"memory_mib": 290}, (1, 100, "memory"), "MiB, at most 290 MiB of limits.memory_mib"),
        ({}, {"memory_mib": 200}, (None, 0, "memory"), "at most 200 MiB of limits.memory_mib"),
    ],
)
def test_time_and_memory(
    changes: dict[str, Any], limits: dict[str, Any], expected: tuple[int | None, int, str], why: str
) -> None:
    decision = decide(offer(**changes), DeviceLimits(**limits), state())
    assert (decision.rung, decision.local_steps, decision.constraint) == expected
    assert why in decision.reason, decision.reason


@pytest.mark.parametrize(
    ("changes", "limits", "expected", "why"),
    [
        ({"energy_left_j": 60.0}, {}, (1, 100, "energy"), "J, at most 60 J of the round's 60 J"),
        ({"energy_left_j": 1.0}, {}, (None, 0, "energy"), "at most 1 J of the round's 1 J"),
        ({"health": health(free_mib=90)}, {}, (1, 100, "memory"), "at most 81 MiB of the 90 MiB free"),
        ({"health": health(temperature_c=76.0)}, {}, (1, 100, "temperature"), "81.4 °C at its end, at most 80.0 °C"),
        ({"health": health(temperature_c=81.0)}, {}, (None, 0, "temperature"), "81.3 °C at its end, at most 80.0 °C"),
        (
            {"health": health(temperature_c=60.0)},
            {"temperature_c": 62.0},
            (0, 100, "temperature"),
            "62.9 °C at its end, at most 62.0 °C",
        ),
        (
            {"health": health(battery_percent=15.0)},
            {},
            (None, 0, "battery"),
            "a battery at 20 % or more, it stands at 15 %",
        ),
        ({"health": health(battery_percent=15.0, on_mains=True)}, {}, (2, 100, "plan"), "the largest the plan offers"),
    ],
)
def test_energy_and_health(
    changes: dict[str, Any], limits: dict[str, Any], expected: tuple[int | None, int, str], why: str
) -> None:
    decision = decide(offer(), DeviceLimits(**limits), state(**changes))
    assert (decision.rung, decision.local_steps, decision.constraint) == expected, decision.reason
    assert why in decision.reason, decision.reason


def test_what_nobody_measured_blocks_nothing_and_is_named() -> None:
    decision = decide(offer(remaining_s=5.0), DeviceLimits(), DeviceState(BOARD))
    assert (decision.rung, decision.constraint) == (2, Constraint.PLAN)
    assert "training time unmeasured" in decision.reason
    for name in ("calibration", "step_s", "step_mib", "share_bytes_s", "temperature_c", "free_mib", "battery_percent"):
        assert decision.inputs[name] == "unmeasured"
    assert decision.inputs["energy_left_j"] == "no budget"


def test_inputs_can_be_logged_beside_the_decision() -> None:
    decision = decide(offer(), DeviceLimits(), state(health=health()))
    beside = {field.name for field in dataclasses.fields(decision)} | {"event", "round_id", "steps", "level"}
    assert not beside & set(decision.inputs)


# --------------------------------------------------------------------------- hysteresis


def test_going_up_needs_slack_and_staying_does_not() -> None:
    close = offer(remaining_s=28.0)  # rung 2 needs 20.2 of the 22.4 s allowed
    taken = [decide(close, DeviceLimits(), state(last_rung=last)).rung for last in (None, 2, 1, 0, DECLINED)]
    assert taken == [2, 2, 1, 1, 1]
    reason = decide(close, DeviceLimits(), state(last_rung=1)).reason
    assert "rung 2 would need 20.18 s, at most 17.92 s of the 28 s left" in reason
    assert "25 % in hand for going up" in reason
    assert decide(offer(remaining_s=40.0), DeviceLimits(), state(last_rung=0)).rung == 2
    low = decide(offer(), DeviceLimits(), state(last_rung=0, health=health(battery_percent=22.0)))
    assert (low.rung, low.constraint) == (0, Constraint.BATTERY)
    assert "rung 1 would need a battery at 25 % or more, it stands at 22 %" in low.reason
    assert decide(close, DeviceLimits(up_margin=0.1), state(last_rung=1)).rung == 2


Noisy = Callable[[float], Case]


def _slow_steps(noise: float) -> Case:
    steps = {float(width): seconds * noise for width, seconds in CALIBRATION.step_s.items()}
    return offer(remaining_s=25.23), DeviceLimits(), state(step_s=steps)


def _slow_link(noise: float) -> Case:
    rates = {name: LinkRate(200_000.0 * noise, 0.0) for name in ("agg-1", "agg-2")}
    rungs = tuple(rung(cost.rung, cost.width, cost.density, 100_000 * 2**cost.rung) for cost in RUNGS)
    return offer(rungs=rungs, steps=1, least_steps=1, remaining_s=6.0), DeviceLimits(), state(links=rates)


def _little_memory(noise: float) -> Case:
    return offer(), DeviceLimits(), state(health=health(free_mib=round(119 * noise)))


def _little_energy(noise: float) -> Case:
    return offer(), DeviceLimits(), state(energy_left_j=81.0 * noise)


def _hot(noise: float) -> Case:
    return offer(), DeviceLimits(), state(health=health(temperature_c=74.6 + 30 * (noise - 1)))


def _low_battery(noise: float) -> Case:
    return offer(), DeviceLimits(), state(health=health(battery_percent=20.0 * noise))


def _little_time(noise: float) -> Case:
    return offer(remaining_s=25.23 * noise), DeviceLimits(), state()


@pytest.mark.parametrize(
    "noisy", [_slow_steps, _slow_link, _little_memory, _little_energy, _hot, _low_battery, _little_time]
)
def test_noise_around_a_boundary_does_not_move_it_to_and_fro(noisy: Noisy) -> None:
    """±10 % around and near every boundary: the device may go down, or up, but never both."""
    rng = random.Random(7)
    crossed = 0
    for centre in [0.85 + 0.01 * step for step in range(31)]:
        last, taken = None, []
        for _ in range(60):
            asked, limits, at = noisy(centre * rng.uniform(0.9, 1.1))
            rung = decide(asked, limits, dataclasses.replace(at, last_rung=last)).rung
            last = DECLINED if rung is None else rung
            taken.append(last)
        assert taken in (sorted(taken), sorted(taken, reverse=True)), (centre, taken)
        crossed += taken[0] != taken[-1]
    assert crossed > 0  # there was a boundary to flap around


def test_without_slack_the_same_noise_would_flap() -> None:
    rng, last, taken = random.Random(7), None, []
    for _ in range(60):
        asked, _, at = _slow_steps(rng.uniform(0.9, 1.1))
        last = decide(asked, DeviceLimits(up_margin=0.0), dataclasses.replace(at, last_rung=last)).rung
        taken.append(last)
    assert sum(a != b for a, b in itertools.pairwise(taken)) > 10


# --------------------------------------------------------------------------- for any input


def logarithmic(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def links(rate: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, LinkRate]]:
    link = st.builds(LinkRate, rate, st.floats(0, 2))
    return st.fixed_dictionaries({}, optional={"agg-1": link, "agg-2": link})


RATES = logarithmic(1e5, 1e8)
WIDTHS = ("0.25", "0.5", "1")
CALIBRATIONS = st.builds(
    Calibration,
    board=st.sampled_from(["test-board", "test-board", "test-board", "other"]),
    task=st.sampled_from(["toy", "toy", "toy", "other"]),
    batch_size=st.sampled_from([16, 32, 64]),
    step_s=st.dictionaries(st.sampled_from(WIDTHS), logarithmic(1e-3, 0.3)),
    share_bytes_s=maybe(RATES),
    receive_bytes_s=maybe(RATES),
    links=links(RATES),
    base_mib=maybe(st.floats(10, 500)),
    step_mib=st.dictionaries(st.sampled_from(WIDTHS), st.floats(0, 400)),
)
HEALTHS = st.builds(
    health,
    temperature_c=maybe(st.floats(30, 85)),
    is_throttled=maybe(st.booleans()),
    free_mib=maybe(st.integers(10, 600)),
    battery_percent=maybe(st.floats(0, 100)),
    on_mains=maybe(st.booleans()),
)
LIMITS = st.builds(
    DeviceLimits,
    rung_max=st.sampled_from([0, 1, 2, 15, 15, 15]),
    memory_mib=maybe(st.integers(100, 1024)),
    temperature_c=maybe(st.floats(60, 100)),
    battery_reserve_percent=st.floats(0, 40),
    deadline_safety=st.floats(0, 0.5),
    up_margin=st.floats(0, 1),
)
STATES = st.builds(
    DeviceState,
    profile=st.just(BOARD),
    health=maybe(HEALTHS),
    calibration=maybe(CALIBRATIONS),
    step_s=st.dictionaries(st.sampled_from([0.25, 0.5, 1.0]), logarithmic(1e-3, 0.3)),
    links=links(RATES),
    uplink_bytes_s=maybe(RATES),
    receive_bytes_s=maybe(RATES),
    energy_left_j=maybe(logarithmic(20.0, 1e4)),
    coolest_c=maybe(st.floats(20, 60)),
    last_rung=st.sampled_from([None, DECLINED, 0, 1, 2]),
    corrections=st.dictionaries(
        st.sampled_from(["receive", "train", "share", "send", "energy", "memory"]), st.floats(0.25, 4)
    ),
)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    numbers = draw(st.sampled_from([(0, 1, 2), (0, 1, 2), (0, 2), (1, 2), (0,)]))
    sizes = sorted(draw(st.lists(st.integers(100, 3_000_000), min_size=3, max_size=3)))
    shapes = ((0.25, 0.025), (0.5, 0.05), (1.0, 0.1))
    steps = draw(st.integers(1, 200))
    return Offer(
        rungs=tuple(rung(number, *shapes[number], sizes[number]) for number in numbers),
        steps=steps,
        least_steps=draw(st.one_of(st.just(steps), st.integers(1, steps))),
        remaining_s=draw(logarithmic(2.0, 600.0)),
        batch_size=32,
        parameters=PARAMETERS,
        task="toy",
    )


CASES = st.tuples(offers(), LIMITS, STATES)


@settings(max_examples=400, deadline=None)
@given(CASES)
def test_it_never_leaves_the_bounds_of_the_plan_and_always_says_why(case: Case) -> None:
    asked, limits, at = case
    decision = decide(asked, limits, at)
    event(f"{decision.constraint}, rung {decision.rung}")
    by_number = {cost.rung: cost for cost in asked.rungs}
    if decision.rung is None:
        assert (decision.width, decision.local_steps) == (0.0, 0)
        assert decision.constraint != Constraint.PLAN
        assert len(re.findall(r"\d+(?:\.\d+)?", decision.reason)) >= 2
        assert "at most" in decision.reason or "stands at" in decision.reason
    else:
        assert decision.rung in by_number
        assert decision.rung <= limits.rung_max
        assert decision.width == by_number[decision.rung].width
        assert asked.least_steps <= decision.local_steps <= asked.steps
        assert decision.local_steps == asked.steps or decision.rung == asked.rungs[0].rung
        assert decision.predicted is not None
        assert decision.predicted.up_bytes == by_number[decision.rung].up_bytes
        assert decision.reason.startswith(f"rung {decision.rung} ")
    assert json.loads(json.dumps(decision.inputs, allow_nan=False)) == decision.inputs


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_what_is_taken_keeps_every_limit(case: Case) -> None:
    asked, limits, at = case
    decision = decide(asked, limits, at)
    assume(decision.rung is not None and decision.predicted is not None)
    predicted = decision.predicted
    assert predicted is not None
    assert predicted.total_s == pytest.approx(sum(predicted.seconds.values()))
    assert predicted.total_s <= asked.remaining_s * (1 - limits.deadline_safety)
    assert at.energy_left_j is None or predicted.joules <= at.energy_left_j
    assert predicted.mib <= min(BOARD.ram_mib - BOARD.memory_reserve_mib, limits.memory_mib or 10**6)
    if at.health is None:
        return
    assert at.health.free_mib is None or predicted.extra_mib <= at.health.free_mib
    if at.health.temperature_c is not None:
        assert predicted.peak_c is not None
        assert at.health.temperature_c <= predicted.peak_c <= min(80.0, limits.temperature_c or 80.0)
    if at.health.battery_percent is not None and not at.health.on_mains:
        assert at.health.battery_percent >= limits.battery_reserve_percent


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_two_runs_agree_and_nothing_is_remembered(case: Case) -> None:
    twin = copy.deepcopy(case)
    first = decide(*case)
    decide(offer(), DeviceLimits(), state())
    assert decide(*case) == first == decide(*twin)
    assert case == twin  # nothing that came in was changed


# --------------------------------------------------------------------------- worse never gives more


def _scaled_links(before: dict[str, LinkRate], name: str, by: float) -> dict[str, LinkRate]:
    link = before[name]
    return {**before, name: LinkRate(link.up_bytes_s / by, link.rtt_s * by)}


def _with_state(case: Case, **changes: Any) -> Case:
    return case[0], case[1], dataclasses.replace(case[2], **changes)


def _with_health(case: Case, **changes: Any) -> Case:
    assert case[2].health is not None
    return _with_state(case, health=dataclasses.replace(case[2].health, **changes))


def _with_calibration(case: Case, **changes: Any) -> Case:
    assert case[2].calibration is not None
    return _with_state(case, calibration=msgspec.structs.replace(case[2].calibration, **changes))


def _with_limits(case: Case, **changes: Any) -> Case:
    return case[0], msgspec.structs.replace(case[1], **changes), case[2]


def _with_profile(case: Case, **changes: Any) -> Case:
    return _with_state(case, profile=msgspec.structs.replace(case[2].profile, **changes))


def _worse_cases(case: Case, by: float) -> dict[str, Callable[[], Case]]:
    """Every way in which a case can get worse by a factor `by` ≥ 1, as far as the case knows the figure."""
    return {
        **_worse_bounds(case, by),
        **_worse_measurements(case, by),
        **_worse_health(case, by),
        **_worse_calibration(case, by),
    }


def _worse_bounds(case: Case, by: float) -> dict[str, Callable[[], Case]]:
    asked, limits, at = case
    profile = at.profile
    thermal = msgspec.structs.replace(profile.thermal, busy_rise_c=profile.thermal.busy_rise_c * by)
    up, down, rtt = profile.link.up_mbit_s / by, profile.link.down_mbit_s / by, profile.link.rtt_ms * by
    link = msgspec.structs.replace(profile.link, up_mbit_s=up, down_mbit_s=down, rtt_ms=rtt)
    return {
        "tighter deadline": lambda: (dataclasses.replace(asked, remaining_s=asked.remaining_s / by), limits, at),
        "more safety": lambda: _with_limits(case, deadline_safety=min(0.9, limits.deadline_safety * by)),
        "lower rung_max": lambda: _with_limits(case, rung_max=int(limits.rung_max / by)),
        "less memory allowed": lambda: _with_limits(case, memory_mib=int((limits.memory_mib or 2048) / by)),
        "lower temperature allowed": lambda: _with_limits(case, temperature_c=(limits.temperature_c or 150.0) / by),
        "higher reserve": lambda: _with_limits(case, battery_reserve_percent=limits.battery_reserve_percent * by),
        "less board memory": lambda: _with_profile(case, ram_mib=int(profile.ram_mib / by)),
        "warmer board": lambda: _with_profile(case, thermal=thermal),
        "slower profile link": lambda: _with_profile(case, link=link),
        "smaller budget": lambda: _with_state(case, energy_left_j=(at.energy_left_j or 1e6) / by),
    }


def _worse_measurements(case: Case, by: float) -> dict[str, Callable[[], Case]]:
    at = case[2]
    ways: dict[str, Callable[[], Case]] = {}
    for name in at.links:
        ways[f"slower link to {name}"] = partial(_with_state, case, links=_scaled_links(dict(at.links), name, by))
    for width, seconds in at.step_s.items():
        ways[f"slower step at {width}"] = partial(_with_state, case, step_s={**at.step_s, width: seconds * by})
    for name in ("uplink_bytes_s", "receive_bytes_s"):
        if getattr(at, name) is not None:
            ways[f"lower {name}"] = partial(_with_state, case, **{name: getattr(at, name) / by})
    for name, ratio in at.corrections.items():
        corrections = {**at.corrections, name: ratio * by}
        ways[f"larger correction of {name}"] = partial(_with_state, case, corrections=corrections)
    if at.coolest_c is not None:
        ways["warmer idle"] = partial(_with_state, case, coolest_c=at.coolest_c * by)
    return ways


def _worse_health(case: Case, by: float) -> dict[str, Callable[[], Case]]:
    seen = case[2].health
    if seen is None:
        return {}
    ways: dict[str, Callable[[], Case]] = {
        "throttled": partial(_with_health, case, is_throttled=True),
        "off mains": partial(_with_health, case, on_mains=False),
    }
    if seen.temperature_c is not None:
        ways["hotter"] = partial(_with_health, case, temperature_c=seen.temperature_c * by)
    if seen.free_mib is not None:
        ways["less free memory"] = partial(_with_health, case, free_mib=int(seen.free_mib / by))
    if seen.battery_percent is not None:
        ways["lower battery"] = partial(_with_health, case, battery_percent=seen.battery_percent / by)
    return ways


def _worse_calibration(case: Case, by: float) -> dict[str, Callable[[], Case]]:
    calibrated = case[2].calibration
    if calibrated is None:
        return {}
    ways: dict[str, Callable[[], Case]] = {}
    for name in ("share_bytes_s", "receive_bytes_s"):
        if getattr(calibrated, name) is not None:
            ways[f"lower calibrated {name}"] = partial(
                _with_calibration, case, **{name: getattr(calibrated, name) / by}
            )
    if calibrated.base_mib is not None:
        ways["larger process"] = partial(_with_calibration, case, base_mib=calibrated.base_mib * by)
    for name in calibrated.links:
        slower = _scaled_links(calibrated.links, name, by)
        ways[f"slower calibrated link to {name}"] = partial(_with_calibration, case, links=slower)
    for table in ("step_s", "step_mib"):
        for width, cost in getattr(calibrated, table).items():
            larger = {**getattr(calibrated, table), width: cost * by}
            ways[f"larger {table} at {width}"] = partial(_with_calibration, case, **{table: larger})
    return ways


def rank(decision: DensityDecision) -> tuple[int, int]:
    return (DECLINED if decision.rung is None else decision.rung, decision.local_steps)


@settings(max_examples=400, deadline=None)
@given(CASES, st.floats(1.0, 1.3) | logarithmic(1.0, 100.0))
def test_worse_conditions_never_raise_rung_width_or_steps(case: Case, by: float) -> None:
    before = decide(*case)
    for name, worsen in _worse_cases(case, by).items():
        after = decide(*worsen())
        assert after.width <= before.width, name
        rungs = rank(before)[0], rank(after)[0]
        assert rungs[1] <= rungs[0], (name, before.reason, after.reason)
        if rungs[0] == rungs[1]:
            assert after.local_steps <= before.local_steps, (name, before.reason, after.reason)


def test_the_generated_cases_reach_every_limit() -> None:
    """The properties above would hold for a rule that always declines, too."""
    found: dict[str, int] = {}

    @settings(max_examples=800, deadline=None, derandomize=True, database=None)
    @given(CASES)
    def look(case: Case) -> None:
        decision = decide(*case)
        kind = f"{decision.constraint}{' declined' if decision.rung is None else ''}"
        found[kind] = found.get(kind, 0) + 1

    look()
    declined = {f"{kind} declined" for kind in ("deadline", "memory", "energy", "temperature", "battery")}
    assert {"plan", "rung_max", "deadline", "energy"} | declined <= set(found), found
