"""How this board is now: heat, throttling, memory, load, power supply, clock, network. Read, never guessed.

Everything is read below a root, so that a copied tree of another board will do. What cannot be read is None, and
`Health.unread` names the file and the reason; a number that is there has been read from where its name says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edge_client.adaptation.watches import LinkEstimate, LinkWatch, StepWatch
from edge_client.board.clock import Clock, clock
from edge_client.board.files import BoardFiles
from edge_client.board.heat import cores, frequency, temperature, throttling
from edge_client.board.memory import memory
from edge_client.board.network import LinkState, links
from edge_client.board.profiles import BoardProfile, board_model, find_board
from edge_client.board.supply import supply
from fedpruneshare.errors import SettingsError


@dataclass(frozen=True)
class Health:
    """One look at the board. None: could not be read; `unread` says why, as "field: path: reason".

    `board`: name of the profile, empty where none fits. `zone`: the sensor of `temperature_c`. `alarms`: what the
    firmware or the kernel complains of, now or since boot. `free_mib`: what can still be taken, the smaller of the
    system's and the control group's. `battery_*` are None on a board without a battery. `cores`: those switched on.
    """

    board: str
    model: str
    temperature_c: float | None
    zone: str | None
    is_throttled: bool | None
    is_undervolted: bool | None
    alarms: tuple[str, ...]
    cpu_mhz: float | None
    cpu_max_mhz: float | None
    free_mib: int | None
    total_mib: int | None
    load_1min: float | None
    battery_percent: float | None
    battery_status: str | None
    on_mains: bool | None
    clock: Clock | None
    links: tuple[LinkState, ...]
    unread: tuple[str, ...]
    cores: int | None = None


#: Fields whose absence always has a reason, and where a value would have come from.
_EXPECTED: Final = {
    "temperature_c": "no thermal zone or sensor of the processor under sys/class",
    "is_throttled": "no get_throttled, cooling device or cpufreq of the processor under sys",
    "free_mib": "no proc/meminfo",
    "load_1min": "no proc/loadavg",
    "battery_percent": "no battery under sys/class/power_supply",
    "on_mains": "no battery or charger that tells under sys/class/power_supply",
    "clock": "neither run/systemd/timesync/synchronized nor the kernel tells",
}


def measure(
    root: Path, boards: Sequence[BoardProfile] | None = None, *, arch: str = "", unix_s: float | None = None
) -> Health:
    """Look at the board whose files lie under `root`; never raises, and waits for nothing longer than two seconds.

    `boards`: profiles to choose from (default: the shipped ones). `arch` and `unix_s` (seconds since 1970) default to
    this machine's architecture and clock.
    """
    files = BoardFiles(root)
    temperature_c, zone = temperature(files)
    is_throttled, is_undervolted, alarms = throttling(files)
    cpu_mhz, cpu_max_mhz = frequency(files)
    free_mib, total_mib = memory(files)
    battery_percent, battery_status, on_mains = supply(files)
    health = Health(
        board=_board(files, boards, arch),
        model=board_model(root),
        temperature_c=temperature_c,
        zone=zone,
        is_throttled=is_throttled,
        is_undervolted=is_undervolted,
        alarms=alarms,
        cpu_mhz=cpu_mhz,
        cpu_max_mhz=cpu_max_mhz,
        free_mib=free_mib,
        total_mib=total_mib,
        load_1min=_load(files),
        battery_percent=battery_percent,
        battery_status=battery_status,
        on_mains=on_mains,
        clock=clock(files, time.time() if unix_s is None else unix_s),
        links=links(files),
        unread=(),
        cores=cores(files),
    )
    for field, expected in _EXPECTED.items():
        if getattr(health, field) is None and not files.is_noted(field):
            files.note(field, expected)
    return replace(health, unread=tuple(files.unread))


def _board(files: BoardFiles, boards: Sequence[BoardProfile] | None, arch: str) -> str:
    try:
        return find_board(files.root, boards, arch).name
    except SettingsError as error:
        files.note("board", str(error))
        return ""


def _load(files: BoardFiles) -> float | None:
    text = files.text("load_1min", "proc/loadavg")
    if text is None:
        return None
    found = re.match(r"(\d{1,6}\.\d{2}) \d", text)
    if not found:
        files.note("load_1min", f"proc/loadavg: {text[:40]!r}, expected three averages")
        return None
    return float(found[1])


__all__ = ["Health", "LinkEstimate", "LinkState", "LinkWatch", "StepWatch", "measure"]
