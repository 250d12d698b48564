"""What a round would cost this device at one rung: seconds, joules, bytes, MiB and degrees (docs/adaptation.md).

Pure: what was measured comes in, nothing is read here. Every estimate is monotone in every input: slower, less,
hotter or wider never predicts cheaper. What was never measured is left out, and named in `Resolved.inputs`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edge_client.adaptation.calibration import Calibration, LinkRate
    from edge_client.adaptation.watches import LinkEstimate
    from edge_client.board.profiles import BoardProfile, PowerStates
    from edge_client.device import Health

UNMEASURED: Final = "unmeasured"
#: The phases that are predicted. `share` is all from the trained model to sealed chunks: encode, split, seal, sign.
PHASES: Final = ("receive", "train", "share", "send")
#: Part of a step's cost taken not to shrink with the width where no narrower width was timed.
_FIXED_SHARE: Final = 0.2
#: A throttled processor is taken to be this much slower than when it was timed (a Pi 4 falls from 1.5 to 1.0 GHz).
_THROTTLED: Final = 1.5
_MIB: Final = 2**20
#: Bytes per parameter (model before, after, mask), per kept coordinate (position, value), per word (word, share).
_BUFFER_BYTES: Final = (12, 12, 16)


@dataclass(frozen=True)
class RungCost:
    """One rung of a plan as one device sees it: sizes from the plan, known exactly before the round.

    `density` is the kept share of all prunable weights; `up_bytes` are all shares, `up_bytes_each` by aggregator.
    """

    rung: int
    width: float
    density: float
    down_bytes: int
    up_bytes: int
    up_bytes_each: Mapping[str, int]
    words: int


@dataclass(frozen=True)
class Offer:
    """What the plan asks of this device.

    rungs: those the plan allows, rising. steps: local steps of a full round (epochs × batches); least_steps: the
    fewest the plan accepts, equal to `steps` where it accepts no partial work. remaining_s: until the round ends.
    parameters: of the dense model. batch_size: of a step. task: what calibrated step times must belong to.
    """

    rungs: tuple[RungCost, ...]
    steps: int
    least_steps: int
    remaining_s: float
    batch_size: int
    parameters: int = 0
    task: str = ""


@dataclass(frozen=True)
class DeviceState:
    """What the device knows of itself now. None, or a missing key, is not known and blocks nothing.

    step_s: seconds of a training step by width (a number or text), timed by this process; these override the
    calibrated ones. links: by aggregator, timed by this process. uplink_bytes_s: what all links together carried at
    once, all share bytes of the last upload over the seconds it took.
    energy_left_j: what this round may use; None is no budget. coolest_c: the coolest this process has seen the chip.
    last_rung: the rung last taken, `density.DECLINED` after a decline, None without history.
    corrections: actual over predicted by phase (`PHASES`, "energy", "memory"); see `predictions.py`.
    """

    profile: BoardProfile
    health: Health | None = None
    calibration: Calibration | None = None
    step_s: Mapping[float, float] | Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, LinkRate | LinkEstimate] = field(default_factory=dict)
    uplink_bytes_s: float | None = None
    receive_bytes_s: float | None = None
    energy_left_j: float | None = None
    coolest_c: float | None = None
    last_rung: int | None = None
    corrections: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a round is expected to cost. Phases that were never measured are absent, and not in the totals.

    joules: the whole board over the predicted phases, always a model. mib: the process at its peak, `extra_mib` of
    it not allocated before. peak_c: the chip when training ends, None without a temperature.
    """

    seconds: Mapping[str, float]
    total_s: float
    joules: float
    down_bytes: int
    up_bytes: int
    mib: float
    extra_mib: float
    peak_c: float | None


@dataclass(frozen=True)
class _Figure:
    """One number and where it comes from: this process ("measured"), "calibrated", or the board's "profile"."""

    value: float
    source: str


