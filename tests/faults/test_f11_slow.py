"""F11: slow consumers, full queues, thin uplinks, half-open connections, slow-loris, floods: nothing is lost silently.

Whatever is receipted is in a sum or its round FAILED with a reason, and nobody's memory grows with what it cannot send.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from e2e.fleets import paused
from faults.harness import await_rounds, decision, judge, mosquitto_with, newest_round, synthetic_fleet

from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from fedpruneshare.topics import Topics
from testbed.faults.fleet import FaultFleet
from testbed.federation import CONTROL, FEDERATION

pytestmark = [pytest.mark.faults, pytest.mark.timeout(170)]

#: What a process may grow by while a case lasts.
_GROWTH_MIB = 64.0
#: Uploads of many chunks: 20,000 values are some forty of 1 KiB to each aggregator.
MANY_CHUNKS = ("fleet.synthetic_values=20000", "coding.chunk_bytes=1024", "rounds.deadline_s=20")


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


@contextmanager
def flat_memory(fleet: FaultFleet) -> Iterator[None]:
    """Check that no process of the fleet has grown by more than it may when the block is over."""
    pids = {**fleet.pids, **{f"broker-{name}": broker.pid for name, broker in fleet.brokers.items()}}
    before = {name: rss_mib(pid) for name, pid in pids.items()}
    yield
    fleet.note_memory()
    for name, pid in pids.items():
        grown = rss_mib(pid) - before[name]
        assert grown < _GROWTH_MIB, f"{name} grew by {grown:.1f} MiB"


@contextmanager
def running_one_tenth(pid: int) -> Iterator[None]:
    """Let a process run for a tenth of the time only."""
    over = threading.Event()

    def brake() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.045)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.005)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def test_an_aggregator_ten_times_slower(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run") as fleet:
        fleet.start()
        await_rounds(fleet)
        with flat_memory(fleet), running_one_tenth(fleet.pids["aggregator-2"]):
            await_rounds(fleet, 6)
        await_rounds(fleet)
        judge(fleet)
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}


@pytest.mark.mosquitto
def test_a_broker_that_drops_what_it_cannot_queue(tmp_path: Path) -> None:
    make = mosquitto_with("max_queued_messages 50", "max_inflight_messages 5", "persistence false")
    with synthetic_fleet(tmp_path / "run", *MANY_CHUNKS, own_broker=make) as fleet:
        fleet.start()
        await_rounds(fleet)
        fleet.arm("aggregator-1", "aggregator.chunk-received", 3, signal.SIGSTOP)
        with flat_memory(fleet):
            fleet.await_stop("aggregator-1")
            struck = newest_round(fleet)
            wait_for_queue(fleet, "aggregator-1")
            fleet.resume("aggregator-1")
            line = decision(fleet, struck)
        assert line.phase == "APPLIED", line.reason
        assert line.contributors == len(fleet.devices)
        assert len(line.aggregators) == len(fleet.aggregators), "what was dropped was sent again"
        judge(fleet)


def wait_for_queue(fleet: FaultFleet, name: str) -> None:
    """Until devices have sent more to a broker than it queues."""
    proxy = fleet.proxy(name)
    start = proxy.forwarded["up"]
    fleet.wait_for(lambda: proxy.forwarded["up"] - start > 60 * 1200, 20, f"more than {name} can queue")


def test_an_uplink_of_20_kilobytes_a_second(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run", *MANY_CHUNKS) as fleet:
        fleet.start()
        await_rounds(fleet)
        with flat_memory(fleet):
            fleet.proxy("aggregator-1").rate = 20_000.0
            line = decision(fleet, newest_round(fleet) + 1)
            assert line.phase == "APPLIED", line.reason
        assert fleet.proxy("aggregator-1").done["throttled"] > len(fleet.devices)
        fleet.proxy("aggregator-1").heal()
        await_rounds(fleet, 2)
        judge(fleet)


@pytest.mark.usefixtures("quick_links")
@pytest.mark.parametrize("name", [CONTROL, "aggregator-1"])
def test_half_open_connections(tmp_path: Path, name: str) -> None:
    with synthetic_fleet(tmp_path / "run") as fleet:
        fleet.start()
        await_rounds(fleet)
        with flat_memory(fleet):
            for _ in range(2):
                fleet.proxy(name).half_open()
                await_rounds(fleet, 3)
        assert fleet.proxy(name).done["silenced"] >= 2 * len(fleet.devices)
        judge(fleet)


def test_a_broker_that_stands_still_for_a_while(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run") as fleet:
        fleet.start()
        await_rounds(fleet)
        for name in (CONTROL, "aggregator-3"):
            with flat_memory(fleet), paused(fleet.brokers[name].pid):
                time.sleep(1.5)  # the fault itself, not a wait for something
            await_rounds(fleet, 2)
        judge(fleet)
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}


def test_slow_loris(tmp_path: Path) -> None:
    """Hundreds of connections that never end their first packet."""
    with synthetic_fleet(tmp_path / "run") as fleet:
        fleet.start()
        await_rounds(fleet)
        with ExitStack() as connections, flat_memory(fleet):
            for name in fleet.brokers:
                target = fleet.proxy(name).target
                for _ in range(150):
                    connection = socket.create_connection((target.host, target.port), timeout=5.0)
                    connections.enter_context(connection).sendall(b"\x10")
            await_rounds(fleet, 8)
        await_rounds(fleet)
        judge(fleet)
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}


async def _flood(address: BrokerAddress, topic: str, count: int) -> None:
    link = open_link(address, "flood", LinkSettings())
    await link.connect()
    for number in range(count):
        await link.publish(topic, number.to_bytes(4, "big") * 25_000)
    await link.close()


def test_a_flood_of_noise_on_one_device_s_topic(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run") as fleet:
        fleet.start()
        await_rounds(fleet)
        topic = Topics(FEDERATION).name("up", "device-00")
        with flat_memory(fleet):
            asyncio.run(_flood(fleet.proxy("aggregator-1").target, topic, 300))
            await_rounds(fleet, 3)
        judge(fleet)
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}
