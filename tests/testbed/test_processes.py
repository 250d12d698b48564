"""Child processes of a run: stopped by pid, killed, and never left behind by a parent that dies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedpruneshare.errors import RunError
from testbed.processes import Processes, tail

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
TIDY = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); {SLEEP}"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_up(processes: Processes, name: str) -> None:
    until(lambda: "up" in tail(processes.log(name)))


def test_stop_is_a_request_first_and_then_none(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    for name, code in (("tidy", TIDY), ("stubborn", STUBBORN), ("over", "print('up')")):
        processes.start(name, python(code))
        wait_up(processes, name)
    until(lambda: not processes.is_running("over"))
    processes.stop(["tidy", "over"], grace_s=60.0)
    processes.stop(processes.names(), grace_s=0.5)
    assert processes.exit_code("tidy") == 5
    assert processes.exit_code("stubborn") == -9
    assert processes.exit_code("over") == 0
    processes.stop(processes.names(), grace_s=0.5)


def test_a_killed_process_is_gone_and_can_be_started_again(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    first = processes.start("service", python(SLEEP))
    with pytest.raises(RunError, match="service runs already"):
        processes.start("service", python(SLEEP))
    processes.kill("service")
    assert not processes.is_running("service")
    assert processes.exit_code("service") == -9
    assert not psutil.pid_exists(first)
    assert processes.start("service", python(SLEEP)) != first
    assert processes.is_running("service")
    processes.stop(["service"], grace_s=5.0)


def test_one_thread_for_numeric_libraries_and_no_standard_input(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("child", python("import os, sys; print(os.environ['OMP_NUM_THREADS'], repr(sys.stdin.read()))"))
    until(lambda: not processes.is_running("child"))
    assert tail(processes.log("child")) == "1 ''"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from testbed.processes import Processes
processes = Processes(Path({str(tmp_path)!r}))
print(processes.start("child", [sys.executable, "-c", {STUBBORN!r}]), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: "up" in tail(tmp_path / "child.log"))
        assert psutil.pid_exists(child)
        parent.kill()
    until(lambda: is_gone(child))


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    stranger = subprocess.run(
        [sys.executable, "-m", "testbed.orphans", "1", *python("print('ran')")],
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert stranger.returncode == 1
    assert stranger.stdout == b""


def test_tail_gives_the_end_and_nothing_for_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"1\n2\n\xff3\n")
    assert tail(tmp_path / "a.log", 2) == "2\n\ufffd3"
    assert tail(tmp_path / "b.log") == ""