@dataclass(frozen=True)
class _Links:
    by_aggregator: Mapping[str, _Figure]
    uplink: _Figure
    receive: _Figure
    rtt_s: float


@dataclass(frozen=True)
class _Watts:
    busy: float
    send: float
    receive: float
    source: str


@dataclass(frozen=True)
class _Costs:
    """What was timed and weighed of this task, by width; empty, or None, where it was not."""

    step_s: Mapping[float, float]
    step_source: str
    step_mib: Mapping[float, float]
    base_mib: float | None
    share_bytes_s: float | None
    calibration: str


@dataclass(frozen=True)
class Resolved:
    """The figures a decision rests on, each from its best source; `inputs` names them for the log (JSON-able)."""

    offer: Offer
    state: DeviceState
    costs: _Costs
    links: _Links
    watts: _Watts
    inputs: dict[str, Any]


# --------------------------------------------------------------------------- which figure to believe


def resolve(offer: Offer, state: DeviceState) -> Resolved:
    """Take each figure from its best source: this process, else the calibration, else the board's profile."""
    calibration = state.calibration
    if calibration is not None and calibration.board != state.profile.name:
        costs = _costs(offer, state, None, f"ignored: of board {calibration.board}, this is {state.profile.name}")
        calibration = None
    else:
        costs = _costs(offer, state, calibration, "used" if calibration else UNMEASURED)
    links, watts = _links(offer, state, calibration), _watts(state.profile.power, calibration)
    inputs = _cost_inputs(costs) | _link_inputs(links) | {"power": watts.source} | _state_inputs(offer, state)
    return Resolved(offer, state, costs, links, watts, inputs)


def _costs(offer: Offer, state: DeviceState, calibration: Calibration | None, used: str) -> _Costs:
    share_bytes_s = _known(calibration.share_bytes_s) if calibration else None
    if calibration is not None and calibration.task != offer.task:
        used = f"only its rates: of task {calibration.task!r}, this is {offer.task!r}"
    elif calibration is not None:
        # A larger batch costs in proportion; a smaller one is not taken to cost less.
        batches = max(1.0, offer.batch_size / max(calibration.batch_size, 1))
        timed = {width: seconds * batches for width, seconds in calibration.step_s.items()}
        mib = {width: size * batches for width, size in calibration.step_mib.items()}
        source = "measured and calibrated" if state.step_s else "calibrated"
        step_s = _all_known(timed) | _all_known(state.step_s)
        return _Costs(step_s, source, _all_known(mib), calibration.base_mib, share_bytes_s, used)
    source = "measured" if state.step_s else UNMEASURED
    return _Costs(_all_known(state.step_s), source, {}, None, share_bytes_s, used)


def _links(offer: Offer, state: DeviceState, calibration: Calibration | None) -> _Links:
    """Rates to each aggregator, of the whole uplink and of the way down.

    The whole uplink, where nobody measured it, is taken to be no faster than the fastest link that was: a link that
    was timed alone says what the uplink carries, and the profile's default says only what the board could.
    """
    profile, calibrated = state.profile.link, calibration.links if calibration else {}
    up, by_aggregator = _Figure(profile.up_mbit_s * 125_000, "profile"), {}
    rtt = _Figure(profile.rtt_ms / 1000, "profile")
    rtts = []
    for name in sorted({name for cost in offer.rungs for name in cost.up_bytes_each}):
        own, before = state.links.get(name), calibrated.get(name)
        rates = (own.up_bytes_s if own else None, before.up_bytes_s if before else None)
        by_aggregator[name] = _best(up, *rates)
        rtts.append(_best(rtt, own.rtt_s if own else None, before.rtt_s if before else None).value)
    found = [figure.value for figure in by_aggregator.values() if figure is not up]
    uplink = _best(_Figure(max(found), "fastest link") if found else up, state.uplink_bytes_s)
    down = _Figure(profile.down_mbit_s * 125_000, "profile")
    receive = _best(down, state.receive_bytes_s, calibration.receive_bytes_s if calibration else None)
    return _Links(by_aggregator, uplink, receive, max(rtts, default=rtt.value))


