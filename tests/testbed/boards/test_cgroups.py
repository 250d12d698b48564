"""Control groups: found by trying, whichever version; the real ones here where this user may make them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpruneshare.errors import SettingsError
from testbed.boards import self_check
from testbed.boards.cgroups import ControlGroups, Make, open_groups, quota_us, sweep
from testbed.boards.processor import CpuGroups
from testbed.places import Place

V1 = {"cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"), "memory": ("memory.limit_in_bytes",)}
V2 = {"cpu": ("cpu.max",), "memory": ("memory.max", "memory.swap.max")}


def machine(root: Path, own: str, mounts: str) -> Path:
    """A machine's files, as far as control groups are looked for in them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mounts").write_text(mounts)
    return root


def kernel(allowed: Path, files: tuple[str, ...]) -> Make:
    """Makes groups as a kernel does: below one folder only, with `files` in them and in the groups below."""
    numbers = itertools.count()

    def make(prefix: str, folder: str) -> str:
        if Path(folder) != allowed:
            raise PermissionError(13, "Permission denied")
        made = Path(folder) / f"{prefix}{next(numbers)}"
        for place in (made, made / "probe", made / "device-00"):
            place.mkdir()
            for file in ("cgroup.procs", "cgroup.subtree_control", *files):
                (place / file).write_text("")
        return str(made)

    return make


def test_version_one_is_taken_where_it_holds_the_controller(tmp_path: Path) -> None:
    root = machine(tmp_path, "3:memory:/job\n1:cpu,cpuacct:/\n0::/job\n", "x /cg/cpu cgroup rw,cpu,cpuacct 0 0\n")
    (root / "cg/cpu").mkdir(parents=True)
    (groups,) = open_groups(["cpu"], root, kernel(root / "cg/cpu", V1["cpu"]))
    assert (groups.version, groups.folder.parent) == ("cgroup-v1", root / "cg/cpu")
    groups.hold_cpu("device-00", 0.1)
    assert (groups.folder / "device-00/cpu.cfs_quota_us").read_text() == "2000"
    assert (groups.folder / "device-00/cpu.cfs_period_us").read_text() == "20000"
    groups.release_cpu("device-00")
    assert (groups.folder / "device-00/cpu.cfs_quota_us").read_text() == "-1"


def test_version_two_goes_up_until_a_group_hands_its_controllers_down(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/user/session\n", "x /cg cgroup2 rw 0 0\n")
    (root / "cg/user/session").mkdir(parents=True)
    for folder in ("cg", "cg/user", "cg/user/session"):
        (root / folder / "cgroup.subtree_control").write_text("")
    cpu, memory = open_groups(["cpu", "memory"], root, kernel(root / "cg/user", (*V2["cpu"], *V2["memory"])))
    assert cpu.folder == memory.folder  # a process is in one group of version 2
    assert cpu.folder.parent == root / "cg/user"
    assert (cpu.folder / "cgroup.subtree_control").read_text() == "+cpu +memory"
    cpu.hold_cpu("device-00", 0.25)
    memory.limit_memory("device-00", 200)
    assert (cpu.folder / "device-00/cpu.max").read_text() == "2500 10000"
    assert (cpu.folder / "device-00/memory.max").read_text() == str(200 << 20)
    assert (cpu.folder / "device-00/memory.swap.max").read_text() == "0"
    (cpu.folder / "device-00/memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert memory.memory_kills("device-00") == 2


def test_what_was_tried_is_said_where_nothing_works(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", "x /cg cgroup2 rw 0 0\n")
    (root / "cg").mkdir()
    (root / "cg/cgroup.subtree_control").write_text("cpu")
    with pytest.raises(SettingsError, match=r"no control group for cpu: .*/cg: Permission denied"):
        open_groups(["cpu"], root, kernel(tmp_path / "elsewhere", V2["cpu"]))
    with pytest.raises(SettingsError, match=r"a group made here has no cpu\.max"):
        open_groups(["cpu"], root, kernel(root / "cg", V2["memory"]))
    with pytest.raises(SettingsError, match="no such controller is mounted"):
        open_groups(["cpu"], machine(tmp_path / "bare", "", ""))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, (10_000, 10_000)), (1 / 30, (2000, 60_000)), (0.005, (2000, 400_000)), (1e-4, (1000, 1_000_000))],
)
def test_a_quota_is_never_shorter_than_the_kernel_takes(share: float, expected: tuple[int, int]) -> None:
    assert quota_us(share) == expected


def test_only_what_a_run_that_is_gone_left_behind_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    for name in (f"fedpruneshare-{ended.pid}-a1b2", f"fedpruneshare-{os.getpid()}-a1b2", "somebody-else"):
        (tmp_path / name / "device-00").mkdir(parents=True)
    sweep(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {f"fedpruneshare-{os.getpid()}-a1b2", "somebody-else"}


# --------------------------------------------------------------------------- real ones


@pytest.fixture
def real() -> Iterator[Callable[..., list[ControlGroups]]]:
    opened: list[ControlGroups] = []

    def open_real(*wanted: str) -> list[ControlGroups]:
        try:
            opened.extend(open_groups(wanted))  # type: ignore[arg-type]
        except SettingsError as error:
            pytest.skip(f"needs control groups that this user may make: {error}")
        return opened

    yield open_real
    for groups in opened:
        groups.close()


def test_a_real_group_holds_a_process_to_its_share(
    real: Callable[..., list[ControlGroups]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "_TRIES", 12)  # on a crowded machine
    (groups,) = real("cpu")
    processor = CpuGroups(groups)
    assert processor.check(0.1) == pytest.approx(0.1, rel=0.1)
    processor.close()
    assert not groups.folder.exists()


def test_a_real_group_kills_what_needs_more_memory(real: Callable[..., list[ControlGroups]]) -> None:
    (groups,) = real("memory")
    folder = groups.add("device-00")
    groups.limit_memory("device-00", 64)
    command = Place(cgroups=(str(folder),)).command([sys.executable, "-S", "-c", "bytearray(b'x') * (200 << 20)"])
    assert subprocess.run(command, check=False).returncode == -9
    assert groups.memory_kills("device-00") == 1


def test_a_real_limit_may_be_raised_and_lowered(real: Callable[..., list[ControlGroups]]) -> None:
    """A device that starts again shares more or less with its parent than it did at first."""
    (groups,) = real("memory")
    groups.add("device-00")
    for mib in (100, 110, 90):
        groups.limit_memory("device-00", mib)
        name = "memory.max" if groups.version == "cgroup-v2" else "memory.limit_in_bytes"
        assert int((groups.folder / "device-00" / name).read_text()) == mib << 20
