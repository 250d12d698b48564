"""Two accounts that are never added, the tightest limit, and what outlives a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_client.energy.budget import Account, Allowance, Battery, EnergyBudget, allow
from edge_client.energy.meters import Source
from edge_client.energy.parts import Phase, PhaseEnergy
from edge_client.energy.settings import EnergySettings
from fedpruneshare.errors import SettingsError

MAINS = Battery(None, None, 20.0)
RAPL, MODEL = Source("rapl", "1 package", "µJ"), Source("model", "the board", "not measured")


def measured(joules: float | None) -> dict[Phase, PhaseEnergy]:
    return {
        Phase.TRAIN: PhaseEnergy(joules, 1.0, RAPL, False, 0.1, 3),
        Phase.IDLE: PhaseEnergy(1.0, 1.0, RAPL, False, 0.1, 3),
    }


def modelled(joules: float) -> dict[Phase, PhaseEnergy]:
    return {Phase.TRAIN: PhaseEnergy(joules, 1.0, MODEL, True, 0.1, 0)}


def test_what_is_measured_counts_while_no_round_is_missing(tmp_path: Path) -> None:
    budget = EnergyBudget(tmp_path, EnergySettings(budget_j=100.0))
    assert budget.allow(MAINS).joules == 100.0
    budget.spend(measured(9.0), 30.0)
    assert (budget.allow(MAINS).joules, budget.account.is_measured) == (90.0, True)
    budget.spend(measured(19.0), 15.0)
    assert budget.allow(MAINS).joules == 70.0
    # A round without a figure: the model has all of them, the sensor has not. Neither is filled up with the other.
    budget.spend(measured(None), 5.0)
    assert budget.account == Account(rounds=3, unmeasured_rounds=1, measured_j=30.0, modelled_j=50.0)
    assert (budget.allow(MAINS).joules, budget.account.is_measured) == (50.0, False)
    budget.spend(modelled(80.0), 80.0)
    assert budget.account.measured_j == 30.0
    assert budget.allow(MAINS).joules == 0.0


def test_the_accounts_outlive_a_restart(tmp_path: Path) -> None:
    settings = EnergySettings(budget_j=50.0)
    EnergyBudget(tmp_path, settings).spend(measured(9.0), 30.0)
    again = EnergyBudget(tmp_path, settings)
    assert again.allow(MAINS).joules == 40.0
    again.spend(measured(4.0), 2.0)
    assert json.loads((tmp_path / "energy.json").read_text()) == {
        "schema": 1, "rounds": 2, "unmeasured_rounds": 0, "measured_j": 15.0, "modelled_j": 32.0,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["energy.json"]


@pytest.mark.parametrize("damage", ["", "{", '{"schema":2}', '{"measured_j":-1}', '{"joules":1}'])
def test_a_damaged_account_is_no_new_budget(tmp_path: Path, damage: str) -> None:
    (tmp_path / "energy.json").write_text(damage)
    with pytest.raises(SettingsError, match="remove the file to begin the budget anew"):
        EnergyBudget(tmp_path, EnergySettings(budget_j=50.0))
    assert EnergyBudget(tmp_path, EnergySettings()).account == Account()


def test_without_energy_nothing_is_written(tmp_path: Path) -> None:
    budget = EnergyBudget(tmp_path, EnergySettings(meter="none"))
    budget.spend({}, None)
    assert budget.allow(MAINS) == Allowance(None, "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "battery", "expected"),
    [
        ({}, MAINS, Allowance(None, "none")),
        ({"round_j": 40.0}, MAINS, Allowance(40.0, "round")),
        ({"round_j": 40.0, "budget_j": 1000.0}, MAINS, Allowance(40.0, "round")),
        ({"round_j": 400.0, "budget_j": 170.0}, MAINS, Allowance(70.0, "budget")),
        ({"budget_j": 50.0}, MAINS, Allowance(0.0, "budget")),
        # (70 - 20) % of 10 Wh are 18 kJ, over ten rounds.
        ({"battery_wh": 10.0}, Battery(70.0, False, 20.0), Allowance(1800.0, "battery")),
        ({"battery_wh": 10.0, "horizon_rounds": 100}, Battery(70.0, None, 20.0), Allowance(180.0, "battery")),
        ({"battery_wh": 10.0, "round_j": 2000.0}, Battery(70.0, False, 20.0), Allowance(1800.0, "battery")),
        ({"battery_wh": 10.0}, Battery(20.0, False, 20.0), Allowance(0.0, "battery")),
        ({"battery_wh": 10.0}, Battery(5.0, False, 20.0), Allowance(0.0, "battery")),
        ({"battery_wh": 10.0}, Battery(70.0, True, 20.0), Allowance(None, "none")),
        ({"battery_wh": 10.0}, Battery(None, False, 20.0), Allowance(None, "none")),
        ({}, Battery(70.0, False, 20.0), Allowance(None, "none")),
    ],
)
def test_the_tightest_limit_holds(settings: dict[str, float], battery: Battery, expected: Allowance) -> None:
    account = Account(rounds=1, measured_j=100.0, modelled_j=7.0)
    found = allow(EnergySettings(**settings), account, battery)  # type: ignore[arg-type]
    assert found.limit == expected.limit
    assert found.joules == (None if expected.joules is None else pytest.approx(expected.joules))
