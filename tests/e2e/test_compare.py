"""`testbed compare`: the same numbers every time, also after an interruption, and other settings are refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e.test_testbed_run import of_run, until

from testbed.arms import ARMS
from testbed.ledger.rounds import read_rounds
from testbed.summary import Summary, read_summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: Two rungs, uneven weights, every kind of rounding: all that could differ from run to run, and must not.
SMALL = (
    "fleet.devices=6", "rounds.cohort=5", "rounds.count=3", "rounds.min_devices=3", 'task.data="fixture"',
    "rounds.wait_for_devices_s=90.0", "rounds.grace_s=30.0", "rounds.deadline_s=300.0",
    "fleet.adaptive=false", "pruning.dense_rounds=1", "pruning.final_round=3",
    "fleet.groups=[{rung_max=0}, {rung_max=1}]",
)  # fmt: skip


def command(out: Path, *more: str, overrides: tuple[str, ...] = SMALL) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "fedpruneshare.cli", "testbed", "compare", "demo", "--out", str(out), *sets, *more]


def run(out: Path, *more: str, overrides: tuple[str, ...] = SMALL) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *more, overrides=overrides), capture_output=True, text=True, timeout=800, check=False
    )


def numbers(out: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What must be the same in every run with these seeds: the model's score and the shares' first bytes."""
    rounds = read_rounds(out / "rounds.jsonl")
    return {
        (line.arm, line.round): (line.phase, line.accuracy, line.loss, line.up.shares, line.rungs, line.contributors)
        for line in rounds
    }


def finished_runs(out: Path) -> int:
    return sum(1 for _ in out.glob("arms/*/seed-*/report.html"))


def test_a_killed_comparison_goes_on_and_gives_the_same_numbers(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # In the middle of the second run: the first is finished, and two are not begun.
    second = killed / "arms" / "prune-only" / "seed-1" / "state" / "coordinator" / "rounds.jsonl"
    until(lambda: (second.exists() and second.stat().st_size > 0) or process.poll() is not None, 400)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    until(lambda: of_run(killed) == [], 60)
    assert finished_runs(killed) == 1
    first = (killed / "arms" / "fedavg" / "seed-1" / "summary.json").stat().st_mtime_ns

    again = run(killed)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "fedavg, seed 1: kept" in again.stdout
    assert (killed / "arms" / "fedavg" / "seed-1" / "summary.json").stat().st_mtime_ns == first
    uninterrupted = run(whole)
    assert uninterrupted.returncode == 0, uninterrupted.stderr + uninterrupted.stdout
    assert numbers(killed) == numbers(whole)
    check_summary(read_summary(killed / "summary.json"), read_summary(whole / "summary.json"))
    assert not list(killed.glob("**/state"))


def check_summary(one: Summary, other: Summary) -> None:
    assert list(one.arms) == list(ARMS) == list(other.arms)
    for arm, figures in one.arms.items():
        assert (figures.rounds_applied, figures.rounds_failed) == (3, 0)
        assert figures.final_accuracy == other.arms[arm].final_accuracy
        assert figures.uplink_share_bytes == other.arms[arm].uplink_share_bytes > 0
        assert (figures.sharing is None) == (arm in ("fedavg", "prune-only"))
        assert figures.density_final == (1.0 if arm in ("fedavg", "share-only") else pytest.approx(0.1, abs=0.01))
    up = {arm: figures.uplink_share_bytes for arm, figures in one.arms.items()}
    assert up["prune-only"] < up["fedpruneshare"] < up["share-only"] < up["fedavg"]


def test_all_arms_train_the_same_devices(tmp_path: Path) -> None:
    from testbed.ledger.device_lines import read_devices

    out = tmp_path / "compare"
    done = run(out, "--arms", "fedavg,fedpruneshare", "--jobs", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    lines = read_devices(out / "devices.jsonl")
    drawn = {
        arm: sorted((line.round, line.device) for line in lines if line.arm == arm and line.status == "uploaded")
        for arm in ("fedavg", "fedpruneshare")
    }
    assert drawn["fedavg"] == drawn["fedpruneshare"]
    assert len(drawn["fedavg"]) == 15  # five of six in each of three rounds
    assert len({device for _, device in drawn["fedavg"]}) == 6

    other = run(out, overrides=(*SMALL, "training.learning_rate=0.1"))
    assert other.returncode == 2
    assert "with other settings in training" in other.stderr
    assert finished_runs(out) == 2
