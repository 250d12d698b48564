"""The `[links]` table: what contradicts itself is named, and slow links are given the patience they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpruneshare.errors import SettingsError
from fedpruneshare.party import LinkSettings
from testbed.links.settings import LinkProfile, patience
from testbed.scenario import Scenario, load_scenario, scenario_keys

SCENARIO = """
[fleet]
devices = 24
[[fleet.groups]]
link = "lte"
[links]
backend = "tap"
[links.profiles.lte]
up_kbit_s = 500
delay_ms = 40
"""


def scenario(tmp_path: Path, *overrides: str) -> Scenario:
    path = tmp_path / "farm.toml"
    path.write_text(SCENARIO)
    return load_scenario(str(path), overrides)


def test_profiles_are_read_and_reached_by_set(tmp_path: Path) -> None:
    found = scenario(tmp_path, "links.profiles.lte.loss_percent=2", "links.congestion_control=bbr")
    assert found.links.profile("lte") == LinkProfile(up_kbit_s=500, delay_ms=40, loss_percent=2)
    assert found.links.congestion_control == "bbr"
    assert found.links.profile("") == LinkProfile()
    assert [group.link for group in found.fleet.members()] == ["lte"] * 24
    assert any(key == "links.profiles.NAME.up_kbit_s" for key, _, _ in scenario_keys())


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("fleet.groups.0.link=lde", r"fleet\.groups\.0\.link: .*'lde'.*did you mean 'lte'"),
        ("links.profiles.lte.jitter_ms=50", r"links\.profiles\.lte\.jitter_ms: .*50.*at most delay_ms = 40"),
        ("links.profiles.lte.loss_percent=51", r"links\.profiles\.lte\.loss_percent"),
        ("links.profiles.lte.outage_s=3", r"links\.profiles\.lte\.outage_s: .*both, or neither"),
        ("links.profiles.lte.duty_period_s=10", r"links\.profiles\.lte\.duty_on_s: .*below duty_period_s = 10"),
        ("links.backend=htb", r"links\.profiles\.lte: .*rates alone"),
        ("links.backend=tc", r"links\.backend"),
        ("links.congestion_control=CUBIC; reboot", r"links\.congestion_control"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        scenario(tmp_path, override)


def test_what_netem_does_not_do_is_refused_with_it(tmp_path: Path) -> None:
    gaps = ("links.profiles.lte.outage_s=3", "links.profiles.lte.outage_every_s=30")
    assert scenario(tmp_path, *gaps).links.profile("lte").has_gaps
    with pytest.raises(SettingsError, match="auto takes it where needed"):
        scenario(tmp_path, *gaps, "links.backend=netem")


def test_links_need_devices_that_are_processes(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"links\.backend: .*'tap' with fleet\.engine = 'synthetic'"):
        scenario(tmp_path, "fleet.engine=synthetic", "task.name=synthetic")


@pytest.mark.parametrize(
    ("keys", "keepalive_s", "publish_s"),
    [
        ({}, 60, 30.0),
        ({"up_kbit_s": 20_000}, 60, 30.0),
        ({"up_kbit_s": 128}, 108, 108.1),
        ({"up_kbit_s": 10_000, "down_kbit_s": 128}, 108, 108.1),
        ({"outage_s": 60, "outage_every_s": 600}, 240, 480.0),
        ({"up_kbit_s": 1280, "duty_period_s": 100, "duty_on_s": 10}, 288, 468.1),
    ],
)
def test_patience_grows_with_what_may_queue_ahead(keys: dict[str, Any], keepalive_s: int, publish_s: float) -> None:
    found = patience(LinkProfile(**keys), LinkSettings(), 12 * 65_536)
    assert found.keepalive_s == keepalive_s
    assert found.publish_timeout_s == pytest.approx(publish_s, abs=0.1)
    assert found.payload_bytes == LinkSettings().payload_bytes
