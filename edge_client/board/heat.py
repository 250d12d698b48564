"""Temperature, throttling, clock rate and cores of the processor.

Thermal zones are found by their type: their numbers differ from board to board, and some of them (the PMIC's fixed
100 degrees on a Jetson Nano) measure nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_client.board.files import BoardFiles
from edge_client.board.profiles import board_model

#: Zones of the processor, best first: Raspberry Pi and Jetson Orin, Jetson Nano, x86; then the chip as a whole.
_ZONES: Final = (
    "cpu-thermal",
    "cpu_thermal",
    "CPU-therm",
    "x86_pkg_temp",
    "MCPU-therm",
    "soc-thermal",
    "soc_thermal",
    "tj-thermal",
)
#: Sensors of processors that have no zone of their own (AMD, and Intel without x86_pkg_temp).
_SENSORS: Final = ("k10temp", "coretemp", "zenpower", "cpu_thermal")

#: Readings in thousandths of a degree. A sensor that is off reads -256000; a kernel that answers in whole degrees
#: would read up to 150.
_COLDEST, _HOTTEST, _WHOLE_DEGREES = -40_000, 150_000, 150

#: Bits of get_throttled (Raspberry Pi documentation, "vcgencmd"); the same 16 bits higher: since boot.
_UNDERVOLTED, _CAPPED, _THROTTLED, _SOFT_LIMIT = 1, 2, 4, 8
_FIRMWARE_BITS: Final = {
    _UNDERVOLTED: "undervoltage",
    _CAPPED: "clock capped",
    _THROTTLED: "throttled",
    _SOFT_LIMIT: "soft temperature limit",
}
_SINCE_BOOT: Final = 16
#: Below `soc` up to the Raspberry Pi 4, below `soc@107c000000` on the 5; newer kernels leave it out.
_THROTTLED_FILE: Final = "sys/devices/platform/soc*/*firmware/get_throttled"

#: Cooling devices that slow a processor down, by the end or the beginning of their type; a fan is none.
_THROTTLE_ENDS: Final = ("-throttle-alert", "-balanced", "-heavy", "hot-surface-alert")
_THROTTLE_STARTS: Final = ("cpufreq-cpu", "thermal-cpufreq", "devfreq-", "Processor", "intel_powerclamp")

_POLICIES: Final = "sys/devices/system/cpu/cpufreq/policy*"
_KHZ_MAX: Final = 20_000_000


# --------------------------------------------------------------------------- temperature


def temperature(files: BoardFiles) -> tuple[float | None, str | None]:
    """Degrees Celsius of the processor and the sensor's name; the hottest where several are called the same."""
    zones: dict[str, list[Path]] = {}
    for folder in files.find("sys/class/thermal/thermal_zone*"):
        kind = files.text("temperature_c", folder / "type")
        if kind is not None:
            zones.setdefault(kind, []).append(folder / "temp")
    kind = _best(zones)
    if kind is not None:
        return _hottest(files, zones[kind]), kind
    for folder in files.find("sys/class/hwmon/hwmon*"):
        name = files.text("temperature_c", folder / "name")
        if name in _SENSORS:
            return _hottest(files, [folder / "temp1_input"]), name
    return None, None


def _best(zones: dict[str, list[Path]]) -> str | None:
    exact = next((kind for kind in _ZONES if kind in zones), None)
    return exact or next((kind for kind in sorted(zones) if "cpu" in kind.lower()), None)


def _hottest(files: BoardFiles, paths: list[Path]) -> float | None:
    readings = [files.whole("temperature_c", path, _COLDEST, _HOTTEST) for path in paths]
    believable = []
    for path, reading in zip(paths, readings, strict=True):
        if reading is not None and 0 <= reading <= _WHOLE_DEGREES:
            name = path.relative_to(files.root)
            files.note("temperature_c", f"{name}: {reading}, expected thousandths of a degree, not degrees or nothing")
        elif reading is not None:
            believable.append(reading / 1000)
    return max(believable, default=None)


# --------------------------------------------------------------------------- throttling


def throttling(files: BoardFiles) -> tuple[bool | None, bool | None, tuple[str, ...]]:
    """Whether the processor is slowed down, whether the supply is too weak, and the alarms by name.

    On a Raspberry Pi the firmware knows, and nobody else: the kernel is not told. Elsewhere the kernel's cooling
    devices tell, and where there are none, whether cpufreq allows less than the processor could.
    """
    weak = _voltage_alarm(files)
    if files.find(_THROTTLED_FILE) or board_model(files.root).startswith("Raspberry Pi"):
        return _by_firmware(_firmware_bits(files), weak)
    active = _cooling(files)
    if files.is_noted("is_throttled"):
        return None, weak, tuple(active or ())
    if active is not None:
        return bool(active), weak, tuple(active)
    capped = _capped(files)
    return capped, weak, ("clock capped",) if capped else ()


