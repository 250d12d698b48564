"""`bench rounds --devices …`: what a round of many synthetic devices costs each role, and how that grows.

CPU seconds are those of the processes, from the end of one round to the end of the next, so that another load on the
machine changes seconds and not them. The first round is left out: its devices still connect, caches are cold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import psutil

from coordinator.settings import PruningSettings, RoundSettings, SharingSettings
from fedpruneshare.errors import RunError
from testbed.engines import SYNTHETIC_TASK
from testbed.federation import COORDINATOR
from testbed.fleet import Fleet
from testbed.ledger.rounds import CoordinatorRound, DeviceRound, read_ledgers
from testbed.scenario import AggregatorFleet, BrokerKind, BrokerSettings, FleetSettings, Scenario, ScenarioTask

ROLES: Final = ("devices", "brokers", "aggregators", "coordinator")
_MIB: Final = 1024 * 1024
#: A round of so many devices may take so long: a fixed part, and as much for each device.
_DEADLINE_S: Final = (60.0, 0.3)


@dataclass(frozen=True)
class CrowdSettings:
    """What is measured: `rounds` rounds after the first, `values` weights a device, any k of n aggregators."""

    values: int = 10_000
    rounds: int = 3
    n: int = 3
    k: int = 2
    broker: BrokerKind = "embedded"


class RoleCost(msgspec.Struct, frozen=True):
    """What a role costs in a round: medians of CPU seconds, memory of all its processes at its highest.

    `pss_mib`: proportional set size at the end; pages that processes share are counted once.
    """

    processes: int
    cpu_s: float
    cpu_s_per_device: float
    peak_rss_mib: float
    largest_rss_mib: float
    pss_mib: float


class Crowd(msgspec.Struct, frozen=True):
    """One size. Bytes are MQTT payload a device and round; seconds are medians over the measured rounds."""

    devices: int
    values: int
    n: int
    k: int
    broker: str
    rounds_applied: int
    rounds_failed: int
    contributors: int
    verified: bool
    round_s: float
    phase_s: dict[str, float]
    cpu_s_per_device: float
    roles: dict[str, RoleCost]
    up_bytes: dict[str, float]
    down_bytes: dict[str, float]


def scenario_of(devices: int, settings: CrowdSettings) -> Scenario:
    """All devices in every round, at one rung, with as many weights as said."""
    fixed_s, each_s = _DEADLINE_S
    patience_s = fixed_s + each_s * devices
    return Scenario(
        name=f"crowd-{devices}",
        task=ScenarioTask(name=SYNTHETIC_TASK),
        fleet=FleetSettings(devices=devices, engine="synthetic", synthetic_values=settings.values),
        aggregators=AggregatorFleet(count=settings.n),
        brokers=BrokerSettings(kind=settings.broker),
        rounds=RoundSettings(
            count=settings.rounds + 2,  # stopped in the last one: at its end the coordinator would be gone
            cohort=devices,
            deadline_s=patience_s,
            sum_timeout_s=patience_s,
            wait_for_devices_s=patience_s,
        ),
        sharing=SharingSettings(threshold=settings.k),
        pruning=PruningSettings(rungs=(1.0,), target_density=1.0),
    )


@dataclass
class _Watch:
    """The processes of each role, and the CPU seconds they had used at the end of each round."""

    pids: Mapping[str, Sequence[int]]
    cpu_s: list[dict[str, float]] = field(default_factory=list)

    def note(self) -> None:
        """A round has ended."""
        self.cpu_s.append({role: sum(map(_cpu_s, pids)) for role, pids in self.pids.items()})

    def cost(self, role: str, devices: int) -> RoleCost:
        """What the role has cost so far, a round and device."""
        rounds = [after[role] - before[role] for before, after in pairwise(self.cpu_s)]
        peaks = [_peak_rss_bytes(pid) / _MIB for pid in self.pids[role]]
        cpu_s = statistics.median(rounds)
        return RoleCost(
            processes=len(peaks),
            cpu_s=round(cpu_s, 3),
            cpu_s_per_device=round(cpu_s / devices, 6),
            peak_rss_mib=round(sum(peaks), 1),
            largest_rss_mib=round(max(peaks), 1),
            pss_mib=round(sum(_pss_bytes(pid) / _MIB for pid in self.pids[role]), 1),
        )


def measure_crowd(devices: int, settings: CrowdSettings, folder: Path, say: Callable[[str], None]) -> Crowd:
    """Run a fleet of so many devices in a new folder and measure it. Raises `RunError` where it comes to no end."""
    scenario, last = scenario_of(devices, settings), settings.rounds + 1
    rounds, started = scenario.rounds, time.monotonic()
    patience_s = rounds.wait_for_devices_s + rounds.deadline_s + rounds.sum_timeout_s + 60.0
    say(f"{devices} devices: keys and brokers")
    with Fleet(scenario, folder, seed=1) as fleet:
        say(f"{devices} devices: connecting ({time.monotonic() - started:.0f} s)")
        watch = _Watch(_start(fleet))
        for number in range(1, last + 1):
            fleet.wait_for(partial(_is_over, fleet, number), patience_s, f"round {number}")
            watch.note()
            line = fleet.rounds()[number - 1]
            say(
                f"{devices} devices: round {number} of {last} {line.phase}, {line.seconds['total']:.1f} s {line.reason}"
            )
        costs = {role: watch.cost(role, devices) for role in ROLES}
        done = fleet.rounds()[1:last]
    ledgers = read_ledgers({ident: fleet.folder.ledger(ident) for ident in fleet.devices})
    return _crowd(scenario, done, costs, [line for lines in ledgers.values() for line in lines])


def _start(fleet: Fleet) -> dict[str, tuple[int, ...]]:
    """Start everything; the processes of each role."""
    aggregators = tuple(fleet.start_aggregator(ident) for ident in fleet.aggregators)
    coordinator = fleet.start_coordinator()
    hosts = tuple(dict.fromkeys(fleet.start_device(ident) for ident in fleet.devices))
    brokers = tuple(broker.pid for broker in fleet.brokers.values())
    return dict(zip(ROLES, (hosts, brokers, aggregators, (coordinator,)), strict=True))


def _is_over(fleet: Fleet, number: int) -> bool:
    if (code := fleet.coordinator_exit()) is not None:
        raise RunError(f"the coordinator ended with code {code} in round {number}:\n{fleet.log_tail(COORDINATOR)}")
    return len(fleet.rounds()) >= number


def _crowd(
    scenario: Scenario, done: Sequence[CoordinatorRound], costs: dict[str, RoleCost], ledger: Sequence[DeviceRound]
) -> Crowd:
    devices, numbers = scenario.fleet.devices, {line.round for line in done}
    entries = [entry for entry in ledger if entry.round in numbers]
    phases = dict.fromkeys(name for line in done for name in line.seconds if name != "total")
    return Crowd(
        devices=devices,
        values=scenario.fleet.synthetic_values,
        n=scenario.aggregators.count,
        k=scenario.sharing.threshold,
        broker=scenario.brokers.kind,
        rounds_applied=sum(line.phase == "APPLIED" for line in done),
        rounds_failed=sum(line.phase != "APPLIED" for line in done),
        contributors=min(line.contributors for line in done),
        verified=all(line.verified for line in done),
        round_s=statistics.median(line.seconds["total"] for line in done),
        phase_s={name: statistics.median(line.seconds.get(name, 0.0) for line in done) for name in phases},
        cpu_s_per_device=round(sum(cost.cpu_s_per_device for cost in costs.values()), 6),
        roles=costs,
        up_bytes=_mean_bytes([msgspec.structs.asdict(entry.up) for entry in entries], devices * len(done)),
        down_bytes=_mean_bytes([msgspec.structs.asdict(entry.down) for entry in entries], devices * len(done)),
    )


def _mean_bytes(entries: Sequence[Mapping[str, int]], count: int) -> dict[str, float]:
    causes = entries[0] if entries else {}
    return {cause: round(sum(entry[cause] for entry in entries) / count, 1) for cause in causes}


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _peak_rss_bytes(pid: int) -> int:
    """The kernel's high-water mark; what it is now where the kernel keeps none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _pss_bytes(pid: int) -> int:
    found = psutil.Process(pid).memory_full_info()
    return int(getattr(found, "pss", found.rss))


