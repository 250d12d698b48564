"""Events and churn in a scenario: every mistake is named where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpruneshare.errors import SettingsError
from testbed.scenario import Scenario, load_scenario

GROUPS = "fleet.groups=[{share = 1, board = 'raspberry-pi-4b'}, {share = 1}]"


def scenario(folder: Path, events: str, *overrides: str) -> Scenario:
    path = folder / "tried.toml"
    path.write_text(f"[fleet]\ndevices = 8\n[rounds]\ncohort = 8\ncount = 5\n{events}")
    return load_scenario(str(path), overrides)


def mistakes(folder: Path, events: str, *overrides: str) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        scenario(folder, events, *overrides)
    return {fault.path: fault.expected for fault in caught.value.faults}


def test_a_scenario_without_events_has_none(tmp_path: Path) -> None:
    plain = scenario(tmp_path, "")
    assert plain.events == ()
    assert plain.churn.reboot_every_s == plain.churn.leave_every_s == 0.0


def test_events_and_churn_are_read(tmp_path: Path) -> None:
    text = '[churn]\nreboot_every_s = 60\n[[events]]\nkind = "reboot"\nat_round = 2\nfor_s = 5\ndevices = [1]\n'
    found = scenario(tmp_path, text)
    assert (found.events[0].kind, found.events[0].devices, found.churn.reboot_every_s) == ("reboot", (1,), 60)


@pytest.mark.parametrize(
    ("event", "place", "expected"),
    [
        ("kind = 'reboot'\ndevices = [1]", "for_s", "how long a reboot takes"),
        ("kind = 'leave'", "devices", "devices or groups that this happens to"),
        ("kind = 'leave'\ndevices = [8]", "devices", "one of 0, …, 7"),
        ("kind = 'leave'\ngroups = [1]", "groups", "one of 0, …, 0"),
        ("kind = 'leave'\ndevices = [1]\naggregators = [1]", "aggregators", "none with kind = 'leave'"),
        ("kind = 'kill-aggregator'", "aggregators", "aggregators that this happens to"),
        ("kind = 'kill-aggregator'\naggregators = [4]", "aggregators", "one of 1, …, 3"),
        ("kind = 'restart-broker'\nbrokers = ['coordinator']", "brokers", "one of control, …, aggregator-3"),
        ("kind = 'kill-coordinator'\nfor_s = 1\ndevices = [0]", "devices", "none with kind = 'kill-coordinator'"),
        ("kind = 'leave'\ndevices = [0]\nat_round = 6", "at_round", "at most rounds.count = 5"),
        ("kind = 'throttle'\ndevices = [0]", "kind", 'boards.cpu = "auto"'),
    ],
)
def test_an_event_that_cannot_happen_is_refused(tmp_path: Path, event: str, place: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, f"[[events]]\n{event}\n")[f"events.0.{place}"]


def test_a_device_without_a_board_has_no_speed_to_lower(tmp_path: Path) -> None:
    event = "[[events]]\nkind = 'throttle'\ndevices = [7]\n[boards]\ncpu = 'auto'\n"
    assert "a board" in mistakes(tmp_path, event, GROUPS)["events.0.devices"]
    assert scenario(tmp_path, event.replace("[7]", "[0]"), GROUPS).events[0].share == 0.5


def test_a_join_whose_place_among_the_events_of_its_device_is_unclear_is_refused(tmp_path: Path) -> None:
    """Taken for the first, it would keep the device away from the start on, and nothing would leave in round 3."""
    leaves = "[[events]]\nkind = 'leave'\nat_round = 3\ndevices = [1]\n"
    mixed = f"{leaves}[[events]]\nkind = 'join'\nat_s = 600\ndevices = [1]\n"
    assert "all by time" in mistakes(tmp_path, mixed)["events.1.at_round"]
    scenario(tmp_path, mixed.replace("at_s = 600", "at_round = 5"))
    scenario(tmp_path, mixed.replace("at_s = 600\ndevices = [1]", "at_s = 600\ndevices = [2]"))


def test_a_coordinator_that_never_comes_back_is_refused(tmp_path: Path) -> None:
    killed = "[[events]]\nkind = 'kill-coordinator'\nat_s = 5\n"
    assert "no run ends so" in mistakes(tmp_path, killed)["events"]
    scenario(tmp_path, killed + "for_s = 2\n")
    scenario(tmp_path, killed + "[[events]]\nkind = 'start-coordinator'\nat_s = 9\n")
