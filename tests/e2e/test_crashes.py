"""SIGKILL of every role in mid-round, over real brokers and processes (docs/protocol.md §9).

A round is held open by pausing (SIGSTOP) somebody it waits for, so that the blow falls where it is meant to:

- `held`: one device of the cohort says nothing, so the round collects until it is let go;
- paused brokers: what a device sends them stays in their sockets, a few chunks of each share at most, so its upload
  is under way and cannot end;
- a paused coordinator reads no attendance, paused aggregators no Freeze: so the round stands between any two steps.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e.fleets import (
    at,
    complete_uploads,
    coordinator_rows,
    hearing_attendances,
    held,
    paused,
    query,
    small_fleet,
    start,
    upload_id_of,
)

from fedpruneshare.messages import Freeze, RoundPlan, decode, digest
from testbed.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def plan_of(fleet: Fleet, round_id: int) -> bytes:
    """Body of a round's plan."""
    return bytes(coordinator_rows(fleet, "SELECT plan FROM rounds WHERE round_id = ?", round_id)[0][0])


def cohort_of(fleet: Fleet, round_id: int) -> tuple[str, ...]:
    plan = decode("round-plan", plan_of(fleet, round_id))
    assert isinstance(plan, RoundPlan)
    return plan.cohort


def freeze_of(fleet: Fleet, round_id: int) -> Freeze:
    """The Freeze of a round."""
    freeze = decode("freeze", coordinator_rows(fleet, "SELECT freeze FROM rounds WHERE round_id = ?", round_id)[0][0])
    assert isinstance(freeze, Freeze)
    return freeze


def part_stored(fleet: Fleet, aggregator: str, device: str) -> tuple[int, int] | None:
    """Chunks an aggregator holds of a device's upload in round 1, of how many."""
    path = fleet.folder.store(aggregator) / "shares.sqlite"
    uploads = query(path, "SELECT upload_id, chunks FROM uploads WHERE round_id = 1 AND device_id = ?", device)
    if not uploads:
        return None
    stored = at(fleet, aggregator, "SELECT COUNT(*) FROM chunks WHERE upload_id = ?", uploads[0][0])
    return stored, int(uploads[0][1])


