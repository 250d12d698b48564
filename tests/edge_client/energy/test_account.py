"""What of a device's time is taken off its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.board.profiles import load_board
from edge_client.byte_ledger import RoundEntry
from edge_client.energy.account import EnergyAccount
from edge_client.energy.settings import EnergySettings
from edge_client.settings import DeviceSettings, DeviceTask
from fedpruneshare.party import PartySettings


@pytest.mark.parametrize(("round_id", "is_spent"), [(0, False), (3, True)])
def test_only_rounds_are_taken_off_the_budget_of_rounds(tmp_path: Path, round_id: int, is_spent: bool) -> None:
    """At 1.6 W of an idle Pi 4, 50 kJ would be gone after nine hours without a single round."""
    settings = DeviceSettings(
        party=PartySettings(key_file="", directory="", root_key="0" * 64),
        task=DeviceTask("hapt", 0, 10),
        store=str(tmp_path),
        energy=EnergySettings(meter="model", budget_j=1000.0),
    )
    account, entry = EnergyAccount(settings, load_board("raspberry-pi-4b")), RoundEntry(round=round_id)
    account.begin()
    account.end(entry)
    assert entry.energy
    left_j = account.left_j(None, 20.0)
    assert left_j is not None
    assert (left_j < 1000.0) is is_spent
