"""`bench rounds`: its spread against numbers worked out by hand, and the file it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.benchmarks.rounds import measure_rounds, spread, write_measurements
from testbed.ledger.rounds import BytesDown, BytesUp, CoordinatorRound, DeviceRound, merge, write_rounds
from testbed.run import Finished
from testbed.summary import ARM, SeedRun, Sharing, Summary, arm_figures


def test_median_and_95th_percentile() -> None:
    assert spread([]) == (0.0, 0.0)
    assert spread([2.0]) == (2.0, 2.0)
    median, p95 = spread([float(value) for value in range(1, 22)])
    assert (median, p95) == (11.0, pytest.approx(20.0))


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    rounds = [
        CoordinatorRound(1, "APPLIED", accuracy=0.5, seconds={"collect": 1.0, "sum": 0.5, "total": 1.5}, density=1.0),
        CoordinatorRound(2, "APPLIED", accuracy=0.7, seconds={"collect": 3.0, "sum": 0.5, "total": 3.5}, density=0.2),
        CoordinatorRound(3, "FAILED", "late", seconds={"total": 60.0}),
    ]
    lines = [DeviceRound(n, "uploaded", up=BytesUp(100), down=BytesDown(40)) for n in (1, 2)]
    merged = merge(1, rounds, {"a": lines})
    write_rounds(tmp_path / "rounds.jsonl", merged)
    arm = arm_figures([SeedRun(merged, 70.0, Sharing(3, 2, 1))])
    summary = Summary(scenario="s", seeds=(1,), task="hapt", devices=1, emulated=True, arms={ARM: arm})
    figures = measure_rounds(Finished(summary, tmp_path, "fixture", False))
    assert (figures.round_s_median, figures.round_s_p95) == (2.5, pytest.approx(3.4))
    assert figures.phase_s == {"collect": 2.0, "sum": 0.5}
    assert (figures.uplink_bytes_per_device_round, figures.downlink_bytes_per_device_round) == (100.0, 40.0)
    assert (figures.rounds_applied, figures.rounds_failed, figures.succeeded) == (2, 1, False)
    target = tmp_path / "deep" / "bench.json"
    write_measurements(target, {"s": figures})
    body = json.loads(target.read_text())
    assert (body["schema"], body["benchmark"]) == (1, "rounds")
    assert body["scenarios"]["s"]["round_s_median"] == 2.5
