"""One emulated board while a run lasts: which share it has, how warm it is, what is left in its battery; pure.

What it is told comes from `testbed.boards.emulation`, which reads clocks and ledgers and imposes the share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from edge_client.board.profiles import BoardProfile
from testbed.boards.battery import Battery
from testbed.boards.thermal import BoardHeat

#: Why a board is slower than its profile says, beside the events that say so by their own names.
HEAT = "heat"


@dataclass(frozen=True)
class News:
    """Something that happened to a board. `is_gone`: its device no longer runs, or must not."""

    ident: str
    text: str
    is_gone: bool = False


@dataclass
class Board:
    """One device's board. `share`: of one core, unthrottled; `slowed`: reason -> factor on it."""

    ident: str
    profile: BoardProfile
    share: float
    heat: BoardHeat | None = None
    battery: Battery | None = None
    slowed: dict[str, float] = field(default_factory=dict)
    kills: int = 0
    is_dark: bool = False

    @property
    def share_now(self) -> float:
        """Of one core, as throttled as it is now."""
        return self.share * prod(self.slowed.values())

    @property
    def is_throttled(self) -> bool:
        """Whether anything slows it down."""
        return bool(self.slowed)

    def warm(self, seconds: float, cpu_s: float) -> Iterator[News]:
        """Let time pass in which the device used so much of a core, and say if throttling changed."""
        if self.heat is None or seconds <= 0:
            return
        if not self.heat.pass_time(seconds, cpu_s / (seconds * self.share)):
            return
        temperature, limit_c = f"{self.heat.temperature_c:.1f} °C", self.profile.thermal.limit_c
        if self.heat.is_throttled:
            self.slowed[HEAT] = self.heat.settings.throttled_share
            text = f"throttled at {temperature} (limit {limit_c:g} °C) to {self.slowed[HEAT]:.0%} of its speed"
        else:
            del self.slowed[HEAT]
            text = f"back at full speed at {temperature}"
        yield News(self.ident, f"{self.ident} {text}")

    def drain(self, spent_j: float) -> Iterator[News]:
        """Note the joules spent so far, and say if that was the last of the battery."""
        if self.battery is None:
            return
        self.battery.spent_j = max(self.battery.spent_j, spent_j)
        if self.battery.is_empty and not self.is_dark:
            self.is_dark = True
            yield News(self.ident, f"{self.ident} went dark: battery empty after {spent_j:.0f} J", is_gone=True)

    def count_kills(self, kills: int, limit_mib: int) -> Iterator[News]:
        """Note how often the kernel killed its device for memory, and say so once each."""
        if kills > self.kills:
            self.kills = kills
            yield News(self.ident, f"{self.ident} killed: needed more than its {limit_mib} MiB of memory", is_gone=True)
