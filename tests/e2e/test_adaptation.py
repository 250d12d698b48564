"""Real devices that decide for themselves: what they afford, why not more, and what it took (docs/adaptation.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.fleets import small_fleet, start

from edge_client.settings import DeviceSettings
from fedpruneshare.settings import load_settings, render_toml
from testbed.fleet import Fleet
from testbed.ledger.rounds import DeviceRound, read_ledgers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FLEET = (
    "rounds.count=3",
    "rounds.deadline_s=300",
    'fleet.groups=[{rung_max=15, board="raspberry-pi-4b"}]',
    "pruning.rungs=[0.5, 1.0]",
    "pruning.widths=[0.5, 1.0]",
)


def change_settings(fleet: Fleet, ident: str, *overrides: str) -> None:
    """What an operator would edit in a device's own file."""
    path = fleet.folder.config(ident)
    path.write_text(render_toml(load_settings(path, DeviceSettings, overrides)), "utf-8")


def rounds_of(fleet: Fleet) -> dict[str, list[DeviceRound]]:
    """Entries of each device's rounds, without what passed outside any."""
    ledgers = read_ledgers({ident: fleet.folder.ledger(ident) for ident in fleet.devices})
    return {ident: [entry for entry in entries if entry.round] for ident, entries in ledgers.items()}


def test_each_device_takes_what_its_limits_allow_and_says_why(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", *FLEET) as fleet:
        poor, *bounded = fleet.devices[:4]
        change_settings(fleet, poor, "energy.round_j=0.000001")
        for ident in bounded:
            change_settings(fleet, ident, "limits.rung_max=0")
        start(fleet)
        assert fleet.wait_done(250) == 0
        rounds, lines = rounds_of(fleet), fleet.rounds()
    assert [line.phase for line in lines] == ["APPLIED"] * 3
    declined = rounds.pop(poor)
    assert {entry.status for entry in declined} == {"declined"}
    assert {entry.constraint for entry in declined} == {"energy"}
    assert all("J, at most" in entry.reason for entry in declined)
    for ident in bounded:
        found = [(entry.rung, entry.width, entry.constraint, entry.status) for entry in rounds.pop(ident)]
        assert found == [(0, 0.5, "rung_max", "uploaded")] * 3
    for entries in rounds.values():
        assert [(entry.rung, entry.width, entry.status) for entry in entries] == [(1, 1.0, "uploaded")] * 3
    assert [line.contributors for line in lines] == [len(fleet.devices) - 1] * 3


def test_a_round_leaves_its_joules_by_phase_and_its_prediction_beside_what_happened(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", *FLEET) as fleet:
        start(fleet)
        assert fleet.wait_done(250) == 0
        rounds = rounds_of(fleet)
    for entries in rounds.values():
        for number, entry in enumerate(entries):
            assert set(entry.energy) >= {"receive", "prune", "train", "encode", "share", "send", "idle"}
            assert {part.source for part in entry.energy.values()} == {"model"}
            assert (entry.energy["train"].joules or 0) > 0
            predicted, actual = entry.prediction["predicted"], entry.prediction["actual"]
            assert actual["up_bytes"] == entry.up.shares + entry.up.resent
            # What an aggregator on a crowded machine was asked for again is sent, and not predicted.
            assert predicted["up_bytes"] == pytest.approx(entry.up.shares, rel=0.1)
            assert predicted["down_bytes"] == pytest.approx(entry.down.model, rel=0.1)
            assert ("train" in predicted["seconds"]) == (number > 0)  # nothing was timed before the first round
