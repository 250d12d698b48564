"""Batteries and chargers of the kernel's power_supply class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client.board.files import BoardFiles

_BATTERIES: Final = ("Battery", "UPS")
_CHARGERS: Final = ("Mains", "USB", "Wireless", "BrickID")
_STATUS: Final = ("Unknown", "Charging", "Discharging", "Not charging", "Full")


@dataclass(frozen=True)
class _Battery:
    percent: int | None
    status: str | None
    full: int | None  # whatever unit: only batteries of one unit are weighed against each other


def supply(files: BoardFiles) -> tuple[float | None, str | None, bool | None]:
    """Charge in percent, status, and whether the board runs from outside power.

    Several batteries count by their size where they tell it, else the emptiest counts. The battery of a mouse or
    keyboard (scope "Device") is none of the board's.
    """
    batteries: list[_Battery] = []
    chargers: list[int | None] = []
    for folder in files.find("sys/class/power_supply/*"):
        kind = files.text("on_mains", folder / "type") or ""
        if not _is_the_boards(files, folder):
            continue
        if kind in _BATTERIES:
            batteries.append(_battery(files, folder))
        elif kind.startswith(_CHARGERS):
            chargers.append(files.whole("on_mains", folder / "online", 0, 2))
    return _charge(batteries), _status(batteries), _outside(batteries, chargers)


def _is_the_boards(files: BoardFiles, folder: Path) -> bool:
    if files.text("on_mains", folder / "present") == "0":
        return False
    if not os.path.exists(folder / "scope"):  # drivers of fixed supplies leave it out
        return True
    scope = files.text("on_mains", folder / "scope")
    if scope not in ("System", "Unknown", "Device", None):
        name = (folder / "scope").relative_to(files.root)
        files.note("on_mains", f"{name}: {scope[:40]!r}, expected System or Device")
    return scope in ("System", "Unknown")


def _battery(files: BoardFiles, folder: Path) -> _Battery:
    percent = files.whole("battery_percent", folder / "capacity", 0, 100)
    status = files.text("battery_status", folder / "status")
    if status is not None and status not in _STATUS:
        name = (folder / "status").relative_to(files.root)
        files.note("battery_status", f"{name}: {status[:40]!r}, expected one of {', '.join(_STATUS)}")
        status = None
    full = next(
        (
            size
            for key in ("energy_full", "charge_full")
            if (size := files.whole("battery_percent", folder / key, 1, 10**12)) is not None
        ),
        None,
    )
    return _Battery(percent, status, full)


def _charge(batteries: list[_Battery]) -> float | None:
    percents = [battery.percent for battery in batteries]
    sizes = [battery.full for battery in batteries]
    known = [percent for percent in percents if percent is not None]
    if not known or len(known) < len(batteries):
        return None
    weights = [size for size in sizes if size is not None]
    if len(weights) == len(known):
        return sum(percent * weight for percent, weight in zip(known, weights, strict=True)) / sum(weights)
    return float(min(known))


def _status(batteries: list[_Battery]) -> str | None:
    """The status that says most about the whole: one that discharges, else one that charges, else the first."""
    found = [battery.status for battery in batteries if battery.status is not None]
    return next((status for status in ("Discharging", "Charging") if status in found), found[0] if found else None)


def _outside(batteries: list[_Battery], chargers: list[int | None]) -> bool | None:
    statuses = [battery.status for battery in batteries]
    if any(chargers) or "Charging" in statuses:
        return True
    if "Discharging" in statuses:
        return False
    return None if not chargers or None in chargers else False
