"""How rounds and runs end: early, FAILED with the old model, with a model file that anybody can load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from e2e.fleets import SMALL, begun_rounds, coordinator_rows, small_fleet, start

from coordinator.evaluation import Evaluator
from fedpruneshare.bundle import Bundle
from fedpruneshare.sparse.onnx_codec import build_model, read_model
from testbed.summary import ARM, read_summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(170)]
ROOT = Path(__file__).resolve().parents[2]


def test_a_round_closes_when_all_have_uploaded_not_at_its_deadline(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=3600", "rounds.grace_s=600") as fleet:
        start(fleet)
        assert fleet.wait_done(60) == 0  # far below the deadline, and below the grace time too
        assert [line.phase for line in fleet.rounds()] == ["APPLIED", "APPLIED"]


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (2, 0)])
def test_too_few_devices_fail_the_round_and_keep_the_model(tmp_path: Path, allowed: int, code: int) -> None:
    overrides = ("rounds.count=2", "rounds.deadline_s=4", "rounds.wait_for_devices_s=5", "rounds.min_devices=6")
    with small_fleet(tmp_path / "run", *overrides, f"max_failed_rounds={allowed}") as fleet:
        pids = start(fleet)
        assert pids
        fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 60, "the first plan")
        for device in ("device-00", "device-01", "device-02"):
            fleet.kill_device(device)
        assert fleet.wait_done(60) == code
        rounds = fleet.rounds()
        failed = [line for line in rounds if line.phase == "FAILED"]
        assert failed
        assert "expected min_devices = 6" in failed[0].reason or "expected at least min_devices = 6" in failed[0].reason
        applied = len(rounds) - len(failed)
        models = coordinator_rows(fleet, "SELECT MAX(applied) FROM models")
        assert models == [(applied,)]
        assert len(rounds) == (2 if allowed else applied + 1)


def test_the_model_file_loads_anywhere_and_scores_as_reported(tmp_path: Path) -> None:
    fast = ("rounds.count=4", "pruning.dense_rounds=0", "pruning.final_round=2", "training.local_epochs=2")
    with small_fleet(tmp_path / "run", *fast) as fleet:
        start(fleet)
        assert fleet.wait_done(90) == 0
        rounds = fleet.rounds()
        bundle = Bundle.open(fleet.folder.bundle)
        data = (fleet.folder.store("coordinator") / "model.onnx").read_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    evaluation = Evaluator(bundle.template, bundle.test_inputs, bundle.test_targets).score_file(data)
    assert evaluation.metric == pytest.approx(rounds[-1].accuracy, abs=1e-9)
    table = bundle.manifest.table
    arrays = read_model(data, table, max_bytes=10_000_000)
    weights, _ = table.flatten({p.name: arrays[p.name] for p in table.parameters})
    assert (weights != 0).sum() / weights.size <= 0.11
    dense = build_model(bundle.template, arrays, sparse_above=1.0)
    assert len(data) < len(dense) / 2


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    sets = [
        part
        for override in (*SMALL[:-2], "rounds.count=2", "fleet.devices=6", "rounds.cohort=6")
        for part in ("--set", override)
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "fedpruneshare.cli", "testbed", "run", "demo", "--out", str(out),
         "--task", str(ROOT / "examples" / "tool_wear.py"), *sets],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = read_summary(out / "summary.json")
    assert summary.task.endswith("tool_wear.py")
    assert summary.arms[ARM].rounds_applied == 2
