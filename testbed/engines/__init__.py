"""What runs the devices of a fleet: one interface, and which of its makers a scenario asks for (`fleet.engine`).

`process`: a real device a process, forked from one warm parent (`testbed.devices`). `synthetic`: many devices a
process that share, seal, sign and wait as real ones do and train nothing (`testbed.synthetic`). `ray`: real devices
on the nodes of a Ray cluster (`testbed.engines.ray_engine`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from edge_client.settings import SplitKind
from testbed.places import HERE, Place

if TYPE_CHECKING:
    from testbed.scenario import Scenario

EngineName = Literal["process", "synthetic", "ray"]
#: The one task of the synthetic engine: random values for a linear layer.
SYNTHETIC_TASK: Final = "synthetic"


class DeviceEngine(Protocol):
    """Starts, signals and watches devices by name. Not for use from several threads."""

    def launch(self, task: str, data_dir: Path, split: SplitKind = "") -> None:
        """Start what the devices run in, without waiting for it (`wait_ready` does); `split` is tried on the task."""

    def wait_ready(self) -> None:
        """Return once devices can be started. Raises `TaskError` if the task cannot be used, else `RunError`."""

    def export(self, seed: int, bundle: Path) -> None:
        """Write the task's bundle with initial weights from `seed`. Raises `TaskError` with the reason."""

    def start(self, name: str, settings: Path, place: Place = HERE) -> int:
        """Start a device in its place and return the pid of its process. Raises `RunError` where it runs already."""

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""

    def ended(self) -> dict[str, int]:
        """Exit code of every device that has ended and was not started again."""

    def kill(self, name: str) -> None:
        """End a device as a loss of power would; returns when it is gone."""

    def stop(self, grace_s: float) -> None:
        """End all devices, cleanly within `grace_s` where they can, and what they run in. Never raises."""


def new_engine(scenario: Scenario, logs: Path) -> DeviceEngine:
    """The engine a scenario asks for; nothing is started yet."""
    if scenario.fleet.engine == "synthetic":
        from testbed.synthetic.engine import SyntheticDevices

        return SyntheticDevices(scenario.fleet, logs)
    if scenario.fleet.engine == "ray":
        from testbed.engines.ray_engine import RayDevices

        return RayDevices(scenario, logs)
    from testbed.devices import DeviceProcesses

    return DeviceProcesses(logs)


def conditions(scenario: Scenario, engine: DeviceEngine) -> dict[str, Any]:
    """What a run's summary says of its engine."""
    if scenario.fleet.engine == "ray":
        from testbed.engines.ray_engine import RayDevices

        assert isinstance(engine, RayDevices)
        return {"engine": engine.conditions()}
    return {"engine": scenario.fleet.engine}