def unread_bytes(port: int) -> int:
    """What lies in the sockets of a local port and has not been read by its process."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(fields[4].split(":")[1], 16) for fields in connections if int(fields[1].split(":")[1], 16) == port)


def phases(fleet: Fleet) -> list[tuple[int, str]]:
    return [(line.round, line.phase) for line in fleet.rounds()]


def applied(count: int) -> list[tuple[int, str]]:
    return [(number, "APPLIED") for number in range(1, count + 1)]


# --------------------------------------------------------------------------- aggregators


def uploads_back(fleet: Fleet) -> int:
    """The most uploads that aggregator-2 holds whole of a round after the second."""
    return max(complete_uploads(fleet, "aggregator-2", number) for number in (3, 4, 5))


@pytest.mark.parametrize(
    ("kind", "with_broker"),
    [
        pytest.param("embedded", False, id="broker alive"),
        pytest.param("embedded", True, id="broker killed too"),
        pytest.param("mosquitto", False, id="mosquitto alive", marks=pytest.mark.mosquitto),
        pytest.param("mosquitto", True, id="mosquitto killed too", marks=pytest.mark.mosquitto),
    ],
)
def test_one_aggregator_of_three_killed_in_a_round(tmp_path: Path, kind: str, with_broker: bool) -> None:
    as_shipped = ["brokers.tls=true"] if kind == "mosquitto" else []
    sets = ("rounds.count=5", "rounds.deadline_s=300", "rounds.grace_s=1.5", f"brokers.kind={kind!r}", *as_shipped)
    with small_fleet(tmp_path / "run", *sets) as fleet:
        with held(fleet) as pids:
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-2", 1) >= 4, 200, "uploads of round 1")
            fleet.kill_aggregator("aggregator-2")
            if with_broker:
                fleet.kill_broker("aggregator-2")
        fleet.wait_for(lambda: len(fleet.rounds()) >= 2, 200, "two rounds without one aggregator")
        with paused(pids["device-00"]):  # so that a round is open when the devices have found the broker again
            if with_broker:
                fleet.start_broker("aggregator-2")
            fleet.start_aggregator("aggregator-2")
            fleet.wait_for(lambda: uploads_back(fleet) >= 7, 200, "uploads to the aggregator that came back")
        assert fleet.wait_done(250) == 0
        rounds = fleet.rounds()
        assert phases(fleet) == applied(5)
        assert [line.contributors for line in rounds] == [8, 8, 8, 8, 8]
        assert [line.verified_by for line in rounds[:2]] == ["checksum", "checksum"]
        assert rounds[0].aggregators == ("aggregator-1", "aggregator-3")
        assert "consistency+checksum" in {line.verified_by for line in rounds[2:]}  # all three are asked again


# --------------------------------------------------------------------------- devices


def test_a_device_killed_before_its_upload_is_left_out(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=1", "rounds.deadline_s=25") as fleet:
        with held(fleet, "device-03"):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 7, 200, "the others' uploads")
            fleet.kill_device("device-03")
        assert fleet.wait_done(250) == 0
        assert "device-03" in cohort_of(fleet, 1)
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 7)]
        assert "device-03" not in {c.device_id for c in freeze_of(fleet, 1).contributors}


@pytest.mark.parametrize("is_outbox_lost", [False, True], ids=["outbox kept", "outbox lost"])
def test_a_device_killed_in_mid_upload_is_counted_once(tmp_path: Path, is_outbox_lost: bool) -> None:
    victim, outbox = "device-05", tmp_path / "run" / "state" / "device-05" / "outbox"
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=300", "coding.chunk_bytes=1024") as fleet:
        with held(fleet, victim) as pids:
            for name in fleet.aggregators:
                fleet.wait_for(lambda a=name: complete_uploads(fleet, a, 1) == 7, 200, "the others' uploads")
            with paused(*(pids[f"broker-{name}"] for name in fleet.aggregators)):
                os.kill(pids[victim], signal.SIGCONT)
                plan = digest(plan_of(fleet, 1))
                before = fleet.wait_for(lambda: upload_id_of(fleet, victim, plan), 200, "an upload in the outbox")
                for name in fleet.aggregators:  # the first chunks lie before every broker, which cannot take them
                    port = fleet.brokers[name].address.port
                    fleet.wait_for(lambda p=port: unread_bytes(p) > 0, 200, f"chunks on their way to {name}")
                fleet.kill_device(victim)
        parts = [
            fleet.wait_for(lambda a=name: part_stored(fleet, a, victim), 200, "a part") for name in fleet.aggregators
        ]
        assert sum(stored == chunks for stored, chunks in parts) < 2, "complete where it counts: not in mid-upload"
        if is_outbox_lost:
            shutil.rmtree(outbox)
        fleet.start_device(victim)
        assert fleet.wait_done(250) == 0
        assert [(line.phase, line.contributors) for line in fleet.rounds()] == [("APPLIED", 8), ("APPLIED", 8)]
        mine = [c.upload_id for c in freeze_of(fleet, 1).contributors if c.device_id == victim]
        assert len(mine) == 1
        assert (mine == [before]) is not is_outbox_lost
        entries = [json.loads(line) for line in fleet.folder.ledger(victim).read_text().splitlines()]
        assert [e["status"] for e in entries if e["round"] == 1] == ["killed", "uploaded"]
        if not is_outbox_lost:  # resumed, not begun again: only what is missing, and two or more questions to each
            whole = next(e["up"]["shares"] for e in entries if e["round"] == 2)
            again = next(e["up"] for e in entries if e["round"] == 1 and e["status"] == "uploaded")
            assert again["shares"] == 0
            assert whole - 3 * 4 * 1300 < again["resent"] < 1.5 * whole


def test_a_device_killed_after_its_receipts_is_counted(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=25") as fleet:
        with held(fleet):
            ledger = fleet.folder.ledger("device-01")
            fleet.wait_for(lambda: ledger.exists() and '"uploaded"' in ledger.read_text(), 200, "all its receipts")
            fleet.kill_device("device-01")
        assert fleet.wait_done(250) == 0
        assert phases(fleet) == applied(2)
        assert [line.contributors for line in fleet.rounds()] == [8, 7]


# --------------------------------------------------------------------------- the coordinator


def test_the_coordinator_killed_while_collecting(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=300") as fleet:
        with held(fleet):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 4, 200, "uploads of round 1")
            plan = plan_of(fleet, 1)
            fleet.kill_coordinator()
        fleet.start_coordinator()
        assert fleet.wait_done(250) == 0
        check_all_counted_once(fleet, 3)
        assert plan_of(fleet, 1) == plan


def test_the_coordinator_killed_between_freeze_and_sums(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=300") as fleet:
        with ExitStack() as coordinator_pause:
            with held(fleet) as pids:
                fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 4, 200, "uploads of round 1")
                coordinator_pause.enter_context(paused(pids["coordinator"]))
                wait_for_attendances = coordinator_pause.enter_context(hearing_attendances(fleet))
            wait_for_attendances()
            with paused(*(pids[name] for name in fleet.aggregators)):
                coordinator_pause.close()
                frozen = "SELECT freeze FROM rounds WHERE freeze IS NOT NULL AND outcome IS NULL"
                freeze = fleet.wait_for(lambda: coordinator_rows(fleet, frozen), 200, "the Freeze")
                fleet.kill_coordinator()
        assert coordinator_rows(fleet, frozen) == freeze
        assert fleet.rounds() == []
        fleet.start_coordinator()
        assert fleet.wait_done(250) == 0
        check_all_counted_once(fleet, 3)
        assert freeze_of(fleet, 1) == decode("freeze", freeze[0][0])


def test_the_coordinator_killed_after_every_round(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=4", "rounds.deadline_s=300") as fleet:
        start(fleet)
        for done in (1, 2, 3):
            fleet.wait_for(lambda d=done: len(fleet.rounds()) >= d, 200, f"{done} rounds")
            fleet.kill_coordinator()
            ended = coordinator_rows(fleet, "SELECT round_id, plan, freeze, outcome FROM rounds WHERE outcome NOT NULL")
            begun = coordinator_rows(fleet, "SELECT round_id, plan FROM rounds")
            fleet.start_coordinator()
            fleet.wait_for(lambda d=done: len(fleet.rounds()) > d, 200, "the next round")
            assert set(begun) <= set(coordinator_rows(fleet, "SELECT round_id, plan FROM rounds"))
            assert set(ended) <= set(coordinator_rows(fleet, "SELECT round_id, plan, freeze, outcome FROM rounds"))
        assert fleet.wait_done(250) == 0
        check_all_counted_once(fleet, 4)


def check_all_counted_once(fleet: Fleet, rounds: int) -> None:
    """Every round APPLIED once, with everybody's upload, onto the model of the round before."""
    assert phases(fleet) == applied(rounds)
    assert [line.contributors for line in fleet.rounds()] == [8] * rounds
    lines = fleet.folder.coordinator_rounds.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(1, rounds + 1))
    assert coordinator_rows(fleet, "SELECT MAX(applied) FROM models") == [(rounds,)]


# --------------------------------------------------------------------------- brokers


def test_all_brokers_restarted_in_a_round(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=3", "rounds.deadline_s=300") as fleet:
        with held(fleet):
            fleet.wait_for(lambda: complete_uploads(fleet, "aggregator-1", 1) >= 4, 200, "uploads of round 1")
            for name in fleet.brokers:
                fleet.restart_broker(name)
        assert fleet.wait_done(250) == 0
        check_all_counted_once(fleet, 3)
