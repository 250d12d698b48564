"""Which rung a device takes, how many steps it trains, and why (docs/adaptation.md, docs/protocol.md §6.2).

Pure: offer, limits and state in, decision out. The candidates are tried from the largest down: each allowed rung
with all local steps, then the lowest rung with ever fewer steps; the first that meets every limit is taken. Whether
a candidate meets a limit only ever gets worse with a slower link, less memory, a hotter chip, a lower battery, less
time or energy, so none of these can raise the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from edge_client.adaptation.estimates import DeviceState, Offer, Prediction, Resolved, RungCost, predict, resolve
from edge_client.settings import DeviceLimits

#: `DeviceState.last_rung` after a round that was declined: taking part again counts as going up.
DECLINED: Final = -1
#: Part of the free memory that a round may take.
_FREE_SHARE: Final = 0.9
#: A board that hardly warms up still has a sensor that jumps by some degrees.
_LEAST_RISE_C: Final = 20.0


class Constraint(StrEnum):
    """What bound the decision."""

    PLAN = "plan"
    """The largest rung the plan allows was taken, with all steps."""
    RUNG_MAX = "rung_max"
    """The device's own `limits.rung_max` stopped it earlier."""
    DEADLINE = "deadline"
    MEMORY = "memory"
    ENERGY = "energy"
    TEMPERATURE = "temperature"
    BATTERY = "battery"


@dataclass(frozen=True)
class DensityDecision:
    """What to train, and why.

    rung: None is a decline; `width` and `local_steps` are 0 then. constraint: why nothing larger was taken. predicted:
    of what was taken; of the smallest that was tried after a decline, None if nothing was. inputs: what it rests on,
    JSON-able. reason: one sentence with the numbers found and allowed.
    """

    rung: int | None
    width: float
    local_steps: int
    constraint: Constraint
    predicted: Prediction | None
    inputs: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class _Excess:
    """One limit that a candidate breaks: by how much (found / allowed), and both in words."""

    constraint: Constraint
    factor: float
    text: str


@dataclass(frozen=True)
class _Trial:
    cost: RungCost
    steps: int
    predicted: Prediction
    excess: _Excess | None


def decide(offer: Offer, limits: DeviceLimits, state: DeviceState) -> DensityDecision:
    """Take the largest candidate that meets every limit; decline, with the reason, if none does."""
    resolved = resolve(offer, state)
    allowed = [cost for cost in offer.rungs if cost.rung <= limits.rung_max]
    if not allowed:
        offered = ", ".join(str(cost.rung) for cost in offer.rungs) or "none"
        reason = f"the plan offers rung {offered}, limits.rung_max allows at most {limits.rung_max}"
        return DensityDecision(None, 0.0, 0, Constraint.RUNG_MAX, None, resolved.inputs, reason)

    def attempt(cost: RungCost, steps: int) -> _Trial:
        return _attempt(resolved, limits, cost, steps)

    larger: _Trial | None = None
    for cost in reversed(allowed):
        trial = attempt(cost, offer.steps)
        if trial.excess is None:
            return _taken(resolved, limits, trial, larger)
        larger = trial
    lowest = allowed[0]
    steps = _most_steps(offer, lambda steps: attempt(lowest, steps).excess is None)
    if steps is None:
        return _declined(resolved, attempt(lowest, min(offer.least_steps, offer.steps)))
    return _taken(resolved, limits, attempt(lowest, steps), larger)


def _attempt(resolved: Resolved, limits: DeviceLimits, cost: RungCost, steps: int) -> _Trial:
    """One candidate against every limit; of several broken ones the worst is named."""
    predicted = predict(resolved, cost, steps)
    last_rung = resolved.state.last_rung
    margin = limits.up_margin if last_rung is not None and cost.rung > last_rung else 0.0
    broken = [excess for check in _CHECKS for excess in check(resolved, limits, predicted, margin)]
    return _Trial(cost, steps, predicted, max(broken, key=lambda excess: excess.factor, default=None))


def _most_steps(offer: Offer, fits: Callable[[int], bool]) -> int | None:
    """The most steps from `least_steps` up that fit (fewer always fit when more do); None if not even those."""
    low, high = min(offer.least_steps, offer.steps), offer.steps
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


# --------------------------------------------------------------------------- the limits


def _time(resolved: Resolved, limits: DeviceLimits, predicted: Prediction, margin: float) -> Iterator[_Excess]:
    left_s = resolved.offer.remaining_s
    allowed_s = left_s * (1 - limits.deadline_safety) / (1 + margin)
    if not predicted.total_s <= allowed_s:
        text = f"{predicted.total_s:.4g} s, at most {_down(allowed_s)} s of the {left_s:.4g} s left"
        yield _Excess(Constraint.DEADLINE, _factor(predicted.total_s, allowed_s), text + _for(margin))


