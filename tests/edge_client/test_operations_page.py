"""docs/operations.md: its settings are settings, its options are options, its table has a place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from edge_client.cli import device
from edge_client.commands.calibrate import NAMES
from edge_client.settings import DeviceSettings
from fedpruneshare.settings import load_settings
from testbed.benchmarks.device_memory import PAGE_NAME
from testbed.benchmarks.pages import check_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
TEXT = PAGE.read_text("utf-8")
PARTY = {"key_file": "key.json", "directory": "directory.json", "root_key": "0" * 64}


def test_the_settings_shown_are_accepted() -> None:
    block = TEXT.split("## Settings")[1].split("All keys")[0]
    shown = tomllib.loads(re.sub(r"^    ", "", block, flags=re.MULTILINE))
    settings = load_settings({"party": PARTY, **shown}, DeviceSettings)
    assert settings.limits.memory_mib == 300
    assert settings.energy.round_j == 40


def test_the_table_of_measured_memory_has_its_place() -> None:
    assert "LeNet-5 | 1 |" in check_page(PAGE, PAGE_NAME)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_a_calibration_is_described(name: str) -> None:
    assert f"| `{name}` |" in TEXT


def test_the_commands_and_options_named_exist() -> None:
    for name in re.findall(r"fedpruneshare device (\w+)", TEXT):
        command = device.commands[name]
        assert isinstance(command, click.Command)
    options = {name for parameter in device.commands["calibrate"].params for name in parameter.opts}
    section = TEXT.split("## What `calibrate` does")[1].split("## Memory")[0]
    assert set(re.findall(r"`(--[a-z-]+)", section)) <= options
