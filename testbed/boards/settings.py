"""The table `[boards]` of a scenario: what of a board's profile is imposed on the devices that stand for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import Fault

if TYPE_CHECKING:
    from testbed.scenario import Scenario

CpuKind = Literal["none", "auto", "cgroup", "duty-cycle"]
#: The engine whose devices are processes of this machine, one each: only those can be slowed down.
_PROCESS: Final = "process"


class BoardEmulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Off unless asked for: devices then compute as fast as this machine does.

    cpu: how a device is held to its board's share of one core: by a control group, by a duty cycle of stopping and
    continuing, by whichever works (`auto`), or not at all. memory: whether the board's memory is its limit, by control
    group. thermal: whether boards heat up while they work, and throttle at their limit. ambient_c: of the air around
    every board. throttled_share: what a throttled board keeps of its speed; it recovers once it is hysteresis_c cooler.
    """

    cpu: CpuKind = "none"
    memory: bool = False
    thermal: bool = False
    ambient_c: Annotated[float, Meta(ge=-40, le=100)] = 25.0
    throttled_share: Annotated[float, Meta(gt=0, lt=1)] = 0.67
    hysteresis_c: Annotated[float, Meta(gt=0, le=30)] = 3.0

    @property
    def is_on(self) -> bool:
        """Whether anything is imposed."""
        return self.cpu != "none" or self.memory or self.thermal


def board_faults(scenario: Scenario) -> Iterator[Fault]:
    """What the table asks of a fleet that cannot be done."""
    boards, groups = scenario.boards, scenario.fleet.groups
    if boards.is_on and not any(group.board for group in groups):
        yield Fault("boards", "boards to emulate", "a board in one of fleet.groups", 'say board = "raspberry-pi-4b"')
    if boards.thermal and boards.cpu == "none":
        yield Fault("boards.thermal", 'true with boards.cpu = "none"', '"auto": a hot board is slowed down')
    for index, group in enumerate(groups):
        path = f"fleet.groups.{index}"
        if group.power == "battery" and not group.board:
            yield Fault(f"{path}.power", '"battery" without a board', "a board: its profile says what it draws")
        if group.power == "battery" and not group.battery_wh:
            yield Fault(f"{path}.battery_wh", "0", 'above 0 with power = "battery"')
        if group.power == "mains" and group.battery_wh:
            yield Fault(f"{path}.battery_wh", f"{group.battery_wh:g}", '0 with power = "mains"')
    is_battery = any(group.power == "battery" for group in groups)
    if (boards.is_on or is_battery) and scenario.fleet.engine != _PROCESS:
        yield Fault("fleet.engine", f"{scenario.fleet.engine!r} with emulated boards or batteries", f'"{_PROCESS}"')


__all__ = ["BoardEmulation", "CpuKind", "board_faults"]
