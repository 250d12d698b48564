"""F02: whole federations at a simulated time, and everything that can go wrong at once (tests/simulators).

Each schedule has at least 30 operations; an independent judge reads its history (docs/histories.md). A failure prints
its seed and what is left of the schedule when all that does not matter is taken away:
`PYTHONPATH=.:tests python -m simulators.schedules SEED` runs it again.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from simulators.found import FOUND
from simulators.schedules import Operation, Schedule, draw, report, simulate

BLOCK = 50
IN_TESTS, IN_FAULTS, IN_SOAK = 50, 2_000, 10_000
#: Another number gives the long runs other schedules.
FIRST = int(os.environ.get("FPS_SEED", "0")) * 1_000_000

#: What fails is made small before it is shown, which takes hundreds of runs; not where a failure is what is wanted.
MAKES_SMALL = os.environ.get("FPS_SHRINK", "1") == "1"


def judge_block(first: int, count: int) -> None:
    for seed in range(first, first + count):
        schedule = draw(seed)
        violations = simulate(schedule)
        assert not violations, report(schedule, violations) if MAKES_SMALL else violations


@pytest.mark.parametrize("first", range(0, IN_TESTS, 10))
def test_a_slice(first: int) -> None:
    judge_block(first, 10)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(FIRST + 10_000, FIRST + 10_000 + IN_FAULTS, BLOCK))
def test_two_thousand(first: int) -> None:
    judge_block(first, BLOCK)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(FIRST + 100_000, FIRST + 100_000 + IN_SOAK, BLOCK))
def test_ten_thousand(first: int) -> None:
    judge_block(first, BLOCK)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name: str) -> None:
    """Schedules that broke an invariant before it was mended, as small as they could be made."""
    violations = simulate(FOUND[name])
    assert not violations, "\n".join(violations)


def test_schedules_are_what_they_promise() -> None:
    schedules = [draw(seed) for seed in range(2_000)]
    assert min(len(schedule.operations) for schedule in schedules) >= 30
    assert {(s.setup.k, s.setup.n) for s in schedules} == {(2, 3), (3, 5)}
    assert {s.setup.devices for s in schedules} >= {3, 4, 5, 6, 8, 20}
    kinds = Counter(operation.kind for schedule in schedules for operation in schedule.operations)
    assert min(kinds.values()) > 500
    assert any(s.setup.real_crypto for s in schedules)


def test_a_schedule_gives_the_same_history_again(tmp_path: Path) -> None:
    histories = []
    for name in ("one", "two"):
        path = tmp_path / name
        simulate(draw(7), path)
        histories.append(path.read_text())
    assert histories[0] == histories[1]
    assert '"phase": "APPLIED"' in histories[0]


def test_a_calm_federation_applies_round_after_round(tmp_path: Path) -> None:
    rng = random.Random(1)
    waits = tuple(Operation("wait", 1.0, rng.randrange(2**32)) for _ in range(30))
    path = tmp_path / "history"
    assert simulate(Schedule(draw(3).setup, waits), path) == []
    text = path.read_text()
    assert text.count('"phase": "APPLIED"') >= 3
    assert '"phase": "FAILED"' not in text