# --------------------------------------------------------------------------- as text


def table(crowds: Sequence[Crowd]) -> str:
    """The figures as Markdown: a round's seconds, CPU and bytes of a device, memory (of aggregators the largest)."""
    lines = [
        "| devices | seconds | CPU ms | devices | brokers | aggregators | coordinator | up kB | down kB "
        "| devices MiB | brokers MiB | aggregator MiB | coordinator MiB | rounds |",
        "|" + "---:|" * 13 + "---|",
    ]
    for one in crowds:
        cpu = [f"{1000 * one.roles[role].cpu_s_per_device:.2f}" for role in ROLES]
        memory = [one.roles["devices"].pss_mib, one.roles["brokers"].peak_rss_mib]
        memory += [one.roles["aggregators"].largest_rss_mib, one.roles["coordinator"].peak_rss_mib]
        outcome = f"{one.rounds_applied} applied" + (f", {one.rounds_failed} failed" if one.rounds_failed else "")
        cells = [
            f"{one.devices}", f"{one.round_s:.1f}", f"{1000 * one.cpu_s_per_device:.2f}", *cpu,
            f"{sum(one.up_bytes.values()) / 1000:.1f}", f"{sum(one.down_bytes.values()) / 1000:.1f}",
            *(f"{mib:.0f}" for mib in memory), outcome,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def growth(crowds: Sequence[Crowd]) -> str:
    """CPU seconds a device at each size as a multiple of those at the smallest."""
    first = min(crowds, key=lambda one: one.devices)
    parts = [
        f"{one.devices}: {one.cpu_s_per_device / first.cpu_s_per_device:.2f}" for one in crowds if one is not first
    ]
    return f"CPU seconds a device, as a multiple of those at {first.devices} devices: {', '.join(parts)}"
