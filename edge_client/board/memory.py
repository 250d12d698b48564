"""Memory that can still be taken: what the kernel calls available, or less where a control group allows less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from edge_client.board.files import BoardFiles

FIELD: Final = "free_mib"

#: A limit of version 1 that stands for none: the largest multiple of a page that fits 63 bits.
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups keeps its figures. `cache`: the line of memory.stat that can be given back."""

    base: str
    limit: str
    used: str
    cache: str


_TWO: Final = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_TWO_BESIDE_ONE: Final = _Version("sys/fs/cgroup/unified", "memory.max", "memory.current", "inactive_file")
_ONE: Final = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory(files: BoardFiles) -> tuple[int | None, int | None]:
    """MiB that can still be taken and MiB in all, each the smaller of the system's and every control group's.

    None where a file that would decide cannot be read; the reason is noted under `free_mib`.
    """
    text = files.text(FIELD, "proc/meminfo")
    if text is None:
        return None, None
    free, total = _kibibytes(text, "MemAvailable"), _kibibytes(text, "MemTotal")
    if free is None or (total is not None and free > total):
        found = "none" if free is None else f"{free} kB of {total} kB"
        files.note(FIELD, f"proc/meminfo: MemAvailable is {found}, expected a part of MemTotal")
        return None, total and total >> 10
    groups = list(_groups(files))
    if files.is_noted(FIELD):  # a limit that could not be read may be the smaller one
        return None, total and total >> 10
    free = min(free, *(group_free >> 10 for group_free, _ in groups)) if groups else free
    if total is not None and groups:
        total = min(total, *(limit >> 10 for _, limit in groups))
    return free >> 10, total and total >> 10


def _kibibytes(meminfo: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d{{1,15}}) kB$", meminfo, re.MULTILINE)
    return int(found[1]) if found else None


def _groups(files: BoardFiles) -> Iterator[tuple[int, int]]:
    """Free bytes and the limit of every control group this process is in, from its own up to the root."""
    for line in (files.text(FIELD, "proc/self/cgroup") or "").splitlines():
        if line.count(":") < 2:
            files.note(FIELD, f"proc/self/cgroup: {line[:40]!r}, expected number:controllers:path")
            continue
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield from _upwards(files, _ONE, path)
        elif number == "0" and not controllers:
            yield from _upwards(files, _TWO, path)
            yield from _upwards(files, _TWO_BESIDE_ONE, path)


def _upwards(files: BoardFiles, version: _Version, path: str) -> Iterator[tuple[int, int]]:
    # A path from outside this name space begins with "..": what is mounted here is the nearest that can be seen.
    inside = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
    for group in (inside, *inside.parents):
        figures = _group(files, version, f"{version.base}/{group}")
        if figures is not None:
            yield figures


def _group(files: BoardFiles, version: _Version, folder: str) -> tuple[int, int] | None:
    text = files.text(FIELD, f"{folder}/{version.limit}")
    if text is None or text == "max":
        return None
    limit = files.whole(FIELD, f"{folder}/{version.limit}", 0, (1 << 63) - 1)
    if limit is None or limit >= _NO_LIMIT:
        return None
    used = files.whole(FIELD, f"{folder}/{version.used}", 0, (1 << 63) - 1)
    if used is None:
        if not files.is_noted(FIELD):
            files.note(FIELD, f"{folder}/{version.used}: absent, expected what the group of {version.limit} uses")
        return None
    cache = _cache(files, version, folder)
    return None if cache is None else (max(0, limit - max(0, used - cache)), limit)


def _cache(files: BoardFiles, version: _Version, folder: str) -> int | None:
    """Bytes of files read and not in use, which the kernel gives back before it runs out; 0 where it does not tell."""
    text = files.text(FIELD, f"{folder}/memory.stat")
    if text is None:
        return 0
    found = re.search(rf"^{version.cache} (\d{{1,19}})$", text, re.MULTILINE)
    if not found:
        files.note(FIELD, f"{folder}/memory.stat: no {version.cache}, expected one")
        return None
    return int(found[1])
