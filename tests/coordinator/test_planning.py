"""Cohorts reach the floors, supports are derived the same again, and every plan passes its own check."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory
from hypothesis import given
from hypothesis import strategies as st

from coordinator.planning import (
    AvailableDevices,
    ModelState,
    TaskFacts,
    draw_cohort,
    make_room,
    merge_rungs,
    plan_round,
)
from coordinator.settings import CoordinatorSettings, PruningSettings, RoundSettings
from coordinator.supports import density_of, publish_model
from fedpruneshare.errors import PlanError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import digest, encode
from fedpruneshare.party import PartySettings
from fedpruneshare.plan import check_plan
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role
from fedpruneshare.sparse.support import code_values

TABLE = ParameterTable(
    (Parameter("a", (40, 50), Role.WEIGHT), Parameter("b", (2000,), Role.WEIGHT), Parameter("c", (30,), Role.VECTOR))
)
FACTS = TaskFacts("hapt", bytes(32), TABLE)


def settings(**rounds: int) -> CoordinatorSettings:
    return CoordinatorSettings(
        party=PartySettings(key_file="", directory="", root_key="0" * 64),
        bundle="",
        store="",
        rounds=RoundSettings(**rounds),
        pruning=PruningSettings(rungs=(0.25, 0.5, 1.0), dense_rounds=1, final_round=5, target_density=0.1),
    )


def state(applied: int = 0) -> ModelState:
    rng = np.random.default_rng(3)
    coded = code_values(rng.normal(size=4000).astype(np.float32))
    return ModelState(coded, rng.normal(size=30).astype(np.float32), (0.1, 0.2), (0.1,), applied)


def effective(limit: int, allowed: tuple[int, ...]) -> int:
    return max(rung for rung in allowed if rung <= limit)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=60), st.integers(1, 5), st.integers(3, 5), st.data())
def test_a_full_cohort_opens_every_rung_that_is_left(
    limits: list[int], rungs: int, floor: int, data: st.DataObject
) -> None:
    cohort = data.draw(st.integers(floor, 60))
    allowed = merge_rungs(limits, rungs, floor, cohort)
    assert allowed[0] == 0
    assert list(allowed) == sorted(set(allowed))
    assert allowed[-1] < rungs
    fleet = {f"device-{index:03}": limit for index, limit in enumerate(limits)}
    drawn = draw_cohort(fleet, allowed, cohort, floor, np.random.default_rng(1))
    assert len(drawn) == min(cohort, len(fleet))
    assert len(set(drawn)) == len(drawn)
    taken = [effective(fleet[device], allowed) for device in drawn]
    for rung in allowed:
        assert taken.count(rung) == 0 or taken.count(rung) >= min(floor, len(drawn))
    if len(drawn) >= floor:
        reached = {segment for segment in range(rungs) if any(rung >= segment for rung in taken)}
        assert set(open_segments(taken, rungs, floor, floor)) == reached


@pytest.mark.parametrize(("rungs", "cohort"), [(4, 10), (6, 6), (5, 12)])
def test_what_is_expected_of_devices_never_splits_a_cohort_below_the_floor(rungs: int, cohort: int) -> None:
    """All say that they reach the top, measurements spread them evenly: nobody may train for a closed segment."""
    names = [f"device-{index:02}" for index in range(10 * rungs)]
    likely = {name: index % rungs for index, name in enumerate(names)}
    allowed = merge_rungs([15] * len(names), rungs, 3, cohort)
    allowed = make_room(list(likely.values()), allowed, 3, cohort)
    drawn = draw_cohort(likely, allowed, cohort, 3, np.random.default_rng(1))
    taken = [effective(likely[name], allowed) for name in drawn]
    assert len(drawn) == cohort
    assert all(taken.count(rung) >= 3 for rung in set(taken))


@given(st.lists(st.integers(0, 3), min_size=20, max_size=60), st.integers(0, 99))
def test_strata_get_their_proportional_part(limits: list[int], seed: int) -> None:
    fleet = {f"device-{index:03}": limit for index, limit in enumerate(limits)}
    allowed = merge_rungs(limits, 4, 3, 16)
    drawn = draw_cohort(fleet, allowed, 16, 3, np.random.default_rng(seed))
    again = draw_cohort(fleet, allowed, 16, 3, np.random.default_rng(seed))
    assert drawn == again
    for rung in allowed:
        there = sum(effective(limit, allowed) == rung for limit in limits)
        taken = sum(effective(fleet[device], allowed) == rung for device in drawn)
        if there:
            assert abs(taken - 16 * there / len(limits)) < 4


@pytest.mark.parametrize("applied", [0, 3, 9])
def test_plans_pass_their_own_check(applied: int) -> None:
    limits = {device: place % 3 for place, device in enumerate(DEVICES)}
    used, model = settings(cohort=10), state(applied)
    published = publish_model(model, 7, used, FACTS)
    plan = plan_round(7, model, published, FACTS, (AvailableDevices(limits), used, directory()))
    view = check_plan(plan, digest(encode(plan)), directory())
    assert view.rungs == 3
    assert plan.segments[-1].density == pytest.approx(density_of(used, applied), abs=1e-3)
    again = plan_round(
        7, model, publish_model(model, 7, used, FACTS), FACTS, (AvailableDevices(limits), used, directory())
    )
    assert encode(again) == encode(plan)


def test_points_rotate_so_that_seeds_go_round() -> None:
    limits, used, model = dict.fromkeys(DEVICES, 2), settings(cohort=10), state()
    at_one = []
    for round_id in range(1, 7):
        published = publish_model(model, round_id, used, FACTS)
        plan = plan_round(round_id, model, published, FACTS, (AvailableDevices(limits), used, directory()))
        assert sorted(plan.points.values()) == [1, 2, 3]
        at_one.append(next(name for name, x in plan.points.items() if x == 1))
    assert sorted(at_one) == sorted(AGGREGATORS * 2)


def test_too_few_devices_are_a_reason() -> None:
    used, model = settings(cohort=5, min_devices=4), state()
    limits = dict.fromkeys(DEVICES[:3], 0)
    with pytest.raises(PlanError, match="3 devices are there, expected at least min_devices = 4"):
        plan_round(1, model, publish_model(model, 1, used, FACTS), FACTS, (AvailableDevices(limits), used, directory()))


def test_with_strata_whatever_is_offered_and_expected_the_same_devices_are_drawn() -> None:
    """The arms of a comparison: three rungs with measured adaptation, and one dense rung for all (§8.2)."""
    limits = {device: place % 3 for place, device in enumerate(DEVICES)}
    expected = dict.fromkeys(DEVICES[:5], 0)
    used, model = settings(cohort=6, strata=3), state()
    dense = msgspec.structs.replace(
        used, pruning=PruningSettings(rungs=(1.0,), start_density=1.0, target_density=1.0, final_round=5)
    )
    drawn: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
    for round_id in range(1, 8):
        for own, known in ((used, AvailableDevices(limits, expected)), (dense, AvailableDevices(limits))):
            published = publish_model(model, round_id, own, FACTS)
            plan = plan_round(round_id, model, published, FACTS, (known, own, directory()))
            drawn[own is used].append(plan.cohort)
            assert len(plan.cohort) == 6
    assert drawn[True] == drawn[False]
    assert len(set(drawn[True])) > 1
