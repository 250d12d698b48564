"""The rule before `density.decide` took over; removed as soon as `service.py` calls that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge_client.settings import DeviceLimits
from fedpruneshare.messages import RoundPlan


class Constraint(StrEnum):
    """What bound the decision."""

    PLAN = "plan"
    """The densest rung the plan allows was taken."""
    RUNG_MAX = "rung_max"
    """The device's own `limits.rung_max` stopped it earlier."""
    DEADLINE = "deadline"
    """Training would not end in time at any rung."""


@dataclass(frozen=True)
class Measurements:
    """What the device knows of itself: seconds of one training step (None before the first), steps of an epoch."""

    step_s: float | None
    steps_per_epoch: int


@dataclass(frozen=True)
class DensityDecision:
    """The rung to take (None: decline) and the binding constraint, with the prediction it rests on."""

    rung: int | None
    constraint: Constraint
    predicted_train_s: float | None
    available_s: float


#: Part of the remaining time that training may use; the rest is for receiving, sharing and sending.
_TRAIN_SHARE = 0.8


def decide(plan: RoundPlan, limits: DeviceLimits, measured: Measurements, remaining_s: float) -> DensityDecision:
    """Take the densest allowed rung up to `rung_max`; decline if training cannot end before the deadline.

    An unstructured mask does not make a step faster, so a sparser rung would not help with the deadline.
    """
    available_s = remaining_s * _TRAIN_SHARE
    steps = plan.training.local_epochs * measured.steps_per_epoch
    predicted_s = None if measured.step_s is None else measured.step_s * steps
    if predicted_s is not None and predicted_s > available_s:
        return DensityDecision(None, Constraint.DEADLINE, predicted_s, available_s)
    rung = max(rung for rung in plan.rungs if rung <= limits.rung_max)
    constraint = Constraint.PLAN if rung == plan.rungs[-1] else Constraint.RUNG_MAX
    return DensityDecision(rung, constraint, predicted_s, available_s)
