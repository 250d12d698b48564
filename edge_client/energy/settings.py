"""The table `[energy]` of a device's settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Joules = Annotated[float, Meta(ge=0)]
MeterName = Literal["auto", "model", "none", "ina3221", "rpi5-pmic", "rapl"]


class RadioSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the radio takes over the idle board, as measured for one's own: joules per megabyte (10^6) and per tail.

    A tail is what it takes after the last byte until it sleeps again: `tail_w` for `tail_s`.
    """

    up_j_mb: Joules
    down_j_mb: Joules
    tail_w: Annotated[float, Meta(ge=0, le=100)] = 0.0
    tail_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class EnergySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How joules are found, and how many may be spent; 0 is no limit.

    `meter`: `auto` takes the sensor the board has, else the model; `model` never reads a sensor; `none` says nothing;
    the name of a sensor insists on it. A sensor may be the whole machine's: several devices on one machine must take
    `model` or `none`. It is read every `every_s` seconds and where a phase begins or ends.
    `work_scale`: a machine that stands for a slower board works as many times longer in the model's eyes; with
    `work_is_slowed` the machine is itself held to that speed, so what it takes is the board's time already.
    `budget_j`: of all rounds together, over restarts. `round_j`: of one round. `battery_wh`: what the battery holds
    when full; what is above the reserve is spread over `horizon_rounds` rounds.
    """

    meter: MeterName = "auto"
    every_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.2
    work_scale: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    work_is_slowed: bool = False
    budget_j: Joules = 0.0
    round_j: Joules = 0.0
    battery_wh: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    horizon_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    radio: RadioSettings | None = None

    def __post_init__(self) -> None:
        if self.meter == "none" and (self.budget_j or self.round_j or self.battery_wh):
            raise ValueError("meter is 'none' and there is a budget, expected 'auto' or 'model' to count it with")
        if self.work_scale != 1.0 and self.meter != "model":
            raise ValueError(f"work_scale is {self.work_scale:g} with meter {self.meter!r}, expected 'model'")
