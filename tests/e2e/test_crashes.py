"""SIGKILL of every role in mid-round, over real brokers and processes (docs/protocol.md §9).

A round is held open by pausing (SIGSTOP) somebody it waits for, so that the blow falls where it is meant to.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from e2e.fleets import begun_rounds, coordinator_rows, paused, query, small_fleet, start, upload_id_of

from fedpruneshare.messages import Freeze, decode, digest
from testbed.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(170)]


def plan_of(fleet: Fleet, round_id: int) -> bytes:
    """Body of a round's plan."""
    return bytes(coordinator_rows(fleet, "SELECT plan FROM rounds WHERE round_id = ?", round_id)[0][0])


def freeze_of(fleet: Fleet, round_id: int) -> Freeze:
    """The Freeze of a round."""
    freeze = decode("freeze", coordinator_rows(fleet, "SELECT freeze FROM rounds WHERE round_id = ?", round_id)[0][0])
    assert isinstance(freeze, Freeze)
    return freeze


def complete_uploads(fleet: Fleet, aggregator: str, round_id: int) -> int:
    """How many uploads an aggregator has started to store."""
    path = fleet.folder.store(aggregator) / "shares.sqlite"
    rows = query(path, "SELECT COUNT(*) FROM uploads WHERE round_id = ?", round_id) if path.exists() else []
    return int(rows[0][0]) if rows else 0


def phases(fleet: Fleet) -> list[tuple[int, str]]:
    return [(line.round, line.phase) for line in fleet.rounds()]


@pytest.mark.parametrize("with_broker", [False, True], ids=["broker alive", "broker killed too"])
def test_one_aggregator_of_three_killed_in_a_round(tmp_path: Path, with_broker: bool) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=4", "rounds.deadline_s=60") as fleet:
        pids = start(fleet)
        with paused(pids["device-00"]):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-2", 1) >= 4, 60, "uploads of round 1")
            fleet.kill_aggregator("aggregator-2")
            if with_broker:
                fleet.kill_broker("aggregator-2")
        fleet.wait_for(lambda: len(fleet.rounds()) >= 2, 60, "two rounds without one aggregator")
        if with_broker:
            fleet.start_broker("aggregator-2")
        fleet.start_aggregator("aggregator-2")
        assert fleet.wait_done(90) == 0
        rounds = fleet.rounds()
        assert phases(fleet) == [(1, "APPLIED"), (2, "APPLIED"), (3, "APPLIED"), (4, "APPLIED")]
        assert [line.contributors for line in rounds] == [8, 8, 8, 8]
        assert [line.verified for line in rounds[:2]] == [False, False]
        assert rounds[0].aggregators == ("aggregator-1", "aggregator-3")
        assert rounds[3].verified


def test_a_device_killed_before_its_upload_is_left_out(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=5") as fleet:
        pids = start(fleet)
        os.kill(pids["device-03"], signal.SIGSTOP)
        fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 7, 60, "the others' uploads")
        fleet.kill_device("device-03")
        assert fleet.wait_done(60) == 0
        assert [line.contributors for line in fleet.rounds()] == [7, 7]
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}
        assert "device-03" not in {c.device_id for c in freeze_of(fleet, 1).contributors}


def test_a_device_killed_in_mid_upload_resumes_and_is_counted_once(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=60") as fleet:
        pids = start(fleet)
        fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 60, "the first plan")
        # Two of three brokers take nothing: no upload can be complete where it counts.
        with paused(pids["broker-aggregator-1"], pids["broker-aggregator-2"]):
            plan = digest(plan_of(fleet, 1))
            before = fleet.wait_for(lambda: upload_id_of(fleet, "device-05", plan), 60, "an upload in the outbox")
            fleet.kill_device("device-05")
        fleet.start_device("device-05")
        assert fleet.wait_done(90) == 0
        assert [line.contributors for line in fleet.rounds()] == [8, 8]
        mine = [c for c in freeze_of(fleet, 1).contributors if c.device_id == "device-05"]
        assert [c.upload_id for c in mine] == [before]
        statuses = [line for line in (fleet.folder.store("device-05") / "ledger.jsonl").read_text().splitlines()]
        assert any('"status": "killed"' in line for line in statuses)


def test_a_device_killed_after_its_receipts_is_counted(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=5") as fleet:
        pids = start(fleet)
        with paused(pids["device-00"]):
            ledger = fleet.folder.store("device-01") / "ledger.jsonl"
            fleet.wait_for(lambda: ledger.exists() and '"uploaded"' in ledger.read_text(), 60, "all its receipts")
            fleet.kill_device("device-01")
        assert fleet.wait_done(60) == 0
        assert [line.contributors for line in fleet.rounds()] == [8, 7]
        assert {line.phase for line in fleet.rounds()} == {"APPLIED"}


def test_the_coordinator_killed_while_collecting(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=60") as fleet:
        pids = start(fleet)
        with paused(pids["device-00"]):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 4, 60, "uploads of round 1")
            plan = plan_of(fleet, 1)
            fleet.kill_coordinator()
        fleet.start_coordinator()
        assert fleet.wait_done(90) == 0
        assert phases(fleet) == [(1, "APPLIED"), (2, "APPLIED"), (3, "APPLIED")]
        assert [line.contributors for line in fleet.rounds()] == [8, 8, 8]
        assert plan_of(fleet, 1) == plan


def test_the_coordinator_killed_between_freeze_and_sums(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=60") as fleet:
        pids = start(fleet)
        frozen = "SELECT freeze FROM rounds WHERE freeze IS NOT NULL AND outcome IS NULL"
        while not (rows := coordinator_rows(fleet, frozen)):  # asked without a pause: the window is a few milliseconds
            assert fleet.coordinator_exit() is None, "every round was over before it could be caught"
        os.kill(pids["coordinator"], signal.SIGKILL)
        fleet.kill_coordinator()
        freeze = rows[0][0]
        assert coordinator_rows(fleet, frozen) == [(freeze,)], "killed too late to be between Freeze and sums"
        fleet.start_coordinator()
        assert fleet.wait_done(90) == 0
        assert phases(fleet) == [(1, "APPLIED"), (2, "APPLIED"), (3, "APPLIED")]
        decoded = decode("freeze", freeze)
        assert isinstance(decoded, Freeze)
        assert freeze_of(fleet, decoded.round_id) == decoded


def test_all_brokers_restarted_between_rounds(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=60") as fleet:
        pids = start(fleet)
        with paused(pids["device-00"]):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 4, 60, "uploads of round 1")
            for name in fleet.brokers:
                fleet.restart_broker(name)
        assert fleet.wait_done(100) == 0
        assert phases(fleet) == [(1, "APPLIED"), (2, "APPLIED"), (3, "APPLIED")]
        assert [line.contributors for line in fleet.rounds()] == [8, 8, 8]
