"""Sets that may be summed after others, where aggregators look back over `differencing_rounds` sums."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulators.schedules import CALM, _begin
from simulators.virtual_time import VirtualLoop, run
from simulators.world import Setup, World

from aggregator.post import Post
from aggregator.rules import Summed, check_differences, summed
from coordinator.differences import Choice, Frozen, Past, choose
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import Contribution, Freeze
from testbed.faults import checker

NAMES = ("a", "b", "c")
#: Rungs by device, of some rounds.
FLEETS = st.lists(st.dictionaries(st.integers(0, 11), st.integers(0, 2), min_size=3), min_size=2, max_size=5)


def uploads(rungs: dict[int, int], attempt: int = 0) -> tuple[Contribution, ...]:
    return tuple(Contribution(f"d{device:02}", bytes([attempt]) * 16, rung) for device, rung in sorted(rungs.items()))


def settle(contributors: tuple[Contribution, ...]) -> Choice:
    return contributors, open_segments([c.rung for c in contributors], 3, 3, 3)


def freeze(number: int, contributors: tuple[Contribution, ...], by: tuple[str, ...] = NAMES) -> Freeze:
    return Freeze(number, bytes(32), by, contributors, settle(contributors)[1])


def devices_of(choice: Choice | None) -> list[int]:
    assert choice is not None
    return [int(c.device_id[1:]) for c in choice[0]]


# --------------------------------------------------------------------------- what aggregators remember


def test_the_window_of_an_aggregator_reaches_back_to_sums_it_gave_for_certain() -> None:
    """The newest first: `c` answered neither 5 nor 4, and may remember 3, and that of the failed round 2."""
    known = [
        (5, NAMES, {"a", "b"}),
        (4, ("a", "b"), {"a", "b"}),
        (3, NAMES, {"a", "c"}),
        (2, NAMES, set()),
        (1, NAMES, {"c"}),
    ]
    freezes = {number: freeze(number, uploads(dict.fromkeys(range(number + 3), 0))) for number, _, _ in known}
    past = tuple(
        Frozen(freeze(number, freezes[number].contributors, by), False, frozenset(given)) for number, by, given in known
    )

    def looked_at(last: int, *aggregators: str, frozen: tuple[Frozen, ...] = past) -> list[int]:
        return [found.round_id for found in Past((), frozen, last).freezes(aggregators)]

    assert looked_at(1, "a", "b") == [5]
    assert looked_at(1, "c") == [5, 3]
    assert looked_at(2, "a", "b") == [5, 4]
    assert looked_at(2, "c") == [5, 3, 2, 1]
    assert looked_at(0, *NAMES) == []
    accepted = tuple(Frozen(old.freeze, True, old.summed_by) for old in past)
    assert looked_at(1, "c", frozen=accepted) == [5, 4, 3]


def test_a_set_that_was_summed_again_and_again_is_looked_at_once() -> None:
    frozen = tuple(
        Frozen(freeze(n, uploads(dict.fromkeys(range(5), 0), n)), False, frozenset()) for n in range(9, 0, -1)
    )
    assert [found.round_id for found in Past((frozen[0].freeze,), frozen, 9).freezes(NAMES)] == [9]


# --------------------------------------------------------------------------- which set comes next


def test_those_who_stay_away_with_one_that_is_gone_are_as_many_as_can_come_back() -> None:
    before, now = freeze(1, uploads(dict.fromkeys(range(10), 0))), uploads(dict.fromkeys(range(9), 0), 1)
    assert devices_of(choose(now, (before,), 3, settle, False)) == [0, 1, 2, 3, 4, 5, 6]
    lasting = choose(now, (before,), 3, settle, True)
    assert devices_of(lasting) == [0, 1, 2, 3, 4, 5]
    assert lasting is not None
    assert devices_of(choose(now, (freeze(2, *lasting[:1]),), 3, settle, True)) == list(range(9))


def test_of_longer_segments_too_everybody_can_come_back() -> None:
    """Of six at the longer rung one is gone: three of the rung stay away, which closes the segment for a round."""
    rungs = {0: 0, 3: 0, 6: 0, 9: 0, 1: 1, 2: 1, 4: 1, 5: 1, 7: 1}
    before, now = freeze(1, uploads({**rungs, 8: 1})), uploads(rungs, 1)
    lasting = choose(now, (before,), 3, settle, True)
    assert lasting is not None
    assert (len(lasting[0]), lasting[1]) == (6, (0,))
    assert len(devices_of(choose(now, (freeze(2, lasting[0]),), 3, settle, True))) == 9


def test_where_so_many_cannot_be_spared_fewer_stay_away() -> None:
    before, now = freeze(1, uploads(dict.fromkeys(range(6), 0))), uploads(dict.fromkeys(range(5), 0), 1)
    assert devices_of(choose(now, (before,), 3, settle, True)) == [0, 1, 2]
    assert choose(now[:4], (freeze(1, now),), 3, settle, True) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 11), st.integers(0, 2), min_size=3), min_size=2, max_size=5), st.booleans()
)
def test_no_aggregator_that_remembers_the_earlier_sets_refuses_the_one_that_is_chosen(
    fleets: list[dict[int, int]], is_lasting: bool
) -> None:
    *earlier, now = [uploads(fleet, attempt) for attempt, fleet in enumerate(fleets)]
    past = tuple(freeze(number, contributors) for number, contributors in enumerate(earlier, 1))
    choice = choose(now, past, 3, settle, is_lasting)
    if choice is None:
        return
    assert set(choice[0]) <= set(now)
    assert choice[1] == settle(choice[0])[1] != ()
    for supports in (b"the same", b"others"):
        held: list[Summed] = [summed(old.round_id, b"the same", old) for old in past]
        check_differences(summed(9, supports, freeze(9, choice[0])), held, 3)


def test_many_sets_of_a_large_fleet_are_compared_in_time() -> None:
    """Choosing goes on in the coordinator's loop. Every round a few of the fleet are missing, here and there."""
    rng, sets = random.Random(0), []
    for number in range(33):
        sets.append(uploads({device: device % 3 for device in range(500) if rng.random() > 0.005}, number))
    past = tuple(freeze(number, contributors) for number, contributors in enumerate(sets[:-1]))
    started = time.process_time()
    choice = choose(sets[-1], past, 3, settle, True)
    assert time.process_time() - started < 2.0
    assert choice is not None
    held = [summed(old.round_id, b"the same", old) for old in past]
    check_differences(summed(99, b"others", freeze(99, choice[0])), held, 3)


