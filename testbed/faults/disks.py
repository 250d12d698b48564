"""Disks of a few megabytes that can be filled to the last byte: a tmpfs under a folder. Mounting takes root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_FILLER: Final = "filler"


def why_no_disks() -> str:
    """Why none can be mounted here; empty if they can."""
    if os.geteuid() != 0:
        return "mounting a small disk takes root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disks(Path(folder), mib=1):
                return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no small disk can be mounted: {error}"


@contextmanager
def small_disks(*folders: Path, mib: int = 2) -> Iterator[None]:
    """A disk of so many MiB at each folder, which must be empty, for as long as the block lasts."""
    mounted: list[Path] = []
    try:
        for folder in folders:
            options = f"size={mib}m,mode={folder.stat().st_mode & 0o777:o}"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True
            )
            mounted.append(folder)
        yield
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> int:
    """Leave no byte of a small disk free; how many were. Nothing happens in a folder that is none."""
    if not os.path.ismount(folder):
        return 0
    with (folder / _FILLER).open("ab", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
        return file.tell()


def give_room(folder: Path) -> None:
    """Undo `fill`."""
    (folder / _FILLER).unlink(missing_ok=True)
