"""What the fault tests have in common: small fleets of many quick rounds, and how a blow is dealt and got over."""

from __future__ import annotations

import os
import pwd
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedpruneshare.link import BrokerAddress
from firmware_configs.brokers import Broker
from firmware_configs.brokers.mosquitto import find_mosquitto
from testbed.faults.fleet import FaultFleet
from testbed.federation import COORDINATOR
from testbed.ledger.rounds import CoordinatorRound
from testbed.scenario import load_scenario

#: Rounds without end: a test stops the fleet when it has seen enough.
ENDLESS = (
    "rounds.count=100000", "max_failed_rounds=100000", "rounds.cohort=5", "rounds.min_devices=3",
    "rounds.deadline_s=8", "rounds.grace_s=1.0", "rounds.sum_timeout_s=8", "fleet.devices=5",
)  # fmt: skip
SYNTHETIC = (*ENDLESS, "fleet.synthetic_values=200")
TINY_TASK = Path(__file__).with_name("tiny_task.py")
#: From a process's start until what it takes part in has ended (notes: recovery under 3 s).
RECOVERY_S = 3.0
_PATIENCE_S = 30.0


def synthetic_fleet(
    folder: Path, *overrides: str, seed: int = 1, own_broker: Callable[[str, Path], Broker] | None = None
) -> FaultFleet:
    """Five devices in one process, three aggregators; every round takes about a quarter of a second."""
    scenario = load_scenario("thousand-devices", [*SYNTHETIC, *overrides])
    return FaultFleet(scenario, folder, seed, own_broker)


def real_fleet(folder: Path, *overrides: str, seed: int = 1) -> FaultFleet:
    """Five real devices on the tiny task, each a process of its own, with outbox and model slots."""
    task = (f'task.name="{TINY_TASK}"', 'task.data="any"', "training.local_epochs=2", "pruning.rungs=[1.0]")
    density = ("fleet.groups=[]", "pruning.start_density=1.0", "pruning.target_density=1.0")
    return FaultFleet(load_scenario("demo", [*ENDLESS, *task, *density, *overrides]), folder, seed)


def mosquitto_with(*lines: str) -> Callable[[str, Path], Broker]:
    """Makes Mosquitto brokers with next to no configuration, and with these lines."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is not installed")

    def make(name: str, folder: Path) -> Broker:
        def render(address: BrokerAddress) -> list[str]:
            user = pwd.getpwuid(os.geteuid()).pw_name
            own = (f"listener {address.port} {address.host}", "allow_anonymous true", f"user {user}")
            (folder / "mosquitto.conf").write_text("\n".join([*own, f"persistence_location {folder}/", *lines, ""]))
            return ["program", str(program), "-c", str(folder / "mosquitto.conf")]

        return Broker("mosquitto", folder, render)

    return make


def wait(fleet: FaultFleet, condition: Callable[[], Any], what: str, timeout_s: float = _PATIENCE_S) -> Any:
    """Wait for a condition, at most so long; an unexpected end of anything is an error at once."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        lost = fleet.lost()
        assert not lost, f"ended by themselves while waiting for {what}: {lost}\n{fleet.log_tail(next(iter(lost)))}"
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}; see {fleet.folder.logs}"
        time.sleep(0.01)
    return found


def decided(fleet: FaultFleet) -> int:
    """How many rounds have ended."""
    return len(fleet.rounds())


def await_rounds(fleet: FaultFleet, more: int = 1, timeout_s: float = _PATIENCE_S) -> None:
    """Wait until so many more rounds have ended."""
    wanted = decided(fleet) + more
    wait(fleet, lambda: decided(fleet) >= wanted, f"round {wanted}", timeout_s)


def kill_at(fleet: FaultFleet, victim: str, point: str, nth: int = 1) -> float:
    """One blow: the victim dies at the point and comes back. Seconds from its start until it is back in the rounds."""
    fleet.arm(victim, point, nth)
    fleet.await_death(victim)
    started = time.monotonic()
    fleet.revive(victim)
    wait(fleet, lambda: _is_back(fleet, victim, started), f"{victim} to be back after {point}")
    return time.monotonic() - started


def _is_back(fleet: FaultFleet, victim: str, started: float) -> bool:
    """A coordinator has decided a round since, an aggregator has signed, a device has a receipt."""
    for event in reversed(fleet.story()):
        if event["at"] < started:
            break
        is_decision = event["event"] == "outcome" and victim == COORDINATOR
        is_signed = event["event"] in ("attendance", "sum-released") and event["aggregator"] == victim
        is_heard = event["event"] == "receipt" and event["device"] == victim
        if is_decision or is_signed or is_heard:
            return True
    return False


def kill_rounds(fleet: FaultFleet, parties: Sequence[str], points: Sequence[str], seed: int) -> list[float]:
    """Kill one of the parties at every point, in an order and at a time that the seed gives; recoveries in seconds."""
    rng = random.Random(seed)
    order = [(point, rng.choice(parties), rng.choice((1, 1, 2))) for point in rng.sample(points, len(points))]
    recoveries = []
    for point, victim, nth in order:
        recoveries.append(kill_at(fleet, victim, point, nth))
        assert recoveries[-1] < RECOVERY_S, f"{victim} took {recoveries[-1]:.1f} s to recover from a kill at {point}"
    print(f"{len(recoveries)} kills, slowest recovery {max(recoveries):.2f} s")
    return recoveries


def judge(fleet: FaultFleet) -> None:
    """Have the checker judge the run's history."""
    found = fleet.judge()
    assert not found, f"seed {fleet.seed}: {found[:10]}"


def newest_round(fleet: FaultFleet) -> int:
    """The newest round that was planned."""
    return max((e["round"] for e in fleet.story() if e["event"] == "plan"), default=0)


def decision(fleet: FaultFleet, round_id: int, timeout_s: float = _PATIENCE_S) -> CoordinatorRound:
    """Wait for a round to be decided, and how it was."""

    def found() -> CoordinatorRound | None:
        return next((line for line in fleet.rounds() if line.round == round_id), None)

    return wait(fleet, found, f"the end of round {round_id}", timeout_s)


def phases(fleet: FaultFleet) -> list[str]:
    """How each round ended."""
    return [line.phase for line in fleet.rounds()]
