"""How rounds and runs end: early, FAILED with the old model, with a model file that anybody can load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from e2e.fleets import SMALL, coordinator_rows, held, query, small_fleet, start

from coordinator.evaluation import Evaluator
from fedpruneshare.bundle import Bundle
from fedpruneshare.sparse.onnx_codec import build_model, read_model
from testbed.summary import ARM, read_summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
NAMES = ("aggregator-1", "aggregator-2", "aggregator-3")
ROOT = Path(__file__).resolve().parents[2]


def test_a_round_closes_when_all_have_uploaded_not_at_its_deadline(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=2", "rounds.deadline_s=3600", "rounds.grace_s=600") as fleet:
        start(fleet)
        assert fleet.wait_done(250) == 0  # far below the deadline, and below the grace time too
        assert [line.phase for line in fleet.rounds()] == ["APPLIED", "APPLIED"]


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (2, 0)])
def test_too_few_devices_fail_the_round_and_keep_the_model(tmp_path: Path, allowed: int, code: int) -> None:
    """Three of eight are silent: they are in the cohort (of round 1 at least), and never upload."""
    overrides = ("rounds.count=2", "rounds.deadline_s=20", "rounds.min_devices=6", f"max_failed_rounds={allowed}")
    with small_fleet(tmp_path / "run", *overrides) as fleet:
        with held(fleet, "device-00", "device-01", "device-02"):
            for device in ("device-00", "device-01", "device-02"):
                fleet.kill_device(device)
        assert fleet.wait_done(250) == code
        rounds = fleet.rounds()
        assert [line.phase for line in rounds] == ["FAILED"] * (2 if allowed else 1)
        reason = "5 devices uploaded to k aggregators, expected min_devices = 6"
        assert [line.reason for line in rounds] == [reason] * len(rounds)
        assert [(line.accuracy, line.contributors) for line in rounds] == [(None, 0)] * len(rounds)
        ((applied, coded, vectors),) = coordinator_rows(fleet, "SELECT applied, coded, vectors FROM models")
        bundle = Bundle.open(fleet.folder.bundle)
        data = (fleet.folder.store("coordinator") / "model.onnx").read_bytes()
        sums = [query(fleet.folder.store(name) / "shares.sqlite", "SELECT sum FROM rounds") for name in NAMES]
    assert applied == 0
    assert coded == bundle.weights.astype("<f2").tobytes()
    assert vectors == bundle.vectors.astype("<f4").tobytes()
    arrays = read_model(data, bundle.manifest.table, max_bytes=10_000_000)
    weights, _ = bundle.manifest.table.flatten({p.name: arrays[p.name] for p in bundle.manifest.table.parameters})
    assert weights.astype("<f2").tobytes() == coded
    assert {row for rows in sums for row in rows} == {(None,)}  # nothing was summed


def test_the_model_file_loads_anywhere_and_scores_as_reported(tmp_path: Path) -> None:
    fast = ("rounds.count=4", "pruning.dense_rounds=0", "pruning.final_round=2", "training.local_epochs=2")
    with small_fleet(tmp_path / "run", *fast) as fleet:
        start(fleet)
        assert fleet.wait_done(250) == 0
        rounds = fleet.rounds()
        bundle = Bundle.open(fleet.folder.bundle)
        data = (fleet.folder.store("coordinator") / "model.onnx").read_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    evaluation = Evaluator(bundle.template, bundle.test_inputs, bundle.test_targets).score_file(data)
    assert evaluation.metric == pytest.approx(rounds[-1].accuracy, abs=1e-9)
    session = onnxruntime.InferenceSession(data)  # as anybody would use it
    (scores,) = session.run(None, {session.get_inputs()[0].name: bundle.test_inputs})
    assert np.mean(scores.argmax(axis=1) == bundle.test_targets) == pytest.approx(rounds[-1].accuracy, abs=1e-9)
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
    ended = run_testbed("demo", "--out", str(out), "--task", str(ROOT / "examples" / "tool_wear.py"), *sets)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = read_summary(out / "summary.json")
    assert summary.task.endswith("tool_wear.py")
    assert summary.arms[ARM].rounds_applied == 2


def test_ten_mistakes_in_a_scenario_are_ten_messages(tmp_path: Path) -> None:
    path, out = tmp_path / "mine.toml", tmp_path / "run"
    path.write_text(TEN_MISTAKES)
    ended = run_testbed(str(path), "--out", str(out))
    assert ended.returncode == 2
    assert "10 mistakes" in ended.stderr
    messages = [line.strip() for line in ended.stderr.splitlines() if ": found" in line or "no such key" in line]
    assert len(messages) == 10
    for key, message in zip(MISTAKEN, sorted(messages), strict=True):
        assert message.startswith(f"{key}: "), message
        assert "expected" in message
    assert "did you mean 'rounds.count'?" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert not out.exists()


TEN_MISTAKES = """
max_failed_rounds = -1
[task]
name = "hatp"
[fleet]
devices = "many"
[brokers]
kind = "iotcore"
[rounds]
cuont = 4
deadline_s = "soon"
[sharing]
threshold = 9
prg = "rc4"
[pruning]
target_density = 1.5
[coding]
chunk_bytes = 1001
"""
MISTAKEN = (
    "brokers.kind", "coding.chunk_bytes", "fleet.devices", "max_failed_rounds", "pruning.target_density",
    "rounds.cuont", "rounds.deadline_s", "sharing.prg", "sharing.threshold", "task.name",
)  # fmt: skip


def test_mistakes_on_the_command_line_end_with_2(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for arguments, words in (
        (("demo", "--out", str(tmp_path)), "not empty"),
        (("dmeo", "--out", str(tmp_path / "run")), "did you mean 'demo'?"),
        (("demo", "--out", str(tmp_path / "run"), "--set", "rounds.cuont=3"), "did you mean 'rounds.count'?"),
        (("demo", "--out", str(tmp_path / "run"), "--task", "no_such_task.py"), "no_such_task.py"),
    ):
        ended = run_testbed(*arguments)
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
    assert {entry.name for entry in tmp_path.iterdir()} <= {"thesis.txt", "run"}
    assert list((tmp_path / "run").iterdir()) == []  # as good as new for the next try


def run_testbed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    command = [sys.executable, "-m", "fedpruneshare.cli", "testbed", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
