"""The kernel's files of an emulated board, so that a device reads temperature and battery as it would on a real one.

The folder holds what `edge_client.device.measure` reads: thermal zone, throttling, power supply, model. What is not
emulated leads back to this machine: memory and control groups, clock. The load of the machine is none of the board's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from edge_client.board.profiles import BoardProfile

_PASSED_ON: Final = ("proc/meminfo", "proc/self", "sys/fs/cgroup", "run")
_ZONE, _COOLING = "sys/class/thermal/thermal_zone0", "sys/class/thermal/cooling_device0"
_BATTERY, _MAINS = "sys/class/power_supply/BAT0", "sys/class/power_supply/AC"
_FIRMWARE: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
#: Bits of the Raspberry Pi's firmware: throttled now, and since boot.
_THROTTLED, _SINCE_BOOT = 0x4, 0x40000


class BoardSensors:
    """Writes the files of one board below `root`."""

    def __init__(self, root: Path, profile: BoardProfile) -> None:
        self._root = root
        self._is_pi = any(name.startswith("Raspberry Pi") for name in profile.match)
        self._was_throttled = False
        self._shown: dict[str, str] = {}
        for name in _PASSED_ON:
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(Path("/") / name)
        self._write("sys/devices/system/cpu/online", f"0-{profile.processor.cores - 1}")
        if profile.match:
            self._write("proc/device-tree/model", f"{profile.match[0]} (emulated)")

    @property
    def root(self) -> Path:
        """What stands for `/`."""
        return self._root

    def show_temperature(self, temperature_c: float) -> None:
        """In the thermal zone of the processor, in thousandths of a degree as kernels do, to a tenth."""
        self._write(f"{_ZONE}/type", "cpu-thermal")
        self._write(f"{_ZONE}/temp", str(round(temperature_c * 10) * 100))

    def show_throttling(self, is_throttled: bool) -> None:
        """As the Raspberry Pi's firmware tells it, elsewhere as a cooling device of the kernel does."""
        self._was_throttled |= is_throttled
        if self._is_pi:
            bits = _THROTTLED * is_throttled | _SINCE_BOOT * self._was_throttled
            self._write(_FIRMWARE, f"{bits:x}")
        else:
            self._write(f"{_COOLING}/type", "cpufreq-cpu0")
            self._write(f"{_COOLING}/cur_state", str(int(is_throttled)))

    def show_battery(self, percent: float) -> None:
        """In whole percent, as batteries tell it, discharging."""
        self._write(f"{_BATTERY}/type", "Battery")
        self._write(f"{_BATTERY}/status", "Discharging")
        self._write(f"{_BATTERY}/capacity", str(int(percent)))

    def show_mains(self) -> None:
        """A charger that is plugged in, and no battery."""
        self._write(f"{_MAINS}/type", "Mains")
        self._write(f"{_MAINS}/online", "1")

    def _write(self, name: str, text: str) -> None:
        """Put a file in its place at once, so that nobody reads half of it."""
        if self._shown.get(name) == text:
            return
        place = self._root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(place.name + ".new")
        new.write_text(text + "\n")
        os.replace(new, place)
        self._shown[name] = text
