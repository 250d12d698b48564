"""How many joules a device may spend: of all rounds together, of one round, of its battery.

Two accounts are kept, both of every round: what was measured, and what the model says. They are never added. The
measured one counts for as long as no round is missing in it, otherwise the model's, which is always complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from edge_client.energy.parts import Phase, PhaseEnergy, round_j
from edge_client.energy.settings import EnergySettings
from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import write_atomically

_log = structlog.get_logger()

_J_PER_WH: Final = 3600.0
NonNegative = Annotated[float, Meta(ge=0)]


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the rounds so far have taken: joules measured, joules modelled, and rounds that were not measured."""

    schema: Literal[1] = 1
    rounds: Annotated[int, Meta(ge=0)] = 0
    unmeasured_rounds: Annotated[int, Meta(ge=0)] = 0
    measured_j: NonNegative = 0.0
    modelled_j: NonNegative = 0.0

    def after(self, measured_j: float | None, modelled_j: float) -> Account:
        """With one more round. `measured_j`: None where it was not measured whole."""
        return Account(
            rounds=self.rounds + 1,
            unmeasured_rounds=self.unmeasured_rounds + (measured_j is None),
            measured_j=self.measured_j + (measured_j or 0.0),
            modelled_j=self.modelled_j + modelled_j,
        )

    @property
    def is_measured(self) -> bool:
        """Whether `spent_j` is measured: no round is missing."""
        return self.rounds > 0 and self.unmeasured_rounds == 0

    @property
    def spent_j(self) -> float:
        """Of all rounds, by the one account that counts."""
        return self.measured_j if self.is_measured else self.modelled_j


@dataclass(frozen=True)
class Battery:
    """The battery now. `percent` None: there is none, or it does not tell. `is_on_mains` None: not known."""

    percent: float | None
    is_on_mains: bool | None
    reserve_percent: float


@dataclass(frozen=True)
class Allowance:
    """What a round may use, None without limit, and which limit that is."""

    joules: float | None
    limit: Literal["none", "round", "budget", "battery"]


def allow(settings: EnergySettings, account: Account, battery: Battery) -> Allowance:
    """The tightest of the limits that are set. A battery counts away from mains, if its capacity is known.

    Spread over `horizon_rounds`: (percent - reserve) of `battery_wh`.
    """
    limits: list[Allowance] = []
    if settings.round_j:
        limits.append(Allowance(settings.round_j, "round"))
    if settings.budget_j:
        limits.append(Allowance(max(0.0, settings.budget_j - account.spent_j), "budget"))
    if settings.battery_wh and battery.percent is not None and not battery.is_on_mains:
        above = max(0.0, battery.percent - battery.reserve_percent) / 100
        limits.append(Allowance(above * settings.battery_wh * _J_PER_WH / settings.horizon_rounds, "battery"))
    return min(limits, key=lambda limit: limit.joules or 0.0, default=Allowance(None, "none"))


class EnergyBudget:
    """The account of one device, in `energy.json` in its store folder: it outlives restarts."""

    def __init__(self, folder: Path, settings: EnergySettings) -> None:
        """Raises `SettingsError` for a damaged file where there is a budget that it would let be spent again."""
        self._path, self._settings = folder / "energy.json", settings
        self._account = self._read()

    @property
    def account(self) -> Account:
        """What was spent."""
        return self._account

    def allow(self, battery: Battery) -> Allowance:
        """What the next round may use."""
        return allow(self._settings, self._account, battery)

    def spend(self, found: Mapping[Phase, PhaseEnergy], modelled_j: float | None) -> None:
        """Count a round, as `PhaseMeter.end_round` gives it, with its `modelled_j`; nothing without a model."""
        if modelled_j is None:
            return
        self._account = self._account.after(round_j(found, is_modelled=False), modelled_j)
        write_atomically(self._path, msgspec.json.format(msgspec.json.encode(self._account)) + b"\n")

    def _read(self) -> Account:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Account)
        except FileNotFoundError:
            return Account()
        except (OSError, msgspec.DecodeError) as error:
            reason = f"{self._path}: {error}, expected what earlier rounds spent"
            if self._settings.budget_j:
                raise SettingsError(f"{reason}; remove the file to begin the budget anew") from None
            _log.warning("energy-account-forgotten", reason=reason)
            return Account()
