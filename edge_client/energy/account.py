"""A device's energy between service and meters: what each entry of its ledger took, and what may still be spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge_client.board.profiles import BoardProfile
from edge_client.byte_ledger import RoundEntry
from edge_client.device import Health
from edge_client.energy.budget import Battery, EnergyBudget
from edge_client.energy.parts import Phase, PhaseEnergy, ledger_energy, ledger_spans
from edge_client.energy.phases import find_energy
from edge_client.settings import DeviceSettings


class EnergyAccount:
    """Meters one period after another: rounds, and what lies between them. Raises `MeterError` and `SettingsError`."""

    def __init__(self, settings: DeviceSettings, profile: BoardProfile) -> None:
        self._phases = find_energy(Path(settings.root), profile, settings.energy)
        self._budget = EnergyBudget(Path(settings.store), settings.energy)
        self._is_metering = False

    def begin(self) -> None:
        """A period begins, idle, if none is under way."""
        if not self._is_metering:
            self._phases.begin_round()
            self._is_metering = True

    def enter(self, phase: Phase) -> None:
        """What was done until now ends, `phase` begins."""
        if self._is_metering:
            self._phases.enter(phase)

    def end(self, entry: RoundEntry) -> Mapping[Phase, PhaseEnergy]:
        """Close the period: its joules by phase into the ledger's entry, and those of a round off the budget."""
        if not self._is_metering:
            return {}
        self._is_metering = False
        up, down = entry.up, entry.down
        found = self._phases.end_round(
            up.shares + up.resent + up.control, down.model + down.plan + down.receipts + down.other
        )
        if found:
            entry.energy, entry.spans = ledger_energy(found), ledger_spans(self._phases.spans())
            if entry.round:  # idling between rounds is in the ledger only: the budget is of rounds
                self._budget.spend(found, self._phases.modelled_j)
        return found

    def left_j(self, health: Health | None, reserve_percent: float) -> float | None:
        """Joules that the next round may use; None without any limit."""
        percent, on_mains = (health.battery_percent, health.on_mains) if health else (None, None)
        return self._budget.allow(Battery(percent, on_mains, reserve_percent)).joules
