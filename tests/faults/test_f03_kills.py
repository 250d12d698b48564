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
from faults.harness import RECOVERY_S, await_rounds, judge, kill_at, kill_rounds, phases, real_fleet, synthetic_fleet

from fedpruneshare.crash_points import POINTS
from testbed.federation import COORDINATOR

pytestmark = [pytest.mark.usefixtures("quick_links"), pytest.mark.timeout(240)]
#: Rounds that fail must be rare: a role that is back at once costs no round.
_MOST_FAILED = 0.1


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 6))
def test_an_aggregator_is_killed_at_every_point(tmp_path: Path, seed: int) -> None:
    with synthetic_fleet(tmp_path / "run", "rounds.grace_s=0.5", seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        kills = kill_rounds(fleet, fleet.aggregators, POINTS["aggregator"], seed)
        await_rounds(fleet)
        judge(fleet)
        assert phases(fleet).count("FAILED") <= _MOST_FAILED * len(kills)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 5))
def test_the_coordinator_is_killed_at_every_point(tmp_path: Path, seed: int) -> None:
    with synthetic_fleet(tmp_path / "run", seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        kills = kill_rounds(fleet, [COORDINATOR], POINTS["coordinator"], seed)
        await_rounds(fleet)
        judge(fleet)
        assert phases(fleet).count("FAILED") <= _MOST_FAILED * len(kills)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_device_is_killed_at_every_point(tmp_path: Path, seed: int) -> None:
    with real_fleet(tmp_path / "run", seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        kills = kill_rounds(fleet, fleet.devices, POINTS["device"], seed)
        await_rounds(fleet)
        judge(fleet)
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
    with synthetic_fleet(tmp_path / "run", "rounds.grace_s=0.5") as fleet:
        fleet.start()
        await_rounds(fleet)
        for role, point in SLICE:
            victim = COORDINATOR if role == "coordinator" else "aggregator-2"
            assert kill_at(fleet, victim, point) < RECOVERY_S
        await_rounds(fleet)
        judge(fleet)
        assert set(phases(fleet)) == {"APPLIED"}
