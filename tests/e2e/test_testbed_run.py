"""`testbed run` as a user starts it: a whole fleet on the shipped sample, its run folder, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from testbed.ledger.rounds import read_rounds
from testbed.report.page import REPORT_FILES
from testbed.summary import ARM, read_summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SMALL = (
    "fleet.devices=6", "rounds.cohort=6", "rounds.count=3", "rounds.min_devices=4", 'task.data="fixture"',
    "rounds.wait_for_devices_s=90.0", "rounds.grace_s=30.0", "rounds.deadline_s=300.0",
)  # fmt: skip


def command(out: Path, *overrides: str) -> list[str]:
    sets = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    return [sys.executable, "-m", "fedpruneshare.cli", "testbed", "run", "demo", "--out", str(out), *sets]


def of_run(out: Path) -> list[psutil.Process]:
    """Living processes whose command line names the run's folder: services, zygote, devices and brokers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(str(out) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_rounds(out: Path, count: int) -> Callable[[], bool]:
    path = out / "state" / "coordinator" / "rounds.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= count


def test_a_run_fills_its_folder_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = subprocess.run(command(out), capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert of_run(out) == []
    assert {entry.name for entry in out.iterdir()} == {
        "summary.json", "rounds.jsonl", "devices.jsonl", "progress.json", *REPORT_FILES, "model.onnx", "settings.toml",
        "logs",
    }  # fmt: skip
    summary = read_summary(out / "summary.json")
    arm = summary.arms[ARM]
    assert (summary.scenario, summary.task, summary.devices, summary.emulated) == ("demo", "hapt", 6, True)
    assert (arm.rounds_applied, arm.rounds_failed, arm.verified) == (3, 0, True)
    rounds = read_rounds(out / "rounds.jsonl")
    assert [line.phase for line in rounds] == ["OUTSIDE", "APPLIED", "APPLIED", "APPLIED"]
    assert all(line.devices == {"uploaded": 6} for line in rounds[1:])
    assert rounds[-1].uplink_bytes_so_far == arm.uplink_bytes > arm.uplink_share_bytes > 0
    assert "small sample" in ended.stdout
    assert "round 3 of 3: APPLIED" in ended.stdout
    assert str(out / "report.html") in ended.stdout
    assert not any(b'"signing"' in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_where_single_updates_are_visible_everybody_says_so(tmp_path: Path) -> None:
    """Plan, settings, logs of all three roles, summary, report and the last lines of the command."""
    out = tmp_path / "run"
    ended = subprocess.run(
        command(out, 'sharing.reveal="each"', "rounds.count=1"),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "the coordinator saw every single update (reveal = each)" in ended.stdout
    sharing = read_summary(out / "summary.json").arms[ARM].sharing
    assert (sharing.n, sharing.k, sharing.t, sharing.reveal) == (3, 2, 1, "each")  # type: ignore[union-attr]
    assert [line.reveal for line in read_rounds(out / "rounds.jsonl")][1:] == ["each"]
    assert "Single updates are visible." in (out / "report.html").read_text()
    for log, event in (
        ("coordinator", "updates-revealed"),
        ("aggregator-1", "updates-revealed"),
        ("device-00", "update-revealed"),
    ):
        assert event in (out / "logs" / f"{log}.log").read_text(), log


def test_too_many_failed_rounds_end_with_1_and_a_full_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    hasty = ("rounds.deadline_s=0.05", "rounds.grace_s=0.1", "max_failed_rounds=1")
    ended = subprocess.run(command(out, *hasty), capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 1, ended.stderr + ended.stdout
    body = json.loads((out / "summary.json").read_text())["arms"][ARM]
    assert (body["rounds_applied"], body["rounds_failed"], body["density_final"]) == (0, 2, 1.0)
    assert 0 < body["final_accuracy"] < 0.5  # that of the model before the first round
    assert "FAILED" in (out / "report.html").read_text()
    assert (out / "model.onnx").is_file()
    assert of_run(out) == []


@pytest.fixture
def obedient() -> Iterator[None]:
    """Who is started by a process that ignores a signal ignores it, too: this one may run under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("obedient")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -9)]
)
def test_however_a_run_is_ended_nothing_is_left_running(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(command(out, "rounds.count=1000"), stderr=subprocess.PIPE) as parent:
        try:
            until(has_rounds(out, 1), 120)
            assert len(of_run(out)) >= 1 + 4 + 3 + 1 + 1 + 6  # itself, brokers, services, zygote, devices
            parent.send_signal(number)
            assert parent.wait(120) == code
        finally:
            parent.kill()  # a run of a thousand rounds must not outlive a test that has failed
    until(lambda: of_run(out) == [], 60)
    assert number == signal.SIGKILL or not (out / "state" / "keys").exists()
    assert os.path.exists(out / "logs" / "coordinator.log")
