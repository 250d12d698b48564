"""Brokers that move by a new directory: everybody follows, no process is started anew, and no round hangs.

The old broker is ended for good once all have left it, or before anybody knows of the new one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from faults.harness import await_rounds, decided, judge, phases, synthetic_fleet, wait

import testbed.federation
from fedpruneshare.directory import Directory, write_directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.sealing import Identity
from testbed.faults.fleet import FaultFleet
from testbed.federation import CONTROL, COORDINATOR

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("quick_links"), pytest.mark.timeout(120)]
OWN = "aggregator-2"


class Root:
    """The root of a fleet, which it otherwise throws away."""

    def __init__(self, fleet: FaultFleet, keys: list[Identity]) -> None:
        self._fleet, self._keys = fleet, keys
        self._directory: Directory | None = None

    def new_broker(self, name: str) -> BrokerAddress:
        """Another broker in place of one of the fleet's, which goes on."""
        broker = self._fleet.brokers[f"{name}-moved"] = self._fleet._new_broker(f"{name}-moved")
        broker.start()
        return broker.address

    def move(self, name: str, address: BrokerAddress) -> int:
        """Sign a directory that has a broker elsewhere, and hand it to the coordinator alone; its version."""
        at, known = msgspec.structs.replace, self._directory or self._fleet.directory
        assert known is not None
        place = {"host": address.host, "port": address.port}
        if name == CONTROL:
            known = at(known, coordinator=at(known.coordinator, **place))
        else:
            known = at(known, aggregators={**known.aggregators, name: at(known.aggregators[name], **place)})
        self._directory = known = at(known, version=known.version + 1)
        write_directory(self._fleet.folder.directory, known, self._keys[0])
        os.kill(self._fleet.pids[COORDINATOR], signal.SIGHUP)
        return known.version

    def await_moves(self, version: int, parties: int) -> None:
        """Wait until so many have gone over by this directory."""

        def moved() -> int:
            logs = "".join(path.read_text() for path in self._fleet.folder.logs.glob("*.log"))
            return sum("brokers-moved" in line and f"directory={version}" in line for line in logs.splitlines())

        wait(self._fleet, lambda: moved() >= parties, f"{parties} moves by directory {version}")
        assert moved() == parties


@contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Iterator[tuple[FaultFleet, Root]]:
    keys: list[Identity] = []

    def keeping(path: Path, directory: Directory, root: Identity) -> None:
        keys.append(root)
        write_directory(path, directory, root)

    monkeypatch.setattr(testbed.federation, "write_directory", keeping)
    with synthetic_fleet(folder, *overrides) as fleet:
        fleet.start()
        await_rounds(fleet)
        yield fleet, Root(fleet, keys)
        assert not fleet.lost()
        judge(fleet)


def await_whole_rounds(fleet: FaultFleet) -> None:
    """Wait for rounds with every device and every aggregator; the one that is open now may lack some."""
    before = decided(fleet)
    await_rounds(fleet, 3)
    later = fleet.rounds()[before + 1 :]
    assert {line.phase for line in later} == {"APPLIED"}
    assert {line.contributors for line in later} == {len(fleet.devices)}
    assert {len(line.aggregators) for line in later} == {len(fleet.aggregators)}


def test_everybody_follows_a_broker_and_no_round_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker of an aggregator, then that of the coordinator; the old ones are ended for good."""
    patient = ("rounds.deadline_s=60", "rounds.grace_s=20")  # a crowded machine leaves nobody out of a round
    with running(tmp_path / "run", monkeypatch, *patient) as (fleet, root):
        for name, services in ((OWN, 1), (CONTROL, 1 + len(fleet.aggregators))):
            version = root.move(name, root.new_broker(name))
            root.await_moves(version, services + len(fleet.devices))
            fleet.kill_broker(name)
            await_whole_rounds(fleet)
        assert set(phases(fleet)) == {"APPLIED"}


def test_an_aggregator_whose_broker_is_gone_is_back_with_the_directory_that_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "run", monkeypatch, "rounds.grace_s=3") as (fleet, root):
        fleet.kill_broker(OWN)
        await_rounds(fleet)
        root.await_moves(root.move(OWN, root.new_broker(OWN)), 1 + len(fleet.devices))
        await_whole_rounds(fleet)
