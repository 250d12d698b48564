"""A device reads an emulated board's files as it would a real one's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_client.board.profiles import board_names, find_board, load_board
from edge_client.device import measure
from testbed.boards.sensors import BoardSensors


@pytest.mark.parametrize("name", board_names())
def test_what_is_shown_is_what_is_measured(tmp_path: Path, name: str) -> None:
    sensors = BoardSensors(tmp_path, load_board(name))
    sensors.show_temperature(61.26)
    sensors.show_throttling(is_throttled=True)
    sensors.show_battery(47.9)
    health = measure(sensors.root)
    assert (health.temperature_c, health.zone) == (61.3, "cpu-thermal")
    assert health.is_throttled is True
    assert (health.battery_percent, health.on_mains, health.battery_status) == (47, False, "Discharging")
    assert health.cores == load_board(name).processor.cores
    sensors.show_throttling(is_throttled=False)
    sensors.show_temperature(-3.0)
    after = measure(sensors.root)
    assert (after.is_throttled, after.temperature_c) == (False, -3.0)


@pytest.mark.parametrize("name", [name for name in board_names() if load_board(name).match])
def test_an_emulated_board_is_recognised(tmp_path: Path, name: str) -> None:
    sensors = BoardSensors(tmp_path, load_board(name))
    found = find_board(sensors.root)
    assert found.name == name or name.startswith("jetson")  # a Jetson is known by its module's number first
    assert measure(sensors.root).model.endswith("(emulated)")


def test_mains_is_outside_power_and_no_battery(tmp_path: Path) -> None:
    sensors = BoardSensors(tmp_path, load_board("raspberry-pi-4b"))
    sensors.show_mains()
    assert (measure(tmp_path).on_mains, measure(tmp_path).battery_percent) == (True, None)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc of this machine")
def test_memory_is_that_of_this_machine_and_its_control_groups(tmp_path: Path) -> None:
    BoardSensors(tmp_path, load_board("raspberry-pi-4b"))
    assert measure(tmp_path).total_mib == measure(Path("/")).total_mib


def test_a_file_is_never_half_written_and_only_changes_are_written(tmp_path: Path) -> None:
    sensors = BoardSensors(tmp_path, load_board("raspberry-pi-4b"))
    sensors.show_battery(50.2)
    place = tmp_path / "sys/class/power_supply/BAT0/capacity"
    first = place.stat().st_ino
    sensors.show_battery(50.9)
    assert place.stat().st_ino == first
    sensors.show_battery(49.9)
    assert place.stat().st_ino != first
    assert place.read_text() == "49\n"
