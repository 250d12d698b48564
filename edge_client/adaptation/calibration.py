"""What a device has measured of itself: `calibration.toml`, written by `device calibrate`, read by every decision.

A part that was not measured is absent (an empty table, None): it is then estimated from the board's profile, or not
used at all. Nothing here is ever filled in with a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.settings import load_settings, render_toml
from fedpruneshare.storage import write_atomically

_Positive = Annotated[float, Meta(gt=0)]
_NotNegative = Annotated[float, Meta(ge=0)]
#: A width as text, as `width_key` writes it.
_Width = Annotated[str, Meta(pattern=r"^(1\.0|0\.\d{1,20})$")]

_HEAD: Final = "# Measured by `fedpruneshare device calibrate`; again after a change of board, task or network.\n\n"


class LinkRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One uplink: payload bytes a second, and seconds from a small publish to its acknowledgement."""

    up_bytes_s: _Positive
    rtt_s: _NotNegative


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. Times in seconds, rates in bytes a second, memory in MiB, power in watts of the whole board."""

    board: str
    task: str
    batch_size: Annotated[int, Meta(ge=1)]
    step_s: dict[_Width, _Positive] = {}
    """Width -> seconds of one training step of a batch. Density does not change it: masked weights are multiplied."""
    share_bytes_s: _Positive | None = None
    """Plaintext share bytes split, sealed and signed a second, over all aggregators together, on one core."""
    receive_bytes_s: _Positive | None = None
    links: dict[str, LinkRate] = {}
    """By aggregator id."""
    idle_w: _NotNegative | None = None
    busy_w: _NotNegative | None = None
    power_source: str = ""
    """What the watts were measured with; empty where they were not."""
    base_mib: _NotNegative | None = None
    """Resident after imports, task, data and model."""
    step_mib: dict[_Width, _NotNegative] = {}
    """Width -> peak on top of `base_mib` while training."""


def load_calibration(path: Path) -> Calibration:
    """Read a calibration. Raises `SettingsError` with every mistake, also for a missing file."""
    return load_settings(path, Calibration)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as TOML, atomically."""
    write_atomically(path, (_HEAD + render_toml(calibration)).encode())
