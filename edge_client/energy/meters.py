"""Power sensors of boards, each read from a file-system root, so that a copied tree will do.

- Jetson: INA3221 by hwmon (mV x mA) or the older iio files (mW). The total is the input rail, VDD_IN or POM_5V_IN.
- x86: RAPL, cumulative microjoules of each package, which wrap. It is of the whole machine: two processes on one
  machine read the same joules, so their figures must not be added.
- Raspberry Pi 5: the PMIC, volt and ampere of each rail by `vcgencmd pmic_read_adc` (in a copied tree the file
  `pmic_read_adc` holds its output). What hangs on the 5 V line directly (USB, HAT, NVMe) is not seen.

Raspberry Pi 4 and Zero 2 W have no sensor: an external meter or a model must do.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from fedpruneshare.errors import MeterError

#: Rails that carry everything the board takes.
_TOTAL_RAILS: Final = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class Source:
    """What a figure comes from: the sensor's name, what it covers, and its resolution.

    `error_share`: how far off it may be, as a share of the reading. `interval_s`: how often it has something new.
    """

    sensor: str
    covers: str
    resolution: str
    error_share: float = 0.0
    interval_s: float = 0.0


class Meter(Protocol):
    """Something that tells watts now (`PowerMeter`) or joules so far (`EnergyCounter`); both know their source."""

    @property
    def source(self) -> Source:
        """Where the figures come from."""


@runtime_checkable
class PowerMeter(Meter, Protocol):
    """A sensor of power."""

    def watts(self) -> float:
        """Power now. Raises `MeterError`."""


class EnergyCounter(Meter, Protocol):
    """A sensor that adds up by itself."""

    def joules(self) -> float:
        """Energy since an arbitrary moment, wraps already undone. Raises `MeterError`."""


# --------------------------------------------------------------------------- Jetson: INA3221


@dataclass(frozen=True)
class Ina3221:
    """Rails of INA3221 sensors: label -> files whose product is the power. `unit_w`: watts of one product."""

    rails: dict[str, tuple[Path, ...]]
    unit_w: float
    interface: str
    interval_s: float = 0.1

    @classmethod
    def find(cls, root: Path) -> Ina3221 | None:
        """The sensors of a board by hwmon, else by the older iio files; None if there are none."""
        folders = _ina_hwmons(root)
        if folders:
            return cls(_hwmon_rails(folders), 1e-6, "hwmon", max(_hwmon_interval_s(folder) for folder in folders))
        rails = _iio_rails(root)
        return cls(rails, 1e-3, "iio") if rails else None

    @property
    def source(self) -> Source:
        """The input rail, or all rails where the board has no name for it. The chip and its shunt: 2 % together."""
        total = self._total()
        covers = f"the whole board ({total[0]})" if len(total) == 1 else f"the rails {', '.join(total)}"
        resolution = f"what {self.interface} reports: " + ("mV and mA" if self.interface == "hwmon" else "mW")
        return Source("ina3221", covers, resolution, 0.02, self.interval_s)

    def watts(self) -> float:
        """Power at the input. Raises `MeterError` naming the file that cannot be read, or a board that takes none."""
        if not self.rails:
            raise MeterError(f"ina3221 by {self.interface}: no channel has a label, expected the board's rails")
        return _some("ina3221", sum(self.rail_watts(label) for label in self._total()))

    def rail_watts(self, label: str) -> float:
        """Power of one rail."""
        product = self.unit_w
        for path in self.rails[label]:
            product *= read_number(path)
        return product

    def _total(self) -> tuple[str, ...]:
        return next(((label,) for label in _TOTAL_RAILS if label in self.rails), tuple(sorted(self.rails)))


def _ina_hwmons(root: Path) -> list[Path]:
    """Their folders, found by name: numbers move from boot to boot."""
    return [folder for folder in sorted(root.glob("sys/class/hwmon/hwmon*")) if _text(folder / "name") == "ina3221"]


def _hwmon_rails(folders: list[Path]) -> dict[str, tuple[Path, ...]]:
    """A rail whose reading is missing stays: the figure must fail then, not shrink."""
    rails: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        for number in (1, 2, 3):  # channel 7 is a sum of shunt voltages
            label = _text(folder / f"in{number}_label")
            _add_rail(rails, label, (folder / f"in{number}_input", folder / f"curr{number}_input"))
    return rails


def _hwmon_interval_s(folder: Path) -> float:
    text = _text(folder / "update_interval")
    return int(text) / 1000 if text.isdecimal() and text.isascii() else 0.1


def _iio_rails(root: Path) -> dict[str, tuple[Path, ...]]:
    rails: dict[str, tuple[Path, ...]] = {}
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for number in (0, 1, 2):
            _add_rail(rails, _text(folder / f"rail_name_{number}"), (folder / f"in_power{number}_input",))
    return rails


def _add_rail(rails: dict[str, tuple[Path, ...]], label: str, files: tuple[Path, ...]) -> None:
    if label and label.upper() != "NC":  # not connected
        rails[label if label not in rails else f"{label} of {files[0].parent.name}"] = files


# --------------------------------------------------------------------------- x86: RAPL


class Rapl:
    """Package counters of the powercap class: cumulative microjoules that wrap at `max_energy_range_uj`."""

    def __init__(self, zones: dict[str, Path]) -> None:
        self._zones = zones
        self._last = {name: 0.0 for name in zones}
        self._total_uj = 0.0
        self._is_begun = False

    @classmethod
    def find(cls, root: Path) -> Rapl | None:
        """The packages of a machine, AMD's too; None if there are none."""
        zones: dict[str, Path] = {}
        for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
            name = _text(folder / "name")
            # Sub-zones are parts of a package, "psys" is the platform around it: either would count joules twice.
            if folder.name.count(":") == 1 and name.startswith("package"):
                zones.setdefault(name, folder)
        return cls(zones) if zones else None

    @property
    def source(self) -> Source:
        """The packages: processor and its caches, not the board. Against external meters a few percent off."""
        covers = f"{len(self._zones)} processor package(s) of this machine, not the board"
        return Source("rapl", covers, "the kernel's counter, in microjoules, renewed each millisecond", 0.05, 0.001)

    def joules(self) -> float:
        """Energy since the first call. Raises `MeterError`, with what to do about a missing permission."""
        for name, folder in self._zones.items():
            now = read_number(folder / "energy_uj")
            if self._is_begun:
                self._total_uj += self._since_last(name, folder, now)
            self._last[name] = now
        self._is_begun = True
        return self._total_uj / 1e6

    def _since_last(self, name: str, folder: Path, now: float) -> float:
        passed = now - self._last[name]
        if passed >= 0:
            return passed
        wraps_at = read_number(folder / "max_energy_range_uj")
        if not self._last[name] <= wraps_at:
            raise MeterError(f"{folder}: counter at {self._last[name]:.0f}, expected at most {wraps_at:.0f}, its range")
        return passed + wraps_at


