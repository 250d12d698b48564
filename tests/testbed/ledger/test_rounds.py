"""Merging what coordinator and devices wrote down: no byte lost, none counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edge_client.byte_ledger import ByteLedger
from edge_client.energy.meters import Source
from edge_client.energy.parts import Phase, PhaseEnergy, ledger_energy
from fedpruneshare.errors import PeerError
from testbed.ledger.rounds import (
    BytesDown,
    BytesUp,
    CoordinatorRound,
    DeviceRound,
    PhaseJoules,
    RunRound,
    merge,
    read_coordinator_rounds,
    read_ledgers,
    read_lines,
    read_rounds,
    write_rounds,
)

COORDINATOR_LINE = {
    "round": 1,
    "phase": "APPLIED",
    "reason": "",
    "contributors": 3,
    "aggregators": ["aggregator-1"],
    "verified": True,
    "density": 1.0,
    "rungs": [1, 2],
    "segments_open": [0, 1],
    "accuracy": 0.5,
    "loss": 1.2,
    "seconds": {"collect": 1.0, "total": 2.0},
    "model_bytes": 10,
    "cohort": 3,
}


def up(shares: int, resent: int = 0, control: int = 0) -> BytesUp:
    return BytesUp(shares, resent, control)


def test_bytes_are_added_by_round_and_cause() -> None:
    rounds = [CoordinatorRound(1, "APPLIED", accuracy=0.5), CoordinatorRound(2, "FAILED", "too few")]
    ledgers = {
        "a": [
            DeviceRound(0, up=up(0, 0, 7)),
            DeviceRound(1, "uploaded", up=up(100, 10, 1), down=BytesDown(5, 4, 3, 2)),
        ],
        "b": [DeviceRound(1, "declined", up=up(0, 0, 2)), DeviceRound(2, "incomplete", up=up(40))],
    }
    outside, first, second = merge(9, rounds, ledgers)
    assert (outside.round, outside.phase, outside.up, outside.devices) == (0, "OUTSIDE", up(0, 0, 7), {})
    assert (first.up, first.down) == (up(100, 10, 3), BytesDown(5, 4, 3, 2))
    assert (first.devices, first.uploads, first.uploaded_bytes) == ({"declined": 1, "uploaded": 1}, 1, 111)
    assert (second.up, second.uploads, second.uploaded_bytes, second.reason) == (up(40), 0, 0, "too few")
    assert [line.uplink_bytes_so_far for line in (outside, first, second)] == [7, 120, 160]
    assert {line.seed for line in (outside, first, second)} == {9}


def test_a_device_restarted_in_a_round_is_counted_once_with_all_its_bytes() -> None:
    ledgers = {"a": [DeviceRound(1, "incomplete", up=up(60)), DeviceRound(1, "uploaded", up=up(40, 20))]}
    _, line = merge(1, [CoordinatorRound(1, "APPLIED")], ledgers)
    assert (line.devices, line.uploads, line.uploaded_bytes) == ({"uploaded": 1}, 1, 120)


def test_bytes_of_a_round_that_never_finished_are_kept() -> None:
    lines = merge(1, [CoordinatorRound(1, "APPLIED")], {"a": [DeviceRound(2, "incomplete", up=up(50))]})
    assert [line.up.total for line in lines] == [50, 0]
    assert lines[0].uploads == 0


def test_files_are_read_as_the_services_write_them(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    again = {**COORDINATOR_LINE, "accuracy": 0.6}
    failed = {**COORDINATOR_LINE, "round": 2, "phase": "FAILED", "accuracy": None, "loss": None, "density": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in (failed, COORDINATOR_LINE, again)))
    assert [(line.round, line.accuracy) for line in read_coordinator_rounds(path)] == [(1, 0.6), (2, None)]
    assert read_coordinator_rounds(tmp_path / "none.jsonl") == []
    assert read_ledgers({"a": tmp_path / "none.jsonl"}) == {"a": []}


def test_a_line_still_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"round":1,"status":"uploaded"}\n{"round":2,"sta')
    assert [line.round for line in read_lines(path, DeviceRound)] == [1]
    path.write_text('{"round":1}\n{"round":"two"}\n')
    with pytest.raises(PeerError, match=r"line 2: .*expected a line of DeviceRound"):
        read_lines(path, DeviceRound)


def test_rounds_of_a_run_read_back(tmp_path: Path) -> None:
    lines = merge(1, [CoordinatorRound(1, "APPLIED", rungs=(2, 1), seconds={"total": 1.5})], {"a": [DeviceRound(1)]})
    write_rounds(tmp_path / "rounds.jsonl", lines)
    assert read_rounds(tmp_path / "rounds.jsonl") == lines


def joules(source: str, **phases: float | None) -> dict[str, PhaseJoules]:
    return {phase: PhaseJoules(source, value, source == "model") for phase, value in phases.items()}


def test_joules_are_added_by_source_and_phase_and_what_is_missing_is_counted() -> None:
    ledgers = {
        "a": [
            DeviceRound(0, up=up(0, 0, 7)),
            DeviceRound(0, energy=joules("model", idle=0.5)),
            DeviceRound(1, "incomplete", energy=joules("model", train=3.0)),
            DeviceRound(1, "uploaded", energy=joules("model", train=10.0, send=1.0)),
            DeviceRound(2, "not-in-cohort"),
            DeviceRound(2, "not-in-cohort", energy=joules("model", idle=0.25)),
            DeviceRound(3, "incomplete", energy=joules("model", train=5.0)),  # the coordinator never finished it
        ],
        "b": [
            DeviceRound(1, "declined", energy=joules("rapl", idle=4.0)),
            DeviceRound(2, "uploaded", energy=joules("rapl", train=6.0, send=2.0)),
        ],
        "c": [DeviceRound(1, "killed"), DeviceRound(2, "uploaded", energy=joules("rapl", train=7.0, send=None))],
    }
    outside, first, second = merge(1, [CoordinatorRound(1, "APPLIED"), CoordinatorRound(2, "APPLIED")], ledgers)
    # Between rounds a device takes something, too; what is outside of any round stands in round 0, like bytes.
    assert outside.energy_j == {"model": {"idle": 0.5, "train": 5.0}}
    assert outside.energy_missing == 0
    assert first.energy_j == {"model": {"train": 13.0, "send": 1.0}, "rapl": {"idle": 4.0}}
    assert (first.energy_entries, first.energy_missing) == ({"model": 2, "rapl": 1}, 1)
    # A round with a phase without a figure gives none at all: half a round is no round.
    assert second.energy_j == {"model": {"idle": 0.25}, "rapl": {"train": 6.0, "send": 2.0}}
    assert (second.energy_entries, second.energy_missing) == ({"model": 1, "rapl": 1}, 1)


def test_a_device_writes_what_is_read_here(tmp_path: Path) -> None:
    ledger = ByteLedger(tmp_path)
    ledger.begin(3)
    ledger.entry.status, ledger.entry.width, ledger.entry.local_steps = "uploaded", 0.5, 7
    part = PhaseEnergy(1.5, 2.0, Source("ina3221", "the whole board (VDD_IN)", "mV and mA"), False, 0.1, 3)
    ledger.entry.energy = ledger_energy({Phase.TRAIN: part})
    ledger.entry.spans = [("train", 1.0, 3.0)]
    ledger.end()
    (line,) = read_lines(tmp_path / "ledger.jsonl", DeviceRound)
    assert (line.width, line.local_steps, line.has_energy) == (0.5, 7, True)
    assert line.energy == {"train": PhaseJoules("ina3221", 1.5, False, 0.1)}


def test_lines_from_before_there_was_energy_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"round":1,"rung":2,"status":"uploaded","up":{"shares":5,"resent":0,"control":1}}\n')
    (line,) = read_lines(path, DeviceRound)
    assert (line.energy, line.width, line.local_steps, line.has_energy) == ({}, None, 0, False)
    (tmp_path / "rounds.jsonl").write_text(
        json.dumps(
            {name: value for name, value in asdict_of(merge(1, [], {})[0]).items() if not name.startswith("energy")}
        )
        + "\n"
    )
    assert read_rounds(tmp_path / "rounds.jsonl")[0].energy_j == {}


def asdict_of(line: RunRound) -> dict[str, object]:
    made: dict[str, object] = msgspec.to_builtins(line)
    return made
