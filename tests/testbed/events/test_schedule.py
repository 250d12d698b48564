"""When things happen: outages that overlap, rounds and seconds, churn from the seed, and how often one asks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.events.schedule import Action, Members, Schedule
from testbed.events.settings import Churn, FleetEvent

MEMBERS = Members(tuple(f"device-{n:02d}" for n in range(6)), (0, 0, 0, 1, 1, 1), ("aggregator-1", "aggregator-2"))


def schedule(*events: FleetEvent, churn: Churn | None = None, seed: int = 1) -> Schedule:
    return Schedule(events, churn or Churn(), MEMBERS, seed)


def told(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.do, action.name) for action in actions]


def event(kind: str, **settings: object) -> FleetEvent:
    return FleetEvent(kind, **settings)  # type: ignore[arg-type]


def test_a_reboot_is_a_kill_and_a_start() -> None:
    plan = schedule(event("reboot", at_s=5.0, for_s=10.0, devices=(1,)))
    assert plan.due(4.9, 1) == []
    assert told(plan.due(5.0, 1)) == [("kill", "device-01")]
    assert plan.due(14.9, 1) == []
    assert told(plan.due(15.0, 1)) == [("start", "device-01")]
    assert plan.due(1e6, 1) == []


def test_a_group_is_all_its_devices_and_none_of_them_twice() -> None:
    plan = schedule(event("leave", devices=(4, 0), groups=(1,)))
    assert told(plan.due(0.0, 1)) == [("kill", f"device-0{n}") for n in (0, 3, 4, 5)]


def test_a_round_counts_from_when_it_is_seen_to_have_begun() -> None:
    plan = schedule(event("leave", at_round=3, at_s=2.0, devices=(0,)))
    assert plan.awaits_round
    assert plan.due(100.0, 2) == []
    assert plan.due(101.0, 3) == []
    assert not plan.awaits_round
    assert told(plan.due(103.0, 3)) == [("kill", "device-00")]


def test_a_round_that_was_skipped_between_two_looks_is_not_forgotten() -> None:
    assert told(schedule(event("leave", at_round=3, devices=(0,))).due(9.0, 7)) == [("kill", "device-00")]


def test_the_later_end_of_two_outages_counts() -> None:
    first, second = (
        event("reboot", at_s=1.0, for_s=10.0, devices=(0,)),
        event("reboot", at_s=5.0, for_s=3.0, devices=(0,)),
    )
    plan = schedule(first, second)
    assert told(plan.due(9.0, 1)) == [("kill", "device-00")]
    assert told(plan.due(11.0, 1)) == [("start", "device-00")]
    longer = schedule(first, event("reboot", at_s=5.0, for_s=30.0, devices=(0,)))
    assert told(longer.due(34.9, 1)) == [("kill", "device-00")]
    assert told(longer.due(35.0, 1)) == [("start", "device-00")]


def test_a_device_that_left_for_good_comes_back_only_by_joining() -> None:
    plan = schedule(
        event("leave", at_s=1.0, devices=(0,)),
        event("reboot", at_s=2.0, for_s=1.0, devices=(0,)),
        event("join", at_s=9.0, devices=(0,)),
        event("join", at_s=10.0, devices=(0,)),
    )
    assert told(plan.due(8.9, 1)) == [("kill", "device-00")]
    assert told(plan.due(20.0, 1)) == [("start", "device-00")]


def test_a_device_whose_first_event_is_to_join_is_absent_until_then() -> None:
    plan = schedule(
        event("join", at_s=3.0, devices=(0,)),
        event("leave", at_s=1.0, devices=(1,)),
        event("join", at_s=2.0, devices=(1,)),
        event("reboot", at_s=1.0, for_s=1.0, devices=(0,), at_round=2),
    )
    assert plan.absent == {"device-00"}
    assert told(plan.due(5.0, 1)) == [("kill", "device-01"), ("start", "device-01"), ("start", "device-00")]


def test_a_device_that_went_dark_stays_away_from_churn_and_ends_of_outages() -> None:
    plan = schedule(event("reboot", at_s=1.0, for_s=5.0, devices=(0,)), event("join", at_s=50.0, devices=(0,)))
    assert told(plan.due(1.0, 1)) == [("kill", "device-00")]
    plan.gone("device-00")
    assert plan.due(49.0, 1) == []
    assert told(plan.due(50.0, 1)) == [("start", "device-00")]


def test_services_go_down_and_come_up_by_their_own_names() -> None:
    plan = schedule(
        event("kill-aggregator", at_s=1.0, for_s=2.0, aggregators=(2,)),
        event("kill-aggregator", at_s=4.0, aggregators=(1,)),
        event("start-aggregator", at_s=6.0, aggregators=(1,)),
        event("kill-coordinator", at_s=7.0, for_s=1.0),
        event("restart-broker", at_s=9.0, brokers=("control",)),
        event("restart-broker", at_s=10.0, for_s=2.0, brokers=("aggregator-1",)),
    )
    assert [(action.do, action.role, action.name) for action in plan.due(100.0, 1)] == [
        ("kill", "aggregator", "aggregator-2"),
        ("start", "aggregator", "aggregator-2"),
        ("kill", "aggregator", "aggregator-1"),
        ("start", "aggregator", "aggregator-1"),
        ("kill", "coordinator", "coordinator"),
        ("start", "coordinator", "coordinator"),
        ("restart", "broker", "control"),
        ("kill", "broker", "aggregator-1"),
        ("start", "broker", "aggregator-1"),
    ]


def test_a_throttled_device_recovers_from_the_event_that_slowed_it() -> None:
    plan = schedule(
        event("throttle", at_s=1.0, for_s=10.0, devices=(0,), share=0.5),
        event("throttle", at_s=2.0, devices=(0,), share=0.25),
    )
    first, second, end = plan.due(100.0, 1)
    assert (first.do, first.share, second.share, end.do) == ("throttle", 0.5, 0.25, "recover")
    assert first.because == end.because != second.because


def test_churn_never_happens_unless_asked_for() -> None:
    assert schedule().due(1e9, 99) == []


def test_churn_comes_as_often_as_its_mean_says() -> None:
    """6 devices for 10⁵ s, a reboot every 100 s up and 20 s down: 6 · 10⁵ / 120 = 5,000, give or take 2 %."""
    actions = schedule(churn=Churn(reboot_every_s=100.0, reboot_s=20.0)).due(1e5, 1)
    kills = sum(action.do == "kill" for action in actions)
    assert kills == pytest.approx(5000, rel=0.05)


def test_churn_follows_from_the_seed() -> None:
    churn = Churn(reboot_every_s=50.0, leave_every_s=80.0)
    assert schedule(churn=churn).due(2000.0, 1) == schedule(churn=churn).due(2000.0, 9)
    assert told(schedule(churn=churn, seed=2).due(2000.0, 1)) != told(schedule(churn=churn).due(2000.0, 1))


TIMES = st.floats(0, 50).map(lambda seconds: round(seconds, 1))
EVENTS = st.lists(
    st.builds(
        FleetEvent,
        kind=st.sampled_from(("reboot", "leave", "join", "throttle")),
        at_s=TIMES,
        for_s=TIMES.map(lambda seconds: seconds + 0.1),
        devices=st.tuples(st.integers(0, 5)),
    ),
    max_size=8,
)


@given(events=EVENTS, looks=st.lists(st.floats(0, 300), max_size=20), seed=st.integers(0, 99))
def test_how_often_one_looks_changes_nothing(events: list[FleetEvent], looks: list[float], seed: int) -> None:
    churn = Churn(reboot_every_s=40.0, reboot_s=7.0, leave_every_s=90.0, away_s=30.0)
    at_once = schedule(*events, churn=churn, seed=seed).due(300.0, 1)
    plan, bit_by_bit = schedule(*events, churn=churn, seed=seed), []
    for now_s in [*sorted(looks), 300.0]:
        bit_by_bit += plan.due(now_s, 1)
    assert bit_by_bit == at_once


@given(events=EVENTS, seed=st.integers(0, 99))
def test_nobody_is_killed_twice_or_started_while_up(events: list[FleetEvent], seed: int) -> None:
    plan = schedule(*events, churn=Churn(reboot_every_s=30.0, leave_every_s=30.0), seed=seed)
    is_up = {name: name not in plan.absent for name in MEMBERS.devices}
    for action in plan.due(300.0, 1):
        if action.do in ("kill", "start"):
            assert is_up[action.name] is (action.do == "kill")
            is_up[action.name] = action.do == "start"


def test_nothing_is_left_down_by_an_outage_that_ends() -> None:
    plan = schedule(*(event("reboot", at_s=float(n), for_s=3.0, devices=(n % 6,)) for n in range(30)))
    plan.due(math.inf, 1)
    assert not any(until_s < math.inf for until_s in plan._down.values())
