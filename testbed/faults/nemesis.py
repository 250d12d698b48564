"""Random faults on a real fleet, drawn from a seed before the first of them falls: `python -m testbed.faults.nemesis`.

    python -m testbed.faults.nemesis SEED SECONDS FOLDER     # runs a fleet in FOLDER, judges its history

The same seed and length give the same blows at the same times; each is logged (`nemesis.jsonl`, and in the history).
What the processes make of it also depends on the machine, so a run that fails is repeated with its seed, not replayed
step by step. Disks are filled only where a store lies on a disk of its own (`testbed.faults.disks`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from testbed.faults.disks import fill, give_room
from testbed.faults.fleet import FaultFleet
from testbed.faults.proxy import Proxy
from testbed.federation import COORDINATOR
from testbed.scenario import load_scenario

#: A fleet for it: small rounds without end, failed ones allowed.
OVERRIDES: Final = (
    "rounds.count=1000000", "max_failed_rounds=1000000", "rounds.deadline_s=8", "rounds.grace_s=1",
    "rounds.sum_timeout_s=8", "rounds.wait_for_devices_s=8", "rounds.min_devices=3", "fleet.synthetic_values=200",
)  # fmt: skip


@dataclass(frozen=True)
class Blow:
    """One fault: when it falls (seconds from the start), what it is, whom it hits, how long it lasts."""

    at_s: float
    kind: str
    victims: tuple[str, ...]
    lasts_s: float


@dataclass(frozen=True)
class Targets:
    """Whom a blow may hit. `spared`: aggregators that are never hit at the same time, the k that a round needs."""

    aggregators: tuple[str, ...]
    devices: tuple[str, ...]
    brokers: tuple[str, ...]
    spared: int


def draw(seed: int, seconds: float, every_s: tuple[float, float], targets: Targets) -> tuple[Blow, ...]:
    """The blows of a run: one every so many seconds, none lasting into the next."""
    rng = random.Random(f"nemesis {seed}")
    blows, at_s = list[Blow](), rng.uniform(*every_s)
    while at_s < seconds:
        kind = rng.choice(tuple(KINDS))
        pause_s = rng.uniform(*every_s)
        lasts_s = rng.uniform(0.0, min(0.7 * pause_s, 6.0))
        blows.append(Blow(round(at_s, 2), kind, _victims(kind, rng, targets), round(lasts_s, 2)))
        at_s += pause_s
    return tuple(blows)


def _victims(kind: str, rng: random.Random, targets: Targets) -> tuple[str, ...]:
    who = KINDS[kind][0]
    if who == "aggregators":
        return tuple(rng.sample(targets.aggregators, rng.randint(1, len(targets.aggregators) - targets.spared)))
    if who == "coordinator":
        return (COORDINATOR,)
    if who == "devices":
        return tuple(rng.sample(targets.devices, rng.randint(1, 2)))
    return tuple(rng.sample(targets.brokers, rng.randint(1, 2)))


# --------------------------------------------------------------------------- what the blows do

Step = Callable[[FaultFleet, str], None]


def _stop(fleet: FaultFleet, name: str) -> None:
    os.kill(fleet.pids[name], signal.SIGSTOP)


def _on_proxy(step: Callable[[Proxy], None]) -> Step:
    return lambda fleet, name: step(fleet.proxy(name))


def _worsen(proxy: Proxy) -> None:
    proxy.delay_s, proxy.duplicate, proxy.swap = 0.05, 0.1, 0.1


def _throttle(proxy: Proxy) -> None:
    proxy.rate = 30_000.0


def _fill_disk(fleet: FaultFleet, name: str) -> None:
    fill(fleet.folder.store(name))


def _empty_disk(fleet: FaultFleet, name: str) -> None:
    give_room(fleet.folder.store(name))


_HEAL: Final[Step] = _on_proxy(Proxy.heal)
#: Kind -> (whom it hits, what is done, what undoes it).
KINDS: Final[dict[str, tuple[str, Step, Step]]] = {
    "kill aggregator": ("aggregators", FaultFleet.kill, FaultFleet.revive),
    "stop aggregator": ("aggregators", _stop, FaultFleet.resume),
    "fill disk": ("aggregators", _fill_disk, _empty_disk),
    "kill coordinator": ("coordinator", FaultFleet.kill, FaultFleet.revive),
    "stop coordinator": ("coordinator", _stop, FaultFleet.resume),
    "kill device": ("devices", FaultFleet.kill, FaultFleet.revive),
    "kill broker": ("brokers", FaultFleet.kill_broker, FaultFleet.start_broker),
    "restart broker": ("brokers", FaultFleet.restart_broker, lambda _fleet, _name: None),
    "partition": ("brokers", _on_proxy(Proxy.partition), _HEAL),
    "hold": ("brokers", _on_proxy(Proxy.hold), _HEAL),
    "half-open": ("brokers", _on_proxy(Proxy.half_open), _HEAL),
    "drop": ("brokers", _on_proxy(Proxy.drop), _HEAL),
    "bad weather": ("brokers", _on_proxy(_worsen), _HEAL),
    "thin line": ("brokers", _on_proxy(_throttle), _HEAL),
    "cut up": ("brokers", _on_proxy(lambda proxy: proxy.cut_after(3000, "up")), _HEAL),
    "cut down": ("brokers", _on_proxy(lambda proxy: proxy.cut_after(3000, "down")), _HEAL),
}


class Nemesis:
    """Deals the blows of a seed to a fleet that runs; from the thread that made the fleet."""

    def __init__(self, fleet: FaultFleet, blows: Sequence[Blow]) -> None:
        self._fleet, self._blows = fleet, blows
        self._log = fleet.folder.root / "nemesis.jsonl"

    def run(self) -> None:
        """One blow after the other, each undone when its time is over; memory is measured after each."""
        started = time.monotonic()
        for blow in self._blows:
            self._until(started + blow.at_s)
            _, strike, undo = KINDS[blow.kind]
            self._note(blow)
            for victim in blow.victims:
                strike(self._fleet, victim)
            self._until(started + blow.at_s + blow.lasts_s)
            for victim in blow.victims:
                undo(self._fleet, victim)
            self._fleet.note_memory()

    def _until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def _note(self, blow: Blow) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(blow)) + "\n")
        self._fleet.note("fault", what=f"{blow.kind}: {', '.join(blow.victims)} for {blow.lasts_s} s")


def targets_of(fleet: FaultFleet) -> Targets:
    """Whom a nemesis may hit in a fleet: at most n − k of its aggregators at a time."""
    k = fleet.scenario.sharing.threshold
    return Targets(fleet.aggregators, fleet.devices, tuple(sorted(fleet.brokers)), k)


def main(seed: int, seconds: float, folder: Path) -> int:
    """Run a fleet of twenty devices under the blows of a seed; 1 if its history is not sound."""
    scenario = load_scenario("thousand-devices", [*OVERRIDES, "fleet.devices=20", "rounds.cohort=20"])
    with FaultFleet(scenario, folder, seed) as fleet:
        fleet.start()
        Nemesis(fleet, draw(seed, seconds, (2.0, 4.0), targets_of(fleet))).run()
        done = len(fleet.rounds())
        fleet.wait_for(lambda: len(fleet.rounds()) >= done + 3, 60.0, "three rounds in peace")
        found = fleet.judge()
        phases = [line.phase for line in fleet.rounds()]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stdout.write(f"seed {seed}: {len(phases)} rounds, {phases.count('APPLIED')} applied, {len(found)} violations\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
