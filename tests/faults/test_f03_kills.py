"""F03: SIGKILL at every named crash point of every role, on real processes and brokers, over and over.

A run has many rounds; in each, one process ends itself at a point (`fedpruneshare.crash_points`) and is started again
at once. What must hold is judged by the checker from the run's history: nothing receipted is lost, nobody counts
twice, every sum is the plain sum, every round is decided.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from faults.harness import await_rounds, judge, kill_at, kill_rounds, phases, real_fleet, synthetic_fleet

from fedpruneshare.crash_points import POINTS
from testbed.federation import COORDINATOR

pytestmark = [pytest.mark.usefixtures("quick_links"), pytest.mark.timeout(240)]
#: Rounds that fail must be rare: a role that is back at once costs no round.
_MOST_FAILED = 0.1


#: Role -> how many seeds.
SEEDS = {"aggregator": 5, "coordinator": 4, "device": 4}


def test_the_plan_has_two_hundred_kills() -> None:
    assert sum(seeds * len(POINTS[role]) for role, seeds in SEEDS.items()) >= 200


@pytest.mark.faults
@pytest.mark.parametrize(
    ("role", "seed"), [(role, seed) for role, most in SEEDS.items() for seed in range(1, most + 1)]
)
def test_a_role_is_killed_at_every_point(tmp_path: Path, role: str, seed: int) -> None:
    overrides = ("rounds.grace_s=0.5",) if role == "aggregator" else ()
    with (real_fleet if role == "device" else synthetic_fleet)(tmp_path / "run", *overrides, seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        parties = {"aggregator": fleet.aggregators, "coordinator": (COORDINATOR,), "device": fleet.devices}[role]
        kills = kill_rounds(fleet, parties, POINTS[role], seed)
        await_rounds(fleet)
        judge(fleet)
        died = [e["what"] for e in fleet.story() if e["event"] == "fault" and e["what"].startswith("SIGKILL of")]
        assert sorted(what.rpartition(" ")[2] for what in died) == sorted(POINTS[role])
        assert phases(fleet).count("FAILED") <= _MOST_FAILED * len(kills)


@pytest.mark.faults
@pytest.mark.mosquitto
@pytest.mark.parametrize("seed", [1, 2])
def test_the_plug_is_pulled_on_everything_at_once(tmp_path: Path, seed: int) -> None:
    """Coordinator, aggregators, devices and brokers as they ship, at any moment of a round, six times."""
    rng = random.Random(f"plug {seed}")
    shipped = ('brokers.kind="mosquitto"', "brokers.tls=true")
    with real_fleet(tmp_path / "run", *shipped, seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        everybody = (COORDINATOR, *fleet.aggregators, *fleet.devices)
        for _ in range(6):
            time.sleep(rng.uniform(0.0, 0.3))  # any moment of a round
            fleet.note("fault", what="the plug is pulled")
            for ident in rng.sample(everybody, len(everybody)):
                fleet.kill(ident)
            for name in fleet.brokers:
                fleet.kill_broker(name)
            for name in fleet.brokers:
                fleet.start_broker(name)
            for ident in everybody:
                fleet.revive(ident)
            await_rounds(fleet)
        await_rounds(fleet)
        judge(fleet)
        assert phases(fleet).count("FAILED") <= 2


#: One point of each kind: what `make test` has time for.
SLICE = (
    ("aggregator", "aggregator.chunks-committed.after"),
    ("aggregator", "aggregator.freeze-persisted.after"),
    ("coordinator", "coordinator.freeze-persisted.before"),
    ("coordinator", "coordinator.model-written.after"),
)


@pytest.mark.e2e
def test_a_slice_of_the_kills(tmp_path: Path) -> None:
    """How quickly a party recovers is the whole plan's matter: here others compute beside it."""
    patient = ("rounds.grace_s=1.0", "rounds.deadline_s=60", "rounds.sum_timeout_s=60")
    with synthetic_fleet(tmp_path / "run", *patient) as fleet:
        fleet.start()
        await_rounds(fleet)
        for role, point in SLICE:
            victim = COORDINATOR if role == "coordinator" else "aggregator-2"
            kill_at(fleet, victim, point)
        await_rounds(fleet)
        judge(fleet)
        assert set(phases(fleet)) == {"APPLIED"}
