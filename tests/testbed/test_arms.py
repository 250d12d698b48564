"""The arms of a comparison differ in what they are named for, and in nothing else."""

from __future__ import annotations

import msgspec
import pytest

from fedpruneshare.errors import SettingsError
from fedpruneshare.settings import load_settings, render_toml
from testbed.arms import ARMS, arm_scenario
from testbed.scenario import Scenario, load_scenario, shipped_scenarios

#: What an arm may change of a scenario.
OWN = {
    "fedavg": {"sharing", "aggregators", "coding", "pruning"},
    "prune-only": {"sharing", "aggregators", "coding"},
    "share-only": {"pruning"},
    "fedpruneshare": set[str](),
}


def trained(name: str) -> Scenario:
    return load_scenario(name)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", shipped_scenarios())
def test_an_arm_changes_what_it_is_named_for_and_nothing_else(name: str, arm: str) -> None:
    scenario = trained(name)
    made = arm_scenario(scenario, arm)
    changed = {field for field in Scenario.__struct_fields__ if getattr(made, field) != getattr(scenario, field)}
    assert changed <= OWN[arm] | {"rounds"}
    assert msgspec.structs.replace(made.rounds, strata=0) == scenario.rounds


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", shipped_scenarios())
def test_an_arms_settings_can_be_read_again(name: str, arm: str, tmp_path: object) -> None:
    made = arm_scenario(trained(name), arm)
    assert load_settings(parsed(render_toml(made)), Scenario) == made


def parsed(text: str) -> dict[str, object]:
    import tomllib

    return tomllib.loads(text)


@pytest.mark.parametrize("arm", ["share-only", "fedpruneshare"])
def test_what_shares_nothing_goes_by_no_name_of_one_that_shares(arm: str) -> None:
    plain = arm_scenario(trained("demo"), "prune-only")
    assert arm_scenario(plain, "prune-only") == plain
    with pytest.raises(SettingsError, match=f"arm {arm} of a scenario with sharing.reveal = plain"):
        arm_scenario(plain, arm)


def test_all_arms_draw_by_the_same_strata() -> None:
    made = {arm: arm_scenario(trained("fashion-mnist"), arm) for arm in ARMS}
    assert {scenario.rounds.strata for scenario in made.values()} == {4}  # three rungs and the probe


def test_what_each_arm_sends() -> None:
    scenario = trained("fashion-mnist-pi-fleet")
    made = {arm: arm_scenario(scenario, arm) for arm in ARMS}
    said = {
        arm: (one.pruning.target_density, one.sharing.reveal, one.aggregators.count, one.coding.value_bits)
        for arm, one in made.items()
    }
    assert said == {
        "fedavg": (1.0, "plain", 1, 32),
        "prune-only": (0.1, "plain", 1, 16),
        "share-only": (1.0, "sum", 3, 4),
        "fedpruneshare": (0.1, "sum", 3, 4),
    }
