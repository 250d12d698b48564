"""How a board warms up and when it throttles: first order, from its profile; pure.

What the profile says of heat and power gives one thermal resistance, `busy_rise_c` over what one busy core draws above
idle; the rest follows: T → ambient + resistance · P, with the profile's time constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_client.board.profiles import BoardProfile
from testbed.boards.settings import BoardEmulation


@dataclass
class BoardHeat:
    """The chip of one board. It begins as warm as it gets when idle for long."""

    profile: BoardProfile
    settings: BoardEmulation
    temperature_c: float
    is_throttled: bool = False

    @classmethod
    def idle(cls, profile: BoardProfile, settings: BoardEmulation) -> BoardHeat:
        """A board that has done nothing for long."""
        return cls(profile, settings, steady_c(profile, settings.ambient_c, 0.0))

    def pass_time(self, seconds: float, use: float) -> bool:
        """Warm or cool for so long at `use` (0 idle, 1 one core busy at full clock); whether throttling changed.

        Above the limit it throttles, until it is `hysteresis_c` below.
        """
        target_c = steady_c(self.profile, self.settings.ambient_c, min(1.0, max(0.0, use)))
        kept = math.exp(-seconds / self.profile.thermal.time_constant_s)
        self.temperature_c = target_c + (self.temperature_c - target_c) * kept
        limit_c = self.profile.thermal.limit_c
        was = self.is_throttled
        self.is_throttled = self.temperature_c >= limit_c - (self.settings.hysteresis_c if was else 0.0)
        return self.is_throttled != was


def steady_c(profile: BoardProfile, ambient_c: float, use: float) -> float:
    """Where the chip's temperature ends up at a use between 0 (idle) and 1 (one core busy)."""
    power, rise_c = profile.power, profile.thermal.busy_rise_c
    added_w = power.busy_w - power.idle_w
    idle_rise_c = rise_c * power.idle_w / added_w if added_w > 0 else 0.0
    return ambient_c + idle_rise_c + use * rise_c
