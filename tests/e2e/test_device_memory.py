"""A device as it runs on a board: a process of its own, started from the command line, in a real federation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.fleets import small_fleet

from edge_client.calibrating.footprint import STATUS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc"),
    pytest.mark.timeout(300),
]


def peak_mib(pid: int) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, "the device has ended"
    return int(found[1]) / 1024


def test_a_spawned_device_that_trains_lenet_stays_below_270_mib(tmp_path: Path) -> None:
    """Brokers, receiving, training, encoding, sharing: all of two rounds. No device forked from a warm parent."""
    with small_fleet(tmp_path, 'task.name="fashion-mnist"', "rounds.count=2") as fleet:
        for ident in fleet.aggregators:
            fleet.start_aggregator(ident)
        fleet.start_coordinator()
        first, *rest = fleet.devices
        command = [
            sys.executable,
            "-m",
            "fedpruneshare.cli",
            "device",
            "run",
            "--config",
            str(fleet.folder.config(first)),
        ]
        with (tmp_path / "device.log").open("wb") as log:
            device = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            for ident in rest:
                fleet.start_device(ident)
            fleet.wait_for(lambda: fleet.coordinator_exit() is not None, 250, "the end of the run")
            peak = peak_mib(device.pid)
        finally:
            device.terminate()
            device.wait(60)
    assert fleet.coordinator_exit() == 0
    assert "trained" in (tmp_path / "device.log").read_text(), "the device took no part"
    assert 100 < peak <= 270
