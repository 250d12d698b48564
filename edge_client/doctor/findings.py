"""What `fedpruneshare device doctor` looks at (`Visit`) and how it says what it found (`Check`, `Finding`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_client.board.profiles import BoardProfile, load_board
from edge_client.device import Health, measure
from edge_client.settings import DeviceSettings
from fedpruneshare.at_work import is_at_work
from fedpruneshare.errors import FedPruneShareError, SettingsError
from fedpruneshare.party import Party
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role

Result = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was found, why it matters, and one line that mends it (empty where all is well).

    `figures`: what was measured, by name with its unit.
    """

    name: str
    result: Result
    found: str
    why: str
    fix: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check's name and why it matters; makes its findings."""

    name: str
    why: str

    def ok(self, found: str, **figures: float) -> Finding:
        """All is well."""
        return Finding(self.name, "ok", found, self.why, "", figures)

    def warning(self, found: str, fix: str, **figures: float) -> Finding:
        """The device works, worse than it could."""
        return Finding(self.name, "warning", found, self.why, fix, figures)

    def failed(self, found: str, fix: str) -> Finding:
        """The device will not work."""
        return Finding(self.name, "failed", found, self.why, fix)

    def skipped(self, found: str) -> Finding:
        """Nothing to check, or no way to."""
        return Finding(self.name, "skipped", found, self.why)


@dataclass(frozen=True)
class Visit:
    """One look at a device: its board as it is now, and its settings and party where a settings file was given.

    `is_here`: the root is this machine's own; a copied tree says nothing of this machine's software and network.
    `is_sparing`: the device is at work, and no connection of its own is to be ended.
    """

    root: Path
    health: Health
    profile: BoardProfile | None = None
    config: Path | None = None
    settings: DeviceSettings | None = None
    settings_error: str = ""
    party: Party | None = None
    party_error: str = ""
    profile_error: str = ""
    is_sparing: bool = False

    @classmethod
    def begin(cls, root: Path, config: Path | None, is_forced: bool = False) -> Visit:
        """Look at the board, read the settings, the key file and the directory; never raises."""
        health = measure(root)
        settings, settings_error = _settings(config)
        profile, profile_error = _profile(settings, health)
        party, party_error = _party(settings)
        errors = {"settings_error": settings_error, "party_error": party_error, "profile_error": profile_error}
        is_sparing = settings is not None and not is_forced and is_at_work(Path(settings.store))
        return cls(root, health, profile, config, settings, party=party, is_sparing=is_sparing, **errors)

    @property
    def is_here(self) -> bool:
        """Whether this is the machine the doctor runs on."""
        return self.root.absolute() == Path("/")


def _settings(config: Path | None) -> tuple[DeviceSettings | None, str]:
    if config is None:
        return None, ""
    try:
        return load_settings(config, DeviceSettings), ""
    except SettingsError as error:
        return None, str(error)


def _profile(settings: DeviceSettings | None, health: Health) -> tuple[BoardProfile | None, str]:
    """The profile that the settings name, else the one that fits."""
    name = (settings.board if settings else "") or health.board
    try:
        return (load_board(name), "") if name else (None, "")
    except SettingsError as error:
        return None, str(error)


def _party(settings: DeviceSettings | None) -> tuple[Party | None, str]:
    if settings is None:
        return None, ""
    try:
        return Party.load(settings.party, Role.DEVICE), ""
    except FedPruneShareError as error:
        return None, str(error)
