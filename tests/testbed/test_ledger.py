"""Merging what coordinator and devices wrote down: no byte lost, none counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpruneshare.errors import PeerError
from testbed.ledger import (
    BytesDown,
    BytesUp,
    CoordinatorRound,
    DeviceRound,
    merge,
    read_coordinator_rounds,
    read_ledgers,
    read_lines,
    read_rounds,
    uplink_bytes,
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
    assert uplink_bytes(ledgers) == 160
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