def _by_firmware(bits: int | None, weak: bool | None) -> tuple[bool | None, bool | None, tuple[str, ...]]:
    if bits is None:
        return None, weak, ("undervoltage",) if weak else ()
    bits |= _UNDERVOLTED if weak else 0
    slowed = bool(bits & (_CAPPED | _THROTTLED | _SOFT_LIMIT))
    return slowed, bool(bits & _UNDERVOLTED), tuple(_alarms(bits))


def _firmware_bits(files: BoardFiles) -> int | None:
    """The bits of get_throttled: from the file that some kernels have, else, on this machine, from `vcgencmd`."""
    for path in files.find(_THROTTLED_FILE):
        return files.whole("is_throttled", path, 0, 0xFFFF_FFFF, base=16)
    if files.root != Path("/"):
        files.note("is_throttled", "no get_throttled under sys/devices/platform; the kernel is not told")
        return None
    answer = _vcgencmd()
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", answer)
    if not found:
        files.note("is_throttled", f"vcgencmd get_throttled: {answer[:80] or 'nothing'!r}, expected throttled=0x…")
        return None
    return int(found[1], 16)


def _vcgencmd() -> str:
    """What the firmware's command says, or why it does not."""
    try:
        ended = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, errors="replace", timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (ended.stdout + ended.stderr).strip()


def _alarms(bits: int) -> Iterator[str]:
    yield from (name for bit, name in _FIRMWARE_BITS.items() if bits & bit)
    yield from (
        f"{name} since boot" for bit, name in _FIRMWARE_BITS.items() if bits & bit << _SINCE_BOOT and not bits & bit
    )


def _voltage_alarm(files: BoardFiles) -> bool | None:
    for folder in files.find("sys/class/hwmon/hwmon*"):
        if files.text("is_undervolted", folder / "name") == "rpi_volt":
            alarm = files.whole("is_undervolted", folder / "in0_lcrit_alarm", 0, 1)
            return None if alarm is None else bool(alarm)
    return None


def _cooling(files: BoardFiles) -> list[str] | None:
    """The throttles that are on; None where there are none to ask."""
    asked = False
    active: list[str] = []
    for folder in files.find("sys/class/thermal/cooling_device*"):
        kind = files.text("is_throttled", folder / "type") or ""
        if not (kind.endswith(_THROTTLE_ENDS) or kind.startswith(_THROTTLE_STARTS)):
            continue
        state = files.whole("is_throttled", folder / "cur_state", -1, 1_000_000)  # -1: intel_powerclamp is off
        asked = asked or state is not None
        if state is not None and state > 0 and kind not in active:
            active.append(kind)
    return active if asked else None


def _capped(files: BoardFiles) -> bool | None:
    pairs = [
        (
            files.whole("is_throttled", folder / "scaling_max_freq", 1, _KHZ_MAX),
            files.whole("is_throttled", folder / "cpuinfo_max_freq", 1, _KHZ_MAX),
        )
        for folder in files.find(_POLICIES)
    ]
    known = [allowed < able for allowed, able in pairs if allowed is not None and able is not None]
    return any(known) if known and len(known) == len(pairs) else None


# --------------------------------------------------------------------------- clock rate and cores


def frequency(files: BoardFiles) -> tuple[float | None, float | None]:
    """MHz of the fastest core now, and the most any core is built for.

    On a Raspberry Pi "now" is what the kernel asked for; a throttling firmware gives less.
    """
    now = [files.whole("cpu_mhz", folder / "scaling_cur_freq", 1, _KHZ_MAX) for folder in files.find(_POLICIES)]
    most = [files.whole("cpu_max_mhz", folder / "cpuinfo_max_freq", 1, _KHZ_MAX) for folder in files.find(_POLICIES)]
    return _megahertz(now), _megahertz(most)


def _megahertz(readings: list[int | None]) -> float | None:
    known = [reading for reading in readings if reading is not None]
    return max(known) / 1000 if known else None


def cores(files: BoardFiles) -> int | None:
    """Number of cores that are switched on: a Jetson's power mode leaves some off."""
    text = files.text("cores", "sys/devices/system/cpu/online")
    if text is None:
        return None
    ranges = [re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part) for part in text.split(",")]
    count = sum(int(found[2] or found[1]) - int(found[1]) + 1 if found else -(10**6) for found in ranges)
    if count <= 0:
        files.note("cores", f"sys/devices/system/cpu/online: {text[:40]!r}, expected ranges such as 0-3")
        return None
    return count