@pytest.mark.parametrize(
    ("fleet", "cohort", "missing", "last", "least"),
    [(10, 10, 0.02, 1, 0.9), (10, 10, 0.1, 2, 0.65), (24, 24, 0.02, 2, 0.85), (50, 24, 0.1, 2, 0.9)],
)
def test_whoever_comes_and_goes_no_aggregator_refuses_and_most_uploads_are_summed(
    fleet: int, cohort: int, missing: float, last: int, least: float
) -> None:
    """Two hundred rounds in which devices miss rounds, aggregators are away, and answers get lost."""
    rng, frozen, held = random.Random(0), list[Frozen](), {name: list[Summed]() for name in NAMES}
    came = used = 0
    for number in range(1, 201):
        here = [device for device in rng.sample(range(fleet), cohort) if rng.random() > missing]
        now = uploads({device: device % 2 for device in here})
        by = tuple(name for name in NAMES if rng.random() > 0.1)
        by = by if len(by) > 1 else NAMES
        choice = choose(now, Past((), tuple(reversed(frozen)), last).freezes(by), 3, settle, True)
        came += len(now)
        if choice is None:
            continue
        for name in by:
            mine = summed(number, b"%d" % number, freeze(number, choice[0], by))
            check_differences(mine, held[name][-last:], 3)
            held[name].append(mine)
        answered = frozenset(name for name in by if rng.random() > 0.05)
        is_applied = len(answered) > 1
        frozen.append(Frozen(freeze(number, choice[0], by), False, answered if is_applied else frozenset()))
        used += len(choice[0]) if is_applied else 0
    assert used >= least * came


# --------------------------------------------------------------------------- a fleet of which one device dies


@pytest.mark.parametrize(("last", "victim", "quorum"), [(1, 9, 0), (2, 8, 3)])
def test_a_fleet_goes_on_after_one_device_has_gone_for_good(
    last: int, victim: int, quorum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over restarts of the coordinator; no aggregator ever refuses, and everybody who lives is summed again."""
    refused: list[Any] = []
    monkeypatch.setattr(Post, "refuse", lambda self, *what: refused.append(what))
    loop, setup = VirtualLoop(), Setup(7, devices=10, differencing_rounds=last, freeze_quorum=quorum)

    async def scene(world: World) -> None:
        for broker in world.brokers.values():
            broker.weather = CALM
        for name in ("coordinator", *setup.aggregators, *setup.device_names):
            world.start(name)
        await rounds(world, 1)
        world.cut(setup.device_names[victim])
        await rounds(world, 1)
        world.cut("coordinator")
        world.start("coordinator")
        await rounds(world, last + 1)
        for name in list(world.lives):
            world.cut(name)

    with tempfile.TemporaryDirectory() as folder:
        world = World(setup, Path(folder), loop)
        with world.laws():
            _begin(world)
            run(loop, scene(world))
        world.note("end")
        loop.bury([*world.over, *world.lives.values()])
    ended = [event for event in world.history if event["event"] == "outcome"]
    assert {event["phase"] for event in ended} == {"APPLIED"}, ended
    assert refused == []
    summed_last = [event for event in world.history if event["event"] == "freeze-signed"][-1]
    assert {c[0] for c in summed_last["contributors"]} == {*setup.device_names} - {setup.device_names[victim]}
    begun = max(event["round"] for event in world.history if event["event"] == "plan")
    assert {*checker.judge(world.history), *world.faults} <= {f"I9 round {begun}: 0 outcomes"}


async def rounds(world: World, count: int) -> None:
    """Wait for so many more rounds."""

    def over() -> int:
        return len({event["round"] for event in world.history if event["event"] == "outcome"})

    wanted = over() + count
    for _ in range(200):
        if over() >= wanted:
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"{over()} rounds in 100 s")
