"""Network interfaces: kind, state and the speed of a cable."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_client.board.files import BoardFiles

Kind = Literal["ethernet", "wifi", "lte", "other"]

_ETHERNET, _LOOPBACK = 1, 772  # ARPHRD_* of linux/if_arp.h
_DEVICE_KINDS: Final[dict[str, Kind]] = {"wlan": "wifi", "wwan": "lte"}
_STATES: Final = {"up": True, "unknown": None}


@dataclass(frozen=True)
class LinkState:
    """One network interface. `is_up` None: the driver does not tell. `speed_mbit_s`: what a cable negotiated."""

    name: str
    kind: Kind
    is_up: bool | None
    speed_mbit_s: int | None


def links(files: BoardFiles) -> tuple[LinkState, ...]:
    """Every interface but the loopback, sorted by name; bridges, tunnels and containers' ends are of kind "other"."""
    found = (_link(files, folder) for folder in files.find("sys/class/net/*"))
    return tuple(sorted((link for link in found if link is not None), key=lambda link: link.name))


def _link(files: BoardFiles, folder: Path) -> LinkState | None:
    family = files.whole("links", folder / "type", 0, 65_535)
    if family is None or family == _LOOPBACK:
        return None
    state = files.text("links", folder / "operstate")
    is_up = None if state is None else _STATES.get(state, False)
    kind = _kind(files, folder, family)
    # A cable that is not plugged in answers with an error: asked only where there is one.
    speed = files.whole("links", folder / "speed", -1, 1_000_000) if is_up and kind == "ethernet" else None
    return LinkState(folder.name, kind, is_up, speed if speed and speed > 0 else None)


def _kind(files: BoardFiles, folder: Path, family: int) -> Kind:
    found = re.search(r"^DEVTYPE=(\w+)$", files.text("links", folder / "uevent") or "", re.MULTILINE)
    if found:
        return _DEVICE_KINDS.get(found[1], "other")
    if os.path.exists(folder / "wireless") or os.path.exists(folder / "phy80211"):
        return "wifi"
    return "ethernet" if family == _ETHERNET and os.path.exists(folder / "device") else "other"
