"""A small fleet whose boards are slow and whose devices and services go down and come back, as a scenario says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from e2e.fleets import SMALL
from rich.console import Console

from testbed.boards import self_check
from testbed.run import RunOptions, run_scenario
from testbed.scenario import load_scenario
from testbed.watching.progress import Progress

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: processor clocks of other processes"),
]

OUTAGES = """
[
    {kind = 'reboot', at_round = 2, devices = [1], for_s = 2.0},
    {kind = 'join', at_round = 2, devices = [2]},
    {kind = 'kill-aggregator', at_round = 2, aggregators = [3], for_s = 2.0},
    {kind = 'kill-coordinator', at_round = 3, for_s = 1.0},
    {kind = 'restart-broker', at_round = 4, brokers = ['aggregator-2']},
    {kind = 'throttle', at_round = 2, devices = [0], share = 0.5, for_s = 3.0},
]
"""


def test_a_fleet_lives_through_reboots_outages_and_slow_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_TRIES", 12)  # on a crowded machine
    groups = (
        "[{share = 7, board = 'raspberry-pi-5'}, {share = 1, board = 'raspberry-pi-4b', power = 'battery', "
        "battery_wh = 0.004}]"
    )
    scenario = load_scenario(
        "demo",
        [
            *SMALL, "rounds.count=5", "rounds.deadline_s=15.0", "rounds.wait_for_devices_s=3.0", "rounds.grace_s=1.0",
            "max_failed_rounds=2",
            "boards.cpu='auto'", f"fleet.groups={groups}", f"events={' '.join(OUTAGES.split())}",
        ],
    )  # fmt: skip
    said: list[str] = []
    progress = Progress(Console(file=sys.stderr), said.append)
    finished = run_scenario(scenario, RunOptions(tmp_path / "run"), progress)
    assert finished.succeeded, said
    lines = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["phase"] != "OUTSIDE"]
    assert sum(line["phase"] == "APPLIED" for line in rounds) >= 3
    happened = " | ".join(text for line in lines for text in line["events"])
    for text in (
        "device-01 went down, back in 2 s", "device-01 came up", "device-02 came up", "aggregator-3 went down",
        "aggregator-3 came up", "coordinator went down", "coordinator came up", "broker aggregator-2 restarted",
        "device-00 throttled to 50%", "device-00 back at full speed", "device-07 went dark: battery empty",
    ):  # fmt: skip
        assert text in happened, text
    boards = json.loads((tmp_path / "run/summary.json").read_text())["conditions"]["boards"]
    assert (boards["time"], boards["batteries"]) == ("emulated", 1)
    assert boards["self_check"]["measured"] == pytest.approx(boards["self_check"]["asked"], rel=0.1)
