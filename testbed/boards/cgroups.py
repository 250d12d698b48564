"""Control groups of a run, one a device: version 1 or 2, whichever holds the controller and lets a group be made.

Nothing is assumed from what is mounted: `open_groups` makes a folder below the group this process is in (or the
nearest above it that allows it), and what the kernel then puts there decides.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from fedpruneshare.errors import SettingsError

Controller = Literal["cpu", "memory"]
Version = Literal["cgroup-v1", "cgroup-v2"]

_PREFIX: Final = "fedpruneshare-"
#: What a group may use at once, and the shortest and longest period, in microseconds. Whoever waited may use a whole
#: quota at once, so it is short: 2 ms make a piece of work of 30 ms look a tenth quicker, the kernel's 100 ms period a
#: half. With 1 ms, work on a loaded machine took a tenth longer than it should.
_QUOTA_US, _LEAST_PERIOD_US, _LONGEST_PERIOD_US = 2_000, 10_000, 1_000_000
_LEAST_QUOTA_US: Final = 1_000
_MIB: Final = 1 << 20
#: The file that tells that a controller is there, by version.
_SIGN: Final = {
    ("cpu", "cgroup-v1"): "cpu.cfs_quota_us",
    ("memory", "cgroup-v1"): "memory.limit_in_bytes",
    ("cpu", "cgroup-v2"): "cpu.max",
    ("memory", "cgroup-v2"): "memory.max",
}
_REMOVE_TIMEOUT_S: Final = 2.0
#: Makes a new folder with a prefix in a folder, as `tempfile.mkdtemp` does.
Make = Callable[[str, str], str]


def quota_us(share: float) -> tuple[int, int]:
    """Quota and period that give a share of one core; the kernel takes no quota below a millisecond."""
    period = min(_LONGEST_PERIOD_US, max(_LEAST_PERIOD_US, round(_QUOTA_US / share)))
    return max(_LEAST_QUOTA_US, round(share * period)), period


@dataclass(frozen=True)
class ControlGroups:
    """Groups of one controller below one folder of this run."""

    controller: Controller
    version: Version
    folder: Path

    def add(self, name: str) -> Path:
        """Make a group and return its folder."""
        group = self.folder / name
        group.mkdir(exist_ok=True)
        return group

    def hold_cpu(self, name: str, share: float) -> None:
        """Allow the processes of a group so much of one core. Raises `OSError`."""
        quota, period = quota_us(share)
        if self.version == "cgroup-v2":
            self._write(name, "cpu.max", f"{quota} {period}")
        else:
            self._write(name, "cpu.cfs_period_us", str(period))
            self._write(name, "cpu.cfs_quota_us", str(quota))

    def release_cpu(self, name: str) -> None:
        """No limit any more. Raises `OSError`."""
        self._write(name, *(("cpu.max", "max") if self.version == "cgroup-v2" else ("cpu.cfs_quota_us", "-1")))

    def limit_memory(self, name: str, mib: int) -> None:
        """Kill the processes of a group when they need more, swap included. Raises `OSError`."""
        if self.version == "cgroup-v2":
            self._write(name, "memory.max", str(mib * _MIB))
            self._write_if_there(name, "memory.swap.max", "0")
        else:
            # Memory with swap may at no time be less than memory, whichever way the limit goes at a second start.
            self._write_if_there(name, "memory.memsw.limit_in_bytes", "-1")
            self._write(name, "memory.limit_in_bytes", str(mib * _MIB))
            self._write_if_there(name, "memory.memsw.limit_in_bytes", str(mib * _MIB))

    def memory_kills(self, name: str) -> int:
        """How many processes of a group were killed for want of memory."""
        file = "memory.events" if self.version == "cgroup-v2" else "memory.oom_control"
        found = re.search(r"^oom_kill (\d+)$", (self.folder / name / file).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    def close(self) -> None:
        """Remove the groups; what still holds a process stays, and the next run removes it."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while not _removed(self.folder) and time.monotonic() < deadline:
            time.sleep(0.02)  # a killed process leaves its group a moment after it was waited for

    def _write(self, name: str, file: str, text: str) -> None:
        (self.folder / name / file).write_text(text)

    def _write_if_there(self, name: str, file: str, text: str) -> None:
        if (self.folder / name / file).exists():
            self._write(name, file, text)


# --------------------------------------------------------------------------- finding out what there is