def _best(otherwise: _Figure, measured: float | None, calibrated: float | None = None) -> _Figure:
    for value, source in ((_known(measured), "measured"), (_known(calibrated), "calibrated")):
        if value is not None:
            return _Figure(value, source)
    return otherwise


def _watts(profile: PowerStates, calibration: Calibration | None) -> _Watts:
    """Whole-board watts by what is done. Measured idle and busy replace the profile's; the radio adds to idle."""
    idle = _known(calibration.idle_w) if calibration else None
    busy = _known(calibration.busy_w) if calibration else None
    source = "profile" if idle is None or busy is None else "calibrated, radio from profile"
    if idle is None or busy is None:
        idle, busy = profile.idle_w, profile.busy_w
    send, receive = (idle + max(0.0, watts - profile.idle_w) for watts in (profile.send_w, profile.receive_w))
    return _Watts(busy, send, receive, source)


def _cost_inputs(costs: _Costs) -> dict[str, Any]:
    return {
        "calibration": costs.calibration,
        "step_s": {f"{width:g}": seconds for width, seconds in sorted(costs.step_s.items())} or UNMEASURED,
        "step_source": costs.step_source,
        "step_mib": {f"{width:g}": mib for width, mib in sorted(costs.step_mib.items())} or UNMEASURED,
        "base_mib": _said(costs.base_mib),
        "share_bytes_s": _said(costs.share_bytes_s),
    }


def _link_inputs(links: _Links) -> dict[str, Any]:
    figures = {"uplink": links.uplink, "receive": links.receive} | {
        f"to {k}": v for k, v in links.by_aggregator.items()
    }
    rates = {name: {"bytes_s": figure.value, "source": figure.source} for name, figure in figures.items()}
    return {"links": rates, "rtt_s": links.rtt_s}


def _state_inputs(offer: Offer, state: DeviceState) -> dict[str, Any]:
    names = ("temperature_c", "is_throttled", "free_mib", "load_1min", "battery_percent", "on_mains")
    return {
        "board": state.profile.name,
        **{name: _said(getattr(state.health, name, None)) for name in names},
        "coolest_c": _said(state.coolest_c),
        "energy_left_j": "no budget" if state.energy_left_j is None else state.energy_left_j,
        "remaining_s": offer.remaining_s,
        "steps_offered": [offer.least_steps, offer.steps],
        "last_rung": state.last_rung,
        "corrections": dict(sorted(state.corrections.items())),
    }