def _energy(resolved: Resolved, _: DeviceLimits, predicted: Prediction, margin: float) -> Iterator[_Excess]:
    left_j = resolved.state.energy_left_j
    if left_j is not None and not predicted.joules <= left_j / (1 + margin):
        text = f"{predicted.joules:.4g} J, at most {_down(left_j / (1 + margin))} J of the round's {left_j:.4g} J"
        yield _Excess(Constraint.ENERGY, _factor(predicted.joules, left_j / (1 + margin)), text + _for(margin))


def _memory(resolved: Resolved, limits: DeviceLimits, predicted: Prediction, margin: float) -> Iterator[_Excess]:
    """The whole process against the board and the user's bound; what it has yet to allocate against what is free."""
    profile, health = resolved.state.profile, resolved.state.health
    whole_mib = float(profile.ram_mib - profile.memory_reserve_mib)
    bounds = [(predicted.mib, whole_mib, "of the board")]
    if limits.memory_mib is not None:
        bounds.append((predicted.mib, float(limits.memory_mib), "of limits.memory_mib"))
    if health is not None and health.free_mib is not None:
        bounds.append((predicted.extra_mib, health.free_mib * _FREE_SHARE, f"of the {health.free_mib} MiB free"))
    for found, bound, whose in bounds:
        allowed = bound / (1 + margin)
        if not found <= allowed:
            text = f"{found:.4g} MiB, at most {_down(allowed)} MiB {whose}"
            yield _Excess(Constraint.MEMORY, _factor(found, allowed), text + _for(margin))


def _temperature(resolved: Resolved, limits: DeviceLimits, predicted: Prediction, margin: float) -> Iterator[_Excess]:
    """Going up needs a part of the board's whole rise as slack: degrees have no zero to take a part of."""
    thermal = resolved.state.profile.thermal
    limit_c = min(thermal.limit_c, limits.temperature_c or thermal.limit_c)
    allowed_c = limit_c - margin * max(thermal.busy_rise_c, _LEAST_RISE_C)
    if predicted.peak_c is not None and not predicted.peak_c <= allowed_c:
        text = f"{predicted.peak_c:.1f} °C at its end, at most {allowed_c:.1f} °C" + _for(margin)
        yield _Excess(Constraint.TEMPERATURE, _factor(predicted.peak_c, allowed_c), text)


def _battery(resolved: Resolved, limits: DeviceLimits, _: Prediction, margin: float) -> Iterator[_Excess]:
    health = resolved.state.health
    if health is None or health.battery_percent is None or health.on_mains:
        return
    needed, found = limits.battery_reserve_percent * (1 + margin), health.battery_percent
    if not found >= needed:
        text = f"a battery at {needed:.4g} % or more, it stands at {found:.4g} %" + _for(margin)
        yield _Excess(Constraint.BATTERY, _factor(needed, found), text)


_CHECKS: Final = (_time, _energy, _memory, _temperature, _battery)


def _factor(found: float, allowed: float) -> float:
    return found / allowed if allowed > 0 else float("inf")


def _down(value: float) -> str:
    return f"{max(value, 0.0):.4g}"


def _for(margin: float) -> str:
    return f" (with {100 * margin:.3g} % in hand for going up)" if margin else ""


# --------------------------------------------------------------------------- what is said


def _taken(resolved: Resolved, limits: DeviceLimits, trial: _Trial, larger: _Trial | None) -> DensityDecision:
    cost, offer = trial.cost, resolved.offer
    name = f"rung {cost.rung} (width {cost.width:g}, density {cost.density:.3g})"
    if trial.steps < offer.steps:
        name += f" with {trial.steps} of {offer.steps} steps"
    if larger is not None and larger.excess is not None:
        constraint = larger.excess.constraint
        more = f"all {offer.steps} steps" if larger.cost is cost else f"rung {larger.cost.rung}"
        why = f"{more} would need {larger.excess.text}"
    elif cost.rung < offer.rungs[-1].rung:
        constraint = Constraint.RUNG_MAX
        why = f"limits.rung_max is {limits.rung_max}, the plan offers up to rung {offer.rungs[-1].rung}"
    else:
        constraint, why = Constraint.PLAN, f"the largest the plan offers, {_summary(trial.predicted, offer)}"
    reason = f"{name}: {why}"
    return DensityDecision(cost.rung, cost.width, trial.steps, constraint, trial.predicted, resolved.inputs, reason)


def _summary(predicted: Prediction, offer: Offer) -> str:
    unmeasured = "" if "train" in predicted.seconds else ", training time unmeasured"
    return f"{predicted.total_s:.4g} s of the {offer.remaining_s:.4g} s left{unmeasured}"


def _declined(resolved: Resolved, trial: _Trial) -> DensityDecision:
    if trial.excess is None:
        raise RuntimeError("a declined round must break a limit")
    steps = f"{trial.steps} step{'' if trial.steps == 1 else 's'}"
    reason = f"no rung fits: rung {trial.cost.rung} with {steps} would need {trial.excess.text}"
    return DensityDecision(None, 0.0, 0, trial.excess.constraint, trial.predicted, resolved.inputs, reason)


__all__ = [
    "DECLINED",
    "Constraint",
    "DensityDecision",
    "DeviceState",
    "Offer",
    "Prediction",
    "RungCost",
    "decide",
]
