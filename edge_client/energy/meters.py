"""Power sensors of boards, each read from a file-system root, so that a copied tree will do.

- Jetson: INA3221 by hwmon (mV x mA) or the older iio files (mW). The total is the input rail, VDD_IN or POM_5V_IN.
- x86: RAPL, cumulative microjoules of each package, which wrap.
- Raspberry Pi 5: the PMIC, volt and ampere of each rail by `vcgencmd pmic_read_adc`. What hangs on the 5 V line
  directly (USB, HAT, NVMe) is not seen.

Raspberry Pi 4 and Zero 2 W have no sensor: an external meter or a model must do.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from fedpruneshare.errors import MeterError

#: Rails that carry everything the board takes.
_TOTAL_RAILS: Final = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class Source:
    """What a figure comes from: the sensor's name, what it covers, and its resolution."""

    sensor: str
    covers: str
    resolution: str


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

    @classmethod
    def find(cls, root: Path) -> Ina3221 | None:
        """The sensors of a board by hwmon, else by the older iio files; None if there are none."""
        rails = _hwmon_rails(root)
        if rails:
            return cls(rails, 1e-6, "hwmon")
        rails = _iio_rails(root)
        return cls(rails, 1e-3, "iio") if rails else None

    @property
    def source(self) -> Source:
        """The input rail, or all rails where the board has no name for it."""
        total = self._total()
        covers = f"the whole board ({total[0]})" if len(total) == 1 else f"the rails {', '.join(total)}"
        return Source(
            "ina3221", covers, f"what {self.interface} reports: " + ("mV and mA" if self.interface == "hwmon" else "mW")
        )

    def watts(self) -> float:
        """Power at the input. Raises `MeterError` naming the file that cannot be read."""
        return sum(self.rail_watts(label) for label in self._total())

    def rail_watts(self, label: str) -> float:
        """Power of one rail."""
        product = self.unit_w
        for path in self.rails[label]:
            product *= read_number(path)
        return product

    def _total(self) -> tuple[str, ...]:
        return next(((label,) for label in _TOTAL_RAILS if label in self.rails), tuple(sorted(self.rails)))


def _hwmon_rails(root: Path) -> dict[str, tuple[Path, ...]]:
    rails: dict[str, tuple[Path, ...]] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):  # numbers move from boot to boot: found by name
        if _text(folder / "name") != "ina3221":
            continue
        for number in (1, 2, 3):  # channel 7 is a sum of shunt voltages
            label = _text(folder / f"in{number}_label")
            files = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if label and label != "NC" and all(path.exists() for path in files):
                rails[label] = files
    return rails


def _iio_rails(root: Path) -> dict[str, tuple[Path, ...]]:
    rails: dict[str, tuple[Path, ...]] = {}
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for number in (0, 1, 2):
            label, power = _text(folder / f"rail_name_{number}"), folder / f"in_power{number}_input"
            if label and label != "NC" and power.exists():
                rails[label] = (power,)
    return rails


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
        zones = {}
        for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
            name = _text(folder / "name")
            if folder.name.count(":") == 1 and name.startswith("package"):  # sub-zones are parts of a package
                zones[f"{name} ({folder.name})"] = folder
        return cls(zones) if zones else None

    @property
    def source(self) -> Source:
        """The packages: processor and its caches, not the board."""
        return Source(
            "rapl", f"{len(self._zones)} processor packages, not the board", "the kernel's counter, in microjoules"
        )

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
_PMIC_LINE: Final = re.compile(r"^\s*(\w+)_([AV])\s*(?:(?:current|volt)\(\d+\))?=([-0-9.]+)[AV]\s*$")
#: Lines without a pair: the input voltage and the clock's battery.
_PMIC_SINGLE: Final = ("EXT5V", "BATT")


def _vcgencmd() -> str:
    try:
        ended = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeterError(f"vcgencmd pmic_read_adc: {error}, expected the rails of the PMIC") from None
    if ended.returncode:
        raise MeterError(
            f"vcgencmd pmic_read_adc: {(ended.stdout + ended.stderr).strip()[:200]}, expected the rails of the PMIC"
            " (is the user in the group `video`?)"
        )
    return ended.stdout


@dataclass(frozen=True)
class Pmic:
    """The PMIC of a Raspberry Pi 5. `read`: gives the text of `vcgencmd pmic_read_adc`."""

    read: Callable[[], str] = _vcgencmd

    @classmethod
    def find(cls, root: Path) -> Pmic | None:
        """By the board's name; None on any other board."""
        model = _text(root / "proc/device-tree/model").rstrip("\0")
        return cls() if model.startswith(("Raspberry Pi 5", "Raspberry Pi Compute Module 5")) else None

    @property
    def source(self) -> Source:
        """Twelve rails; what takes 5 V directly is not seen."""
        return Source("rpi5-pmic", "the rails of the PMIC, not what takes 5 V directly", "one reading a call")

    def watts(self) -> float:
        """Sum of volt x ampere over all rails that have both. Raises `MeterError` for text that is none."""
        readings: dict[str, dict[str, float]] = {}
        for line in self.read().splitlines():
            if found := _PMIC_LINE.match(line):
                readings.setdefault(found[1], {})[found[2]] = float(found[3])
        pairs = [rail for name, rail in readings.items() if name not in _PMIC_SINGLE and rail.keys() == {"A", "V"}]
        if not pairs:
            raise MeterError(f"vcgencmd pmic_read_adc: {len(readings)} readings, expected pairs of volt and ampere")
        return sum(rail["A"] * rail["V"] for rail in pairs)


# --------------------------------------------------------------------------- finding and reading


def find_meter(root: Path = Path("/")) -> PowerMeter | EnergyCounter:
    """The sensor of this board. Raises `MeterError` where there is none, or none that may be read."""
    for meter in (Ina3221.find(root), Pmic.find(root), Rapl.find(root)):
        if isinstance(meter, Rapl):
            meter.joules()
            return meter
        if meter is not None:
            meter.watts()
            return meter
    raise MeterError(
        f"no power sensor under {root}, expected an INA3221, the PMIC of a Raspberry Pi 5 or RAPL;"
        " an external meter can measure any board"
    )


def read_number(path: Path) -> float:
    """A number from a file of the kernel. Raises `MeterError` naming the file, and what to do where it is forbidden."""
    try:
        text = path.read_text("ascii").strip()
        return float(text)
    except PermissionError:
        raise MeterError(
            f"{path}: permission denied, expected a readable sensor (as root: chmod a+r {path}, or a udev rule)"
        ) from None
    except OSError as error:
        raise MeterError(f"{path}: {error.strerror}, expected a sensor's reading") from None
    except ValueError:
        raise MeterError(f"{path}: {text[:40]!r}, expected a number") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
