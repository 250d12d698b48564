"""Fleets behind emulated links: real services over namespaces, and the same settings in the devices' own processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedpruneshare.errors import RunError
from testbed.fleet import Fleet
from testbed.links.backends import why_no_namespaces, why_no_tap
from testbed.scenario import Scenario, load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCENARIO = """
seeds = [1]
[task]
name = "hapt"
data = "fixture"
[fleet]
devices = 6
adaptive = false
[[fleet.groups]]
link = "slow"
[[fleet.groups]]
link = "lossy"
[links]
self_test = false
[links.profiles.slow]
up_kbit_s = 100
down_kbit_s = 400
delay_ms = 40
[links.profiles.lossy]
up_kbit_s = 4000
down_kbit_s = 4000
delay_ms = 5
jitter_ms = 3
loss_percent = 3
[rounds]
count = 2
cohort = 6
min_devices = 4
deadline_s = 300.0
wait_for_devices_s = 90.0
grace_s = 30.0
[sharing]
threshold = 2
[training]
local_epochs = 1
"""


def scenario(folder: Path, backend: str, *overrides: str) -> Scenario:
    path = folder / "links.toml"
    path.write_text(SCENARIO)
    return load_scenario(str(path), [f"links.backend={backend}", *overrides])


def send_seconds(fleet: Fleet) -> dict[str, list[float]]:
    """How long the uploads of each device took."""
    found: dict[str, list[float]] = {}
    for device in fleet.devices:
        lines = fleet.folder.ledger(device).read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        found[device] = [entry["seconds"]["send"] for entry in entries if "send" in entry.get("seconds", {})]
    return found


def test_a_fleet_over_real_links(tmp_path: Path) -> None:
    missing = why_no_namespaces() or why_no_tap()
    if missing:
        pytest.skip(missing)
    with Fleet(scenario(tmp_path, "tap"), tmp_path / "run") as fleet:
        assert fleet.directory is not None
        assert {service.host for service in fleet.directory.aggregators.values()} == {"10.77.0.1"}
        fleet.start()
        pid = fleet.brokers["control"].pid
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(fleet.network.services_place).st_ino
        assert fleet.wait_done(250) == 0
        counters, conditions, seconds = fleet.counters(), fleet.conditions()["links"], send_seconds(fleet)
        sent = {device: ledger_bytes(fleet, device) for device in fleet.devices}
    assert [line.phase for line in fleet.rounds()] == ["APPLIED", "APPLIED"]
    assert counters is not None
    for device, count in counters.items():
        # Headers, acknowledgements of what came down, connections, and what was sent again: of that little on an idle
        # machine (1.35 times the payload in all), more where TCP has to wait for a crowded one.
        assert 1.04 * sent[device] < count.up < 4 * sent[device] + 40_000
    slow, lossy = fleet.devices[:3], fleet.devices[3:]
    for device in slow:  # two shares of about 26 kB at 12.5 kB a second
        assert max(seconds[device]) > 0.9 * 2 * 26_000 / 12_500
    assert conditions["packets"]["lossy"]["up"]["lost"] > 0
    assert conditions["packets"]["slow"]["up"]["lost"] == 0
    assert len(lossy) == conditions["profiles"]["lossy"]["devices"] == 3


def ledger_bytes(fleet: Fleet, device: str) -> int:
    """MQTT payload a device sent, all causes."""
    entries = [json.loads(line) for line in fleet.folder.ledger(device).read_text().splitlines()]
    return sum(sum(entry["up"][cause] for cause in ("shares", "resent", "control")) for entry in entries)


def test_the_same_links_without_root(tmp_path: Path) -> None:
    with Fleet(scenario(tmp_path, "application"), tmp_path / "run") as fleet:
        assert fleet.directory is not None
        assert {service.host for service in fleet.directory.aggregators.values()} == {"127.0.0.1"}
        fleet.start()
        assert fleet.wait_done(250) == 0
        seconds = send_seconds(fleet)
        conditions = fleet.conditions()["links"]
        assert fleet.counters() is None
    assert [line.phase for line in fleet.rounds()] == ["APPLIED", "APPLIED"]
    assert (conditions["backend"], conditions["counted_at"]) == ("application", "payload")
    for device in fleet.devices[:3]:
        assert max(seconds[device]) > 0.9 * 2 * 26_000 / 12_500


def test_a_run_whose_links_cannot_be_what_was_asked_does_not_start(tmp_path: Path) -> None:
    missing = why_no_namespaces() or why_no_tap()
    if missing:
        pytest.skip(missing)
    asked = scenario(tmp_path, "tap", "links.self_test=true", "links.congestion_control=nosuch")
    with pytest.raises(RunError, match="links"), Fleet(asked, tmp_path / "run"):
        pytest.fail("the fleet came up")
