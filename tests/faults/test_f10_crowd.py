"""F10: five hundred devices with mutual TLS whose uploads reach three brokers as they ship in the same instant.

The brokers are stopped while the devices work: what they send waits in their sockets, all of it, until the brokers go
on. What is measured is the time from there to the end of the round.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from faults.harness import decided, judge, wait

from testbed.faults.fleet import FaultFleet
from testbed.federation import COORDINATOR
from testbed.scenario import load_scenario

pytestmark = [pytest.mark.faults, pytest.mark.mosquitto, pytest.mark.timeout(400)]
DEVICES, VALUES, ROUNDS = 500, 5_000, 2
#: What lies at a stopped broker's door once a device has sent: a share of 20 kB, or the seed of one, sealed and signed.
SHARE_BYTES, SEED_BYTES = 20_000, 600
ROUND_S, AGGREGATOR_MIB = 20.0, 300


def crowd_fleet(folder: Path, *overrides: str) -> FaultFleet:
    """Four processes hold the devices; everything else is as for a fleet of five."""
    sizes = (f"fleet.devices={DEVICES}", f"rounds.cohort={DEVICES}", f"rounds.min_devices={DEVICES // 2}")
    synthetic = (f"fleet.synthetic_values={VALUES}", f"fleet.synthetic_per_process={DEVICES // 4}")
    brokers = ('brokers.kind="mosquitto"', "brokers.tls=true")
    scenario = load_scenario("thousand-devices", [*sizes, *synthetic, *brokers, "rounds.count=1000", *overrides])
    return FaultFleet(scenario, folder, seed=1, is_proxied=False)


def sockets(port: int) -> list[int]:
    """Bytes that wait unread at each connection of this machine to a listener on loopback (Linux)."""
    local = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].partition(":")[2], 16) for row in rows if row[1] == local and row[3] == "01"]


def have_all_sent(ports: list[int]) -> bool:
    """Whether every upload is at every door; k - 1 aggregators, one here, get seeds (docs/protocol.md §5.4)."""
    waiting = [sockets(port) for port in ports]
    seeds = all(sum(size >= SEED_BYTES for size in sizes) >= DEVICES for sizes in waiting)
    return seeds and sum(sum(size >= SHARE_BYTES for size in sizes) for sizes in waiting) >= 2 * DEVICES


def seldom(condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, looked at five times a second: the kernel's list of connections is long."""
    due = [0.0]

    def look() -> bool:
        if time.monotonic() < due[0]:
            return False
        due[0] = time.monotonic() + 0.2
        return condition()

    return look


def most_mib(pid: int) -> float:
    """The most memory a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Stopwatch:
    """Seconds since its making, less what processes that are not of the fleet took of this machine meanwhile."""

    def __init__(self, fleet: FaultFleet) -> None:
        self._pids = {*fleet.pids.values(), *(broker.pid for broker in fleet.brokers.values()), os.getpid()}
        self._started = time.monotonic(), self._others()

    def _others(self) -> float:
        times = psutil.cpu_times()
        ours = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self._pids)
        return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - ours

    def read(self) -> tuple[float, float]:
        """(seconds that passed, seconds had the machine been the fleet's alone)."""
        started, others = self._started
        passed_s = time.monotonic() - started
        return passed_s, passed_s - (self._others() - others) / (os.cpu_count() or 1)


def hold_round(fleet: FaultFleet, brokers: list[int], ports: list[int]) -> tuple[float, float]:
    """Hold the uploads of the round that comes next until every device has sent them; what it took from there."""
    fleet.await_stop(COORDINATOR, 60)  # the plan is signed, and nobody has it
    before = decided(fleet)
    for pid in brokers:
        os.kill(pid, signal.SIGSTOP)
    fleet.resume(COORDINATOR)
    wait(fleet, seldom(lambda: have_all_sent(ports)), "every upload at every broker's door", 120)
    fleet.arm(COORDINATOR, "coordinator.round-persisted.after", 1, signal.SIGSTOP)
    watch = Stopwatch(fleet)
    for pid in brokers:
        os.kill(pid, signal.SIGCONT)
    wait(fleet, lambda: decided(fleet) > before, "the end of the round", 120)
    return watch.read()


def test_five_hundred_devices_upload_in_the_same_instant(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with crowd_fleet(tmp_path / "run") as fleet:
        for ident in fleet.aggregators:
            fleet.start_aggregator(ident)
        for device in fleet.devices:
            fleet.start_device(device)
        brokers = [fleet.brokers[ident].pid for ident in fleet.aggregators]
        ports = [fleet.brokers[ident].address.port for ident in fleet.aggregators]
        connected = seldom(lambda: all(len(sockets(port)) == DEVICES + 1 for port in ports))
        wait(fleet, connected, "all connections", 120)
        fleet.arm(COORDINATOR, "coordinator.round-persisted.after", 1, signal.SIGSTOP)
        fleet.start_coordinator()
        took = [hold_round(fleet, brokers, ports) for _ in range(ROUNDS)]
        peaks_mib = [most_mib(fleet.pids[ident]) for ident in fleet.aggregators]
        fleet.await_stop(COORDINATOR, 60)
        passed_s, own_s = zip(*took, strict=True)
        record_property("round_s", [round(value, 1) for value in passed_s])
        record_property("round_alone_s", [round(value, 1) for value in own_s])
        record_property("aggregator_mib", [round(value) for value in peaks_mib])
        record_property("broker_mib", [round(most_mib(pid)) for pid in brokers])
        mib = f"aggregators {peaks_mib} MiB, brokers {[most_mib(pid) for pid in brokers]} MiB"
        print(f"rounds took {passed_s} s, alone {own_s} s; {mib}")
        lines = fleet.rounds()[:ROUNDS]
        assert [(line.phase, line.contributors, line.verified) for line in lines] == [
            ("APPLIED", DEVICES, True)
        ] * ROUNDS
        judge(fleet)
        assert max(own_s) <= ROUND_S
        assert max(peaks_mib) < AGGREGATOR_MIB
