"""F04: aggregators killed or stopped at four phases of a round: up to n − k of them are not missed, one more fails it.

A round that has too few answers is FAILED with a reason and changes no model; as soon as they are back, rounds are
APPLIED again.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from faults.harness import await_rounds, decision, judge, newest_round, synthetic_fleet

from testbed.faults.fleet import FaultFleet

pytestmark = [pytest.mark.usefixtures("quick_links"), pytest.mark.timeout(170)]

QUICK = ("rounds.deadline_s=1.5", "rounds.grace_s=0.3", "rounds.sum_timeout_s=1.5")
#: Phase -> the point at which the aggregator leaves; the first is before the plan of the next round.
PHASES = {
    "plan": "aggregator.round-closed.after",
    "upload": "aggregator.chunks-committed.after",
    "attendance": "aggregator.attendance-signed.before",
    "freeze": "aggregator.freeze-persisted.before",
}


def strike(fleet: FaultFleet, victims: list[str], phase: str, how: signal.Signals) -> int:
    """All victims leave at a phase; the round that lacks them."""
    for victim in victims:
        fleet.arm(victim, PHASES[phase], 1, how)
    for victim in victims:
        (fleet.await_death if how is signal.SIGKILL else fleet.await_stop)(victim)
    struck = newest_round(fleet)
    if phase != "plan":
        return struck
    decision(fleet, struck)
    return struck + 1


def heal(fleet: FaultFleet, victims: list[str], how: signal.Signals) -> None:
    for victim in victims:
        (fleet.revive if how is signal.SIGKILL else fleet.resume)(victim)


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize(("k", "n"), [(2, 3), (3, 5)], ids=["2 of 3", "3 of 5"])
def test_rounds_without_aggregators(tmp_path: Path, k: int, n: int, how: signal.Signals) -> None:
    rng = random.Random(f"{k} {n} {how}")
    counts = (f"aggregators.count={n}", f"sharing.threshold={k}")
    with synthetic_fleet(tmp_path / "run", *counts, *QUICK) as fleet:
        fleet.start()
        await_rounds(fleet)
        for phase in PHASES:
            for gone in (n - k, n - k + 1):
                victims = rng.sample(fleet.aggregators, gone)
                line = decision(fleet, strike(fleet, victims, phase, how))
                if gone > n - k:
                    assert line.phase == "FAILED", (phase, gone)
                    assert line.reason
                else:
                    assert line.phase == "APPLIED", (phase, gone, line.reason)
                    assert not {*victims} & {*line.aggregators}, "they cannot have answered"
                heal(fleet, victims, how)
                settle(fleet)
        judge(fleet)


@pytest.mark.e2e
def test_a_slice_of_the_rounds_without_aggregators(tmp_path: Path) -> None:
    patient = ("rounds.deadline_s=6", "rounds.grace_s=1.0", "rounds.sum_timeout_s=6")  # on a crowded machine
    with synthetic_fleet(tmp_path / "run", *patient) as fleet:
        fleet.start()
        await_rounds(fleet)
        for gone, phase in ((1, "APPLIED"), (2, "FAILED")):
            victims = list(fleet.aggregators[:gone])
            line = decision(fleet, strike(fleet, victims, "freeze", signal.SIGKILL))
            assert (line.phase, bool(line.reason)) == (phase, phase == "FAILED")
            heal(fleet, victims, signal.SIGKILL)
            settle(fleet)
        judge(fleet)


def settle(fleet: FaultFleet) -> None:
    """Wait until a round is APPLIED with everybody's sum."""
    for _ in range(8):
        line = decision(fleet, newest_round(fleet) + 1)
        if line.phase == "APPLIED" and len(line.aggregators) == len(fleet.aggregators):
            return
    raise AssertionError(f"the last of 8 rounds was {line}")
