"""The forked devices: started, signalled, watched and stopped through their zygote, with trivial work in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedpruneshare.errors import RunError, TaskError
from testbed.devices import DeviceProcesses

ZYGOTE = """
import os, random, signal, sys, threading, time
import numpy as np
from pathlib import Path
from fedpruneshare.errors import TaskError
from testbed.zygote import Work, serve

def prepare():
    if sys.argv[1] == "broken":
        raise TaskError("no such task: broken")
    if sys.argv[1] == "threaded":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("a task that prints")
    return Work(device, export)

def device(name, settings):
    text = settings.read_text()
    if text == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"{name} {os.getpid()}", flush=True)
    if text.startswith("end "):
        return int(text.split()[1])
    if text == "draw":
        print(np.random.random(), random.random())
        return 0
    if text == "raise":
        raise ValueError("device broke")
    settings.with_suffix(".ready").touch()
    time.sleep(60)
    return 0

def export(seed, bundle):
    if seed == 13:
        raise TaskError("the model cannot be exported")
    if seed == 14:
        os._exit(3)
    bundle.write_text(f"bundle of {seed}")

sys.exit(serve(prepare))
"""


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[DeviceProcesses]:
    processes = make(tmp_path)
    processes.launch("task", tmp_path)
    yield processes
    processes.stop(1.0)


def make(folder: Path) -> DeviceProcesses:
    script = folder / "zygote.py"
    script.write_text(ZYGOTE)
    return DeviceProcesses(folder, (sys.executable, str(script)))


def settings(folder: Path, text: str) -> Path:
    file = folder / f"{text.replace(' ', '-')}.toml"
    file.write_text(text)
    return file


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_devices_run_end_and_start_again(devices: DeviceProcesses, tmp_path: Path) -> None:
    devices.wait_ready()
    first = devices.start("device-00", settings(tmp_path, "run"))
    devices.start("device-01", settings(tmp_path, "end 3"))
    devices.start("device-02", settings(tmp_path, "raise"))
    until(lambda: set(devices.ended()) == {"device-01", "device-02"})
    assert devices.ended() == {"device-01": 3, "device-02": 1}
    assert "device broke" in (tmp_path / "device-02.log").read_text()
    assert devices.is_running("device-00")
    with pytest.raises(RunError, match="device-00 runs already"):
        devices.start("device-00", settings(tmp_path, "run"))
    devices.kill("device-00")
    assert devices.exit_code("device-00") == -9
    assert not psutil.pid_exists(first)
    second = devices.start("device-00", settings(tmp_path, "run"))
    assert second != first
    assert devices.is_running("device-00")
    assert "device-00" not in devices.ended()


def test_children_have_a_log_each_and_the_zygote_keeps_its_own(devices: DeviceProcesses, tmp_path: Path) -> None:
    devices.wait_ready()
    pid = devices.start("device-00", settings(tmp_path, "end 0"))
    until(lambda: devices.ended() == {"device-00": 0})
    assert (tmp_path / "device-00.log").read_text() == f"device-00 {pid}\n"
    assert (tmp_path / "zygote.log").read_text() == "a task that prints\n"


def test_stop_ends_even_a_device_that_ignores_it(tmp_path: Path) -> None:
    devices = make(tmp_path)
    devices.launch("task", tmp_path)
    devices.wait_ready()
    stubborn = settings(tmp_path, "stubborn")
    pids = [devices.start("device-00", stubborn), devices.start("device-01", settings(tmp_path, "run"))]
    until(stubborn.with_suffix(".ready").exists)
    devices.stop(0.5)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    devices.stop(0.5)


def test_the_bundle_is_exported_in_a_child_and_reasons_come_back(devices: DeviceProcesses, tmp_path: Path) -> None:
    devices.wait_ready()
    devices.export(7, tmp_path / "task.bundle")
    assert (tmp_path / "task.bundle").read_text() == "bundle of 7"
    with pytest.raises(TaskError, match="cannot be exported"):
        devices.export(13, tmp_path / "task.bundle")
    with pytest.raises(TaskError, match="ended with code 3"):
        devices.export(14, tmp_path / "task.bundle")
    devices.export(8, tmp_path / "task.bundle")
    assert (tmp_path / "task.bundle").read_text() == "bundle of 8"


def test_an_unusable_task_and_a_thread_left_behind_are_refused(tmp_path: Path) -> None:
    broken = make(tmp_path)
    broken.launch("broken", tmp_path)
    with pytest.raises(TaskError, match="no such task: broken"):
        broken.wait_ready()
    broken.stop(1.0)
    threaded = make(tmp_path)
    threaded.launch("threaded", tmp_path)
    with pytest.raises(RunError, match="2 threads after the warm-up"):
        threaded.wait_ready()
    threaded.stop(1.0)


def test_with_the_zygote_its_devices_end(devices: DeviceProcesses, tmp_path: Path) -> None:
    devices.wait_ready()
    pid = devices.start("device-00", settings(tmp_path, "run"))
    zygote = psutil.Process(pid).parent()
    assert zygote is not None
    zygote.kill()
    until(lambda: devices.exit_code("device-00") == -9)
    until(lambda: not psutil.pid_exists(pid))
    with pytest.raises(RunError, match="has ended"):
        devices.start("device-01", settings(tmp_path, "run"))


def test_no_two_devices_draw_the_same_numbers_from_global_generators(devices: DeviceProcesses, tmp_path: Path) -> None:
    devices.wait_ready()
    for name in ("device-00", "device-01"):
        devices.start(name, settings(tmp_path, "draw"))
    until(lambda: devices.ended() == {"device-00": 0, "device-01": 0})
    first, second = ((tmp_path / f"{name}.log").read_text().split()[2:] for name in ("device-00", "device-01"))
    assert len(first) == len(second) == 2
    assert first[0] != second[0]
    assert first[1] != second[1]
