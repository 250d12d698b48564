"""Places: a process enters its namespace and control groups before it does anything else, however it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpruneshare.errors import SettingsError
from firmware_configs.brokers.namespaces import call_in_network, is_private
from testbed.places import Place

HERE = "/proc/self/ns/net"
KEEPER = """
from firmware_configs.brokers.namespaces import new_network
new_network()
print("up", flush=True)
input()
"""
REPORT = "import os; print(os.getpid(), os.stat('/proc/self/ns/net').st_ino)"
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can make network namespaces"
)


def test_no_place_changes_nothing() -> None:
    assert not Place()
    assert Place().command(["program", "-x"]) == ["program", "-x"]
    assert Place.from_json(Place("/a", ("/b", "/c")).to_json()) == Place("/a", ("/b", "/c"))


def test_a_process_joins_its_control_groups_first(tmp_path: Path) -> None:
    groups = [tmp_path / name for name in ("cpu", "memory")]
    for group in groups:
        group.mkdir()
    command = Place(cgroups=tuple(map(str, groups))).command([sys.executable, "-c", REPORT])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=250)
    assert output.split()[0] == str(process.pid)
    assert [(group / "cgroup.procs").read_text() for group in groups] == [f"{process.pid}\n"] * 2


def test_what_cannot_be_entered_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"control group .*absent"):
        Place(cgroups=(str(tmp_path / "absent"),)).enter()
    with pytest.raises(SettingsError, match=r"network namespace .*absent"):
        call_in_network(str(tmp_path / "absent"), os.getpid)
    command = Place(namespace=str(tmp_path / "absent")).command([sys.executable, "-c", REPORT])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("network namespace")
    assert ended.stdout == ""


@needs_root
def test_a_process_and_a_call_in_another_namespace() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        other = f"/proc/{keeper.pid}/ns/net"
        inode = os.stat(other).st_ino
        assert is_private(other)
        assert not is_private(HERE)
        command = Place(namespace=other).command([sys.executable, "-c", REPORT])
        output = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True).stdout
        assert output.split()[1] == str(inode)
        assert call_in_network(other, lambda: os.stat("/proc/thread-self/ns/net").st_ino) == inode
        assert os.stat("/proc/thread-self/ns/net").st_ino != inode
        keeper.communicate("end\n", timeout=250)
