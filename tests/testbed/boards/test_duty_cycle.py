"""Stopping and continuing: the account, and real processes that compute, wait, end, or are let go."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.boards import self_check
from testbed.boards.clocks import cpu_s
from testbed.boards.duty_cycle import Account, DutyCycle, Keeper
from testbed.boards.processor import CpuDutyCycle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: processor clocks of other processes")


@given(share=st.floats(0.01, 0.9), looks=st.lists(st.floats(0.001, 0.05), min_size=1, max_size=8))
def test_a_busy_process_gets_its_share_however_often_it_is_looked_at(share: float, looks: list[float]) -> None:
    """Used is share · time at every moment, but for what one look let slip and half a period's worth saved up."""
    account, now_s, used_s = Account(share, 0.0, 0.0), 0.0, 0.0
    for length_s in looks * (200 // len(looks)):
        now_s += length_s
        used_s += 0.0 if account.is_stopped else length_s
        account.is_stopped = account.look(now_s, used_s)
        assert abs(used_s - share * now_s) <= max(*looks, 0.1 * share, 0.0) + 1e-9


def test_a_process_that_waits_is_never_stopped_and_saves_up_no_more_than_a_period() -> None:
    account = Account(0.2, 0.0, 0.0)
    assert not account.look(100.0, 0.0)
    assert account.earned_s == pytest.approx(0.02)
    assert not account.look(100.02, 0.02)
    assert account.look(100.03, 0.03)


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        yield process
        process.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def until_stopped(pid: int, *, is_stopped: bool) -> None:
    deadline = time.monotonic() + 60
    while (state(pid) == "T") is not is_stopped:
        assert time.monotonic() < deadline, f"process {pid} is in state {state(pid)}"
        time.sleep(0.001)


def test_a_real_process_is_held_to_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_TRIES", 12)  # on a crowded machine
    processor = CpuDutyCycle(tmp_path / "keeper.log")
    try:
        assert processor.check(0.1) == pytest.approx(0.1, rel=0.1)
    finally:
        processor.close()


def test_what_is_stopped_is_continued_when_let_go_and_when_the_keeper_ends(
    tmp_path: Path, busy: subprocess.Popen[bytes]
) -> None:
    with DutyCycle(tmp_path / "keeper.log") as keeper:
        keeper.hold(busy.pid, 0.01)
        until_stopped(busy.pid, is_stopped=True)
        keeper.hold(busy.pid, None)
        until_stopped(busy.pid, is_stopped=False)
        keeper.hold(busy.pid, 0.01)
        until_stopped(busy.pid, is_stopped=True)
    until_stopped(busy.pid, is_stopped=False)


def test_a_process_that_ends_is_forgotten(busy: subprocess.Popen[bytes]) -> None:
    keeper = Keeper()
    keeper.hold(busy.pid, 0.5)
    busy.kill()
    busy.wait()
    keeper.look()
    keeper.hold(busy.pid, 0.5)
    keeper.look()
    assert cpu_s(busy.pid) is None
    assert not keeper._held
