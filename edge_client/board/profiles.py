"""What a board is before anything has been measured on it: profiles in TOML, and which one fits this machine.

The profiles lie in the package `firmware_configs.devices`, which is named here and never imported; a board of one's
own is a path to a TOML file of the same form. Figures marked "estimate" there are replaced by `device calibrate`.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import SettingsError
from fedpruneshare.settings import load_settings

PROFILES: Final = "firmware_configs.devices"

Watts = Annotated[float, Meta(gt=0, le=1000)]
MegabitsPerSecond = Annotated[float, Meta(gt=0, le=100_000)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


class PowerStates(_Table, frozen=True):
    """Watts of the whole board: idle, with one core training flat out, and while the link is busy one way."""

    idle_w: Watts
    busy_w: Watts
    send_w: Watts
    receive_w: Watts


class LinkDefaults(_Table, frozen=True):
    """What is assumed of the network until real publishes have been timed."""

    kind: Literal["ethernet", "wifi", "lte"]
    up_mbit_s: MegabitsPerSecond
    down_mbit_s: MegabitsPerSecond
    rtt_ms: Annotated[float, Meta(gt=0, le=60_000)]


class Thermal(_Table, frozen=True):
    """How the board warms up. `limit_c`: stay below; throttling starts there or a little above.

    `busy_rise_c`: how much warmer than idle it gets in the end while one core is busy; `time_constant_s`: how soon.
    """

    limit_c: Annotated[float, Meta(ge=40, le=110)]
    busy_rise_c: Annotated[float, Meta(ge=0, le=80)]
    time_constant_s: Annotated[float, Meta(gt=0, le=7200)]


class Processor(_Table, frozen=True):
    """Cores, and the instructions that matter: AES (keystreams), NEON, half-precision arithmetic, tensor cores."""

    cores: Annotated[int, Meta(ge=1, le=1024)]
    arch: Literal["aarch64", "x86_64"]
    aes: bool
    neon: bool
    fp16: bool
    tensor_cores: bool


class BoardProfile(_Table, frozen=True):
    """One board. `name`: the stem of its file; `match`: what its device tree or module number contains.

    `train_scale`: time of a training step, one thread, relative to generic-x86-64, until it is measured.
    `memory_reserve_mib`: left to the system. A profile without `match` is taken by architecture.
    """

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$", max_length=64)]
    title: Annotated[str, Meta(min_length=1, max_length=80)]
    match: tuple[Annotated[str, Meta(min_length=4, max_length=80)], ...]
    processor: Processor
    ram_mib: Annotated[int, Meta(ge=64, le=4_194_304)]
    power: PowerStates
    link: LinkDefaults
    thermal: Thermal
    sensor: Literal["none", "ina3221", "rpi5-pmic", "rapl"]
    train_scale: Annotated[float, Meta(gt=0, le=1000)]
    memory_reserve_mib: Annotated[int, Meta(ge=0, le=65_536)]


# --------------------------------------------------------------------------- loading


@lru_cache(maxsize=1)
def board_names() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    entries = (entry.name for entry in files(PROFILES).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml")))


@lru_cache(maxsize=1)
def boards() -> tuple[BoardProfile, ...]:
    """All shipped profiles, sorted by name. Raises `SettingsError` for one that is damaged."""
    return tuple(_shipped(name) for name in board_names())


def load_board(name: str) -> BoardProfile:
    """A shipped profile by its name, or one's own by the path of its TOML file. Raises `SettingsError`."""
    if name.endswith(".toml"):
        return _read(Path(name))
    if name not in board_names():
        raise SettingsError(f"board {name!r} is unknown, expected the path of a .toml or one of: {_joined()}")
    return _shipped(name)


def _shipped(name: str) -> BoardProfile:
    with as_file(files(PROFILES) / f"{name}.toml") as path:
        return _read(path)


def _read(path: Path) -> BoardProfile:
    profile = load_settings(path, BoardProfile)
    if profile.name != path.stem:
        raise SettingsError(f"board profile {path}: name is {profile.name!r}, expected {path.stem!r}, the file's own")
    return profile


def _joined() -> str:
    return ", ".join(board_names())


# --------------------------------------------------------------------------- which one fits

#: "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-": board and SKU of the module, whatever the model says.
_TNSPEC: Final = re.compile(r"^TNSPEC\s+(\d{4})-\d+-(\d{4})\b", re.MULTILINE)


def find_board(root: Path, known: Sequence[BoardProfile] | None = None, arch: str = "") -> BoardProfile:
    """The profile that fits the machine whose files lie under `root`, among `known` (default: the shipped ones).

    Looked at in this order, the longest match counting: the module number that Jetson's installer noted, the device
    tree's `compatible` and `model` (an Orin Nano's model often reads "Orin NX", after its carrier), the architecture
    (`arch`; default: this machine's). Raises `SettingsError` for an architecture without a profile.
    """
    known = boards() if known is None else known
    for clue in _clues(root):
        fitting = [(len(part), profile) for profile in known for part in profile.match if part in clue]
        if fitting:
            return max(fitting, key=lambda pair: pair[0])[1]
    arch = _spelt(arch or platform.machine())
    for profile in known:
        if not profile.match and profile.processor.arch == arch:
            return profile
    raise SettingsError(f"no board profile for the architecture {arch!r}, expected aarch64 or x86_64 (64 bits)")


def board_model(root: Path) -> str:
    """What the device tree calls the board; empty where there is none or it cannot be read."""
    return _text(root / "proc/device-tree/model")


def _clues(root: Path) -> tuple[str, str, str]:
    noted = _TNSPEC.search(_text(root / "etc/nv_boot_control.conf"))
    module = f"p{noted[1]}-{noted[2]}" if noted else ""
    return module, _text(root / "proc/device-tree/compatible"), board_model(root)


def _spelt(arch: str) -> str:
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch.lower(), arch.lower())


def _text(path: Path) -> str:
    """The text of a small file, device tree strings' NUL terminators as spaces; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return ""


__all__ = [
    "BoardProfile",
    "LinkDefaults",
    "PowerStates",
    "Processor",
    "Thermal",
    "board_model",
    "board_names",
    "boards",
    "find_board",
    "load_board",
]
