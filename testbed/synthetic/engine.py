"""`fleet.engine = "synthetic"`: devices without training, many in a process (docs/large-fleets.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_client.settings import SplitKind
from fedpruneshare.errors import SettingsError
from testbed.devices import DeviceProcesses
from testbed.places import HERE, Place
from testbed.scenario import FleetSettings
from testbed.synthetic.bundle import write_bundle

_HOST = (sys.executable, "-m", "testbed.synthetic.host")


class SyntheticDevices:
    """Hosts with as many devices each as the scenario says; a device lives in the host it was first started in."""

    def __init__(self, fleet: FleetSettings, logs: Path) -> None:
        self._values, self._most = fleet.synthetic_values, fleet.synthetic_per_process
        self._hosts = [DeviceProcesses(logs, _HOST) for _ in range(-(-fleet.devices // self._most))]
        self._places: dict[str, int] = {}

    def launch(self, task: str, data_dir: Path, split: SplitKind = "") -> None:
        """Start the hosts without waiting for them."""
        for host in self._hosts:  # from the thread that stays: a host dies with the thread that started it
            host.launch(task, data_dir)

    def wait_ready(self) -> None:
        """Return once devices can be started. Raises `RunError` where a host does not start."""
        for host in self._hosts:
            host.wait_ready()

    def export(self, seed: int, bundle: Path) -> None:
        """Write the bundle of the synthetic task."""
        write_bundle(self._values, seed, bundle)

    def start(self, name: str, settings: Path, place: Place = HERE) -> int:
        """Start a device in its host and return the host's pid. Raises `RunError` where it runs already.

        Raises `SettingsError` for a place of its own: one process cannot be in several.
        """
        if place:
            raise SettingsError(f"{name} in {place}, expected no network or control group of its own: it is synthetic")
        return self._host(name).start(name, settings)

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return self._host(name).is_running(name)

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        return self._host(name).exit_code(name)

    def ended(self) -> dict[str, int]:
        """Exit code of every device that has ended and was not started again."""
        return {name: code for host in self._hosts for name, code in host.ended().items()}

    def kill(self, name: str) -> None:
        """End a device in the middle of whatever it does; its host and the others live on."""
        self._host(name).kill(name)

    def stop(self, grace_s: float) -> None:
        """End all devices cleanly, and the hosts. Never raises."""
        self._each(lambda host: host.stop(grace_s))

    def _each(self, step: Callable[[DeviceProcesses], None]) -> None:
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            list(pool.map(step, self._hosts))

    def _host(self, name: str) -> DeviceProcesses:
        return self._hosts[self._places.setdefault(name, len(self._places) // self._most)]