def _known(value: float | None) -> float | None:
    """A measurement that says something: neither missing nor infinite, not a number or negative."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _all_known(by_width: Mapping[float, float] | Mapping[str, float]) -> dict[float, float]:
    return {float(width): value for width, value in by_width.items() if _known(value) is not None}


def _said(value: float | None) -> float | str:
    return UNMEASURED if value is None else value


# --------------------------------------------------------------------------- what it costs


def predict(resolved: Resolved, cost: RungCost, steps: int) -> Prediction:
    """What a round at this rung with so many local steps would cost."""
    seconds = _seconds(resolved, cost, steps)
    train_mib = cost_at(resolved.costs.step_mib, cost.width) or 0.0
    extra_mib = (train_mib + _buffers_mib(resolved.offer.parameters, cost)) * _correction(resolved.state, "memory")
    return Prediction(
        seconds=seconds,
        total_s=sum(seconds.values()),
        joules=_joules(resolved, seconds),
        down_bytes=cost.down_bytes,
        up_bytes=cost.up_bytes,
        mib=(resolved.costs.base_mib or 0.0) + extra_mib,
        extra_mib=extra_mib,
        peak_c=_peak_c(resolved.state, seconds.get("train", 0.0) + seconds.get("share", 0.0)),
    )


def _seconds(resolved: Resolved, cost: RungCost, steps: int) -> dict[str, float]:
    """Seconds by phase. All shares leave over one uplink at once, and the round waits for the slowest broker."""
    links, costs, health = resolved.links, resolved.costs, resolved.state.health
    seconds = {"receive": cost.down_bytes / _rate(links.receive.value) + links.rtt_s}
    step_s = cost_at(costs.step_s, cost.width)
    if step_s is not None:
        seconds["train"] = steps * step_s * (_THROTTLED if health and health.is_throttled else 1.0)
    if costs.share_bytes_s is not None:
        seconds["share"] = cost.up_bytes / _rate(costs.share_bytes_s)
    each = [size / _rate(links.by_aggregator[name].value) for name, size in cost.up_bytes_each.items()]
    seconds["send"] = max([cost.up_bytes / _rate(links.uplink.value), *each]) + links.rtt_s
    return {phase: value * _correction(resolved.state, phase) for phase, value in seconds.items()}


def _joules(resolved: Resolved, seconds: Mapping[str, float]) -> float:
    watts = resolved.watts
    by_phase = {"receive": watts.receive, "train": watts.busy, "share": watts.busy, "send": watts.send}
    joules = sum(by_phase[phase] * value for phase, value in seconds.items())
    return joules * _correction(resolved.state, "energy")


def _peak_c(state: DeviceState, busy_s: float) -> float | None:
    """First-order warming towards the coolest temperature seen plus the board's steady rise, after `busy_s`."""
    now_c = state.health.temperature_c if state.health is not None else None
    if now_c is None:
        return None
    thermal = state.profile.thermal
    cool_c = now_c if state.coolest_c is None else min(now_c, state.coolest_c)
    to_go_c = thermal.busy_rise_c - (now_c - cool_c)
    # Rounded: differences of the last bit must not decide. What is below zero to go would only cool down.
    peak_c: float = now_c - to_go_c * math.expm1(-busy_s / thermal.time_constant_s)
    return max(now_c, round(peak_c, 3))


def _buffers_mib(parameters: int, cost: RungCost) -> float:
    kept = math.ceil(cost.density * parameters)
    sizes = zip(_BUFFER_BYTES, (parameters, kept, cost.words), strict=True)
    return sum(size * count for size, count in sizes) / _MIB


def _correction(state: DeviceState, phase: str) -> float:
    return _known(state.corrections.get(phase, 1.0)) or 1.0


def _rate(bytes_s: float) -> float:
    return max(bytes_s, 1.0)  # a link that stands still is slow beyond any deadline, and still a number


def cost_at(by_width: Mapping[float, float], width: float) -> float | None:
    """What a step costs at `width`, from the widths that were measured; None if none was.

    Between two known widths: the chord. A step costs between w and w² of the whole model, which is convex, so the
    chord is never too low. Below the narrowest: in proportion, but for a fixed part. Above the widest: with w². A
    wider step is never taken to be cheaper than a narrower one, whatever noise was measured.
    """
    if not by_width:
        return None
    widths = sorted(by_width)
    costs = list(accumulate((by_width[known] for known in widths), max))
    place = bisect_left(widths, width)
    if place == len(widths):
        return costs[-1] * (width / widths[-1]) ** 2
    if widths[place] == width:
        return costs[place]
    if place == 0:
        return costs[0] * (_FIXED_SHARE + (1 - _FIXED_SHARE) * width / widths[0])
    part = (width - widths[place - 1]) / (widths[place] - widths[place - 1])
    return costs[place - 1] * (1 - part) + costs[place] * part


__all__ = [
    "PHASES",
    "UNMEASURED",
    "DeviceState",
    "Offer",
    "Prediction",
    "Resolved",
    "RungCost",
    "cost_at",
    "predict",
    "resolve",
]