# --------------------------------------------------------------------------- Raspberry Pi 5: PMIC

#: "VDD_CORE_A current(7)=1.09790000A" or, in the older spelling, "VDD_CORE_A=1.0979A"
_PMIC_LINE: Final = re.compile(r"^\s*(\w+)_([AV])\s*(?:(?:current|volt)\(\d+\))?=(-?\d+(?:\.\d+)?)\2\s*$", re.ASCII)
#: Lines without a pair: the input voltage and the clock's battery.
_PMIC_SINGLE: Final = ("EXT5V", "BATT")


def _vcgencmd() -> str:
    try:
        ended = subprocess.run(
            ["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=2, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeterError(f"vcgencmd pmic_read_adc: {error}, expected the rails of the PMIC") from None
    if ended.returncode:
        raise MeterError(
            f"vcgencmd pmic_read_adc: {(ended.stdout + ended.stderr).strip()[:200]}, expected the rails of the PMIC"
            " (is the user in the group `video`?)"
        )
    return ended.stdout


def _recorded(root: Path) -> str:
    """What the command said when the tree was copied: this machine's command would speak of this machine."""
    return _read(root / "pmic_read_adc")


@dataclass(frozen=True)
class Pmic:
    """The PMIC of a Raspberry Pi 5. `read`: gives the text of `vcgencmd pmic_read_adc`."""

    read: Callable[[], str] = _vcgencmd

    @classmethod
    def find(cls, root: Path) -> Pmic | None:
        """By the board's name; None on any other board."""
        model = _text(root / "proc/device-tree/model").rstrip("\0")
        if not model.startswith(("Raspberry Pi 5", "Raspberry Pi Compute Module 5")):
            return None
        return cls() if root.resolve() == Path("/") else cls(partial(_recorded, root))

    @property
    def source(self) -> Source:
        """Twelve rails; the converters' losses and what takes 5 V directly are not seen."""
        covers = "the rails of the PMIC, not its losses nor what takes 5 V directly"
        return Source("rpi5-pmic", covers, "one reading a call", 0.05, 0.05)

    def watts(self) -> float:
        """Sum of volt x ampere over all rails. Raises `MeterError` for a current without its voltage, and for none."""
        readings: dict[str, dict[str, float]] = {}
        for line in self.read().splitlines():
            if found := _PMIC_LINE.match(line):
                readings.setdefault(found[1], {})[found[2]] = float(found[3])
        rails = {name: rail for name, rail in readings.items() if "A" in rail and name not in _PMIC_SINGLE}
        unpaired = [name for name, rail in rails.items() if "V" not in rail]
        if unpaired or not rails:
            what = f"no voltage of {', '.join(unpaired)}" if unpaired else f"{len(readings)} readings"
            raise MeterError(f"vcgencmd pmic_read_adc: {what}, expected pairs of volt and ampere")
        return _some("rpi5-pmic", sum(rail["A"] * rail["V"] for rail in rails.values()))


# --------------------------------------------------------------------------- finding and reading


def find_meter(root: Path = Path("/")) -> PowerMeter | EnergyCounter:
    """The sensor of this board. Raises `MeterError` where there is none, or none that can be read."""
    failure: MeterError | None = None
    for meter in (Ina3221.find(root), Pmic.find(root), Rapl.find(root)):
        if meter is None:
            continue
        try:
            read_meter(meter)
        except MeterError as error:
            failure = failure or error
        else:
            return meter
    raise failure or MeterError(
        f"no power sensor under {root}, expected an INA3221, the PMIC of a Raspberry Pi 5 or RAPL;"
        " an external meter can measure any board"
    )


def read_meter(meter: PowerMeter | EnergyCounter) -> float:
    """Watts of a power meter, joules of a counter. Raises `MeterError`."""
    return meter.watts() if isinstance(meter, PowerMeter) else meter.joules()


def read_number(path: Path) -> float:
    """A number from a file of the kernel. Raises `MeterError` naming the file, and what to do where it is forbidden."""
    text = _read(path).strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MeterError(f"{path}: {text[:40]!r}, expected a number")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except PermissionError:
        raise MeterError(
            f"{path}: permission denied, expected a readable sensor (as root: chmod a+r {path}, or a udev rule)"
        ) from None
    except OSError as error:
        raise MeterError(f"{path}: {error.strerror}, expected a sensor's reading") from None


def _some(sensor: str, watts: float) -> float:
    """The reading, if a board that runs can take so little."""
    if watts <= 0:
        raise MeterError(f"{sensor}: {watts:g} W, expected more than nothing of a board that runs")
    return watts


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
