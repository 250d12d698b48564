"""F08: a disk of 2 MB that is full, then has room again: under each store, the outboxes and the brokers.

Nobody ends, nothing is half written, nothing receipted is lost; once there is room everybody takes part again by
himself, and every database is whole. Mounting takes root: without it these tests are skipped.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from faults.harness import await_rounds, judge, mosquitto_with, real_fleet, synthetic_fleet, wait

from testbed.faults.disks import fill, give_room, small_disks, why_no_disks
from testbed.faults.fleet import FaultFleet
from testbed.federation import COORDINATOR
from testbed.ledger.rounds import CoordinatorRound

QUICK = ("rounds.deadline_s=3", "rounds.grace_s=0.5", "rounds.sum_timeout_s=3")


_REASON = why_no_disks()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("quick_links"),
    pytest.mark.timeout(170),
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
]


def is_whole(database: Path) -> bool:
    """Whether SQLite finds nothing wrong."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def last_round(fleet: FaultFleet) -> CoordinatorRound:
    return fleet.rounds()[-1]


def fill_all(fleet: FaultFleet, disks: list[Path]) -> None:
    for disk in disks:
        fleet.note("fault", what=f"disk of {disk.name} full")
        assert fill(disk) > 0


def await_everybody(fleet: FaultFleet) -> None:
    """Wait for a round that was begun just now or later and has all devices and all sums."""
    begun = time.time()

    def found() -> bool:
        line = last_round(fleet)
        is_full = line.contributors == len(fleet.devices) and len(line.aggregators) == len(fleet.aggregators)
        return line.started_at >= begun and line.phase == "APPLIED" and is_full

    wait(fleet, found, "a round with everybody")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_full_aggregators(tmp_path: Path, count: int) -> None:
    """One of three is not missed; with fewer than k left, rounds are FAILED until there is room."""
    with synthetic_fleet(tmp_path / "run", *QUICK) as fleet:
        stores = [fleet.folder.store(ident) for ident in fleet.aggregators[:count]]
        with small_disks(*stores):
            fleet.start()
            await_rounds(fleet, 2)
            fill_all(fleet, stores)
            await_rounds(fleet, 3)
            line = last_round(fleet)
            assert line.phase == ("APPLIED" if count == 1 else "FAILED"), line
            assert line.reason or count == 1
            assert not line.aggregators or fleet.aggregators[0] not in line.aggregators
            for store in stores:
                give_room(store)
            await_everybody(fleet)
            judge(fleet)
            assert all(is_whole(store / "shares.sqlite") for store in stores)
            fleet.stop()


def test_a_full_coordinator(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run", *QUICK) as fleet:
        store = fleet.folder.store(COORDINATOR)
        with small_disks(store):
            fleet.start()
            for _ in range(3):
                await_rounds(fleet, 2)
                fleet.note("fault", what="disk of the coordinator full")
                assert fill(store) > 0
                time.sleep(1.5)  # the fault itself: it may not be able to write down what it does
                give_room(store)
                await_everybody(fleet)
            judge(fleet)
            assert is_whole(store / "rounds.sqlite")
            assert "store-waits" in (fleet.folder.logs / f"{COORDINATOR}.log").read_text()
            fleet.stop()


@pytest.mark.parametrize("folder", ["store", "outbox"])
def test_a_full_device(tmp_path: Path, folder: str) -> None:
    """It declines, or is silent, and is counted again as soon as there is room."""
    with real_fleet(tmp_path / "run", *QUICK) as fleet:
        store = fleet.folder.store("device-03")
        disk = store if folder == "store" else store / "outbox"
        disk.mkdir(exist_ok=True)
        with small_disks(disk):
            fleet.start()
            await_rounds(fleet, 2)
            fleet.note("fault", what=f"disk of the {folder} of device-03 full")
            assert fill(disk) > 0
            await_rounds(fleet, 3)
            line = last_round(fleet)
            assert (line.phase, line.contributors) == ("APPLIED", len(fleet.devices) - 1), line
            give_room(disk)
            await_everybody(fleet)
            judge(fleet)
            fleet.stop()


@pytest.mark.mosquitto
@pytest.mark.parametrize("names", [("control",), ("aggregator-2",), ("aggregator-1", "aggregator-2", "aggregator-3")])
def test_full_brokers(tmp_path: Path, names: tuple[str, ...]) -> None:
    """What a broker cannot write down is sent again by those who need it.

    As they ship brokers of aggregators write nothing: these are set to write at every change.
    """
    is_shipped = names == ("control",)
    kind = ('brokers.kind="mosquitto"', "brokers.tls=true") if is_shipped else ()
    make = None if is_shipped else mosquitto_with("persistence true", "autosave_on_changes true", "autosave_interval 1")
    fleet = synthetic_fleet(tmp_path / "run", *QUICK, *kind, own_broker=make)
    fleet.folder.create()
    disks = [fleet.folder.state / f"broker-{name}" for name in names]
    for disk in disks:
        disk.mkdir()
    with small_disks(*disks), fleet:
        fleet.start()
        await_rounds(fleet, 2)
        fill_all(fleet, disks)
        await_rounds(fleet, 3)
        assert last_round(fleet).phase == "APPLIED"
        for disk in disks:
            give_room(disk)
        await_everybody(fleet)
        judge(fleet)