def open_groups(wanted: Sequence[Controller], root: Path = Path("/"), make: Make | None = None) -> list[ControlGroups]:
    """Groups for every controller in `wanted`. Raises `SettingsError` with what was tried.

    `root` and `make` are for tests: where /proc and /sys lie, and how a folder comes to be.
    """
    found: list[ControlGroups] = []
    tried: list[str] = []
    make = make or (lambda prefix, folder: tempfile.mkdtemp(prefix=prefix, dir=folder))
    for controllers, version, candidates in _hierarchies(wanted, root):
        folder = _first_that_works(controllers, version, candidates, make, tried)
        if folder is not None:
            found += [ControlGroups(controller, version, folder) for controller in controllers]
    missing = [name for name in wanted if name not in {groups.controller for groups in found}]
    if missing:
        for groups in found:
            groups.close()
        reason = "; ".join(tried) or "no such controller is mounted"
        raise SettingsError(f"no control group for {' and '.join(missing)}: {reason}")
    return found


def _hierarchies(wanted: Sequence[Controller], root: Path) -> Iterator[tuple[list[Controller], Version, list[Path]]]:
    """Where each controller lives, and in which folders a group may be made, best first.

    A process is in one group of version 2, so the controllers that live there share it.
    """
    mounts = _mounts(root)
    own = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2]
    rest: list[Controller] = []
    for controller in wanted:
        path = next((line[2] for line in own if controller in line[1].split(",")), None)
        mount = next((where for where, kind, options in mounts if kind == "cgroup" and controller in options), None)
        if path is None or mount is None:
            rest.append(controller)
        else:
            yield [controller], "cgroup-v1", list(_upwards(root / mount, path))
    mount = next((where for where, kind, _ in mounts if kind == "cgroup2"), None)
    path = next((line[2] for line in own if line[0] == "0" and not line[1]), None)
    if rest and mount is not None and path is not None:
        yield rest, "cgroup-v2", list(_upwards(root / mount, path))


def _mounts(root: Path) -> list[tuple[str, str, list[str]]]:
    lines = (line.split() for line in _text(root / "proc/self/mounts").splitlines())
    return [(line[1].lstrip("/"), line[2], line[3].split(",")) for line in lines if len(line) >= 4]


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    inside = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
    yield from (mount / part for part in (inside, *inside.parents) if (mount / part).is_dir())


def _first_that_works(
    controllers: Sequence[Controller], version: Version, candidates: Sequence[Path], make: Make, tried: list[str]
) -> Path | None:
    for candidate in candidates:
        folder: Path | None = None
        try:
            sweep(candidate)
            if version == "cgroup-v2":
                _enable(candidate, controllers)
            folder = Path(make(f"{_PREFIX}{os.getpid()}-", str(candidate)))
            if version == "cgroup-v2":
                _enable(folder, controllers)
            _try_out(folder, controllers, version)
        except OSError as error:
            tried.append(f"{candidate}: {error.strerror or error}")
            if folder is not None:
                _removed(folder)
        else:
            return folder
    return None


def _enable(folder: Path, controllers: Sequence[Controller]) -> None:
    """Hand controllers down to the groups below; only the root may do so and hold processes, too."""
    file = folder / "cgroup.subtree_control"
    if not set(controllers) <= set(_text(file).split()):
        file.write_text(" ".join(f"+{name}" for name in controllers))


def _try_out(folder: Path, controllers: Sequence[Controller], version: Version) -> None:
    """Make a group and limit it. Raises `OSError`."""
    for controller in controllers:
        groups = ControlGroups(controller, version, folder)
        probe = groups.add("probe")
        try:
            if not (probe / _SIGN[controller, version]).exists():
                raise FileNotFoundError(0, f"a group made here has no {_SIGN[controller, version]}")
            if controller == "cpu":
                groups.hold_cpu("probe", 0.5)
            else:
                groups.limit_memory("probe", 64)
        finally:
            _remove(probe)


def sweep(folder: Path) -> None:
    """Remove the groups that earlier runs left here: those of a process that is gone, with nothing running in them."""
    for left in folder.glob(f"{_PREFIX}*"):
        found = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", left.name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            _removed(left)


def _removed(folder: Path) -> bool:
    """Whether a folder of groups is gone; rmdir refuses where a process is."""
    for group in folder.iterdir() if folder.is_dir() else ():
        if group.is_dir():
            _remove(group)
    _remove(folder)
    return not folder.exists()


def _remove(group: Path) -> None:
    with suppress(OSError):
        group.rmdir()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


__all__ = ["ControlGroups", "Controller", "open_groups", "quota_us", "sweep"]
