"""The figures arms are compared by: mean and spread over the seeds, and the ratio of each arm to each other one."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from testbed.ledger.rounds import IDLE
from testbed.report.markup import BYTE_UNITS, JOULE_UNITS, SECOND_UNITS, Units, with_spread
from testbed.report.runs import ArmRun
from testbed.summary import Figures

#: What is said after a source of joules that is no sensor.
_MODELLED: Final = "modelled"


@dataclass(frozen=True)
class Spread:
    """Mean over the seeds, and the standard deviation over them (0 for one)."""

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Measure:
    """One cost of a seed's run: how to find it (None: not counted), and in which units it is shown."""

    key: str
    title: str
    find: Callable[[Figures], float | None]
    units: Units

    def of(self, arm: ArmRun) -> Spread | None:
        """Over the seeds of an arm; None where a seed lacks it."""
        found = [self.find(one) for one in arm.figures.by_seed]
        values = [value for value in found if value is not None]
        if not values or len(values) < len(found):
            return None
        return spread(values)

    def text(self, arm: ArmRun) -> str:
        """Mean ± standard deviation for a reader; a dash where it was not counted."""
        found = self.of(arm)
        return "–" if found is None else _text(found, self.units)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of one value at least."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def _text(found: Spread, units: Units) -> str:
    return with_spread(found.mean, found.sd if found.count > 1 else None, units)


# --------------------------------------------------------------------------- joules


def joules_by_source(figures: Figures) -> dict[str, float]:
    """Joules of all devices at work, idling left out, by what measured or modelled them; empty where nothing did."""
    return _sums(figures, is_idle=False)


def idle_by_source(figures: Figures) -> dict[str, float]:
    """What all devices idled away, by source."""
    return _sums(figures, is_idle=True)


def _sums(figures: Figures, *, is_idle: bool) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for component, part in (figures.energy_j or {}).items():
        sums[source_of(part.source)] += part.value if (component.partition(" ")[0] == IDLE) is is_idle else 0.0
    return dict(sums)


def source_of(text: str) -> str:
    """The source's name alone: a component's `source` may say of how many entries it has figures."""
    return text.partition(",")[0]


def source_text(source: str) -> str:
    """A source for a reader, modelled joules named as such."""
    return f"{_MODELLED} by the board profiles" if source == "model" else f"measured by {source}"


def sources(arm: ArmRun) -> list[str]:
    """Every source of joules of an arm."""
    return list(dict.fromkeys(name for one in arm.figures.by_seed for name in joules_by_source(one)))


def joules_lines(arm: ArmRun) -> tuple[str, ...]:
    """Joules of an arm, mean ± standard deviation, of which source, and what was idled; once for each source."""
    lines = []
    for source in sources(arm):
        known = [one for one in arm.figures.by_seed if source in joules_by_source(one)]
        worked = spread([joules_by_source(one)[source] for one in known])
        idled = spread([idle_by_source(one)[source] for one in known])
        lines += [_text(worked, JOULE_UNITS), _MODELLED if source == "model" else source]
        lines += [f"idle: {_text(idled, JOULE_UNITS)}"] if idled.mean else []
    return tuple(lines) or ("–",)


def lacks_joules(arm: ArmRun) -> bool:
    """Whether some of the entries in the devices' ledgers have no joules, so that sums are too low."""
    return any("," in part.source for part in (arm.figures.energy_j or {}).values())


def _joules(figures: Figures) -> float | None:
    """Joules of work where all are of one source: measured and modelled ones are never added."""
    found = joules_by_source(figures)
    return next(iter(found.values())) if len(found) == 1 else None


def have_same_source(one: ArmRun, other: ArmRun) -> bool:
    """Whether the joules of two arms may be divided by each other."""
    return len(sources(one)) == 1 and sources(one) == sources(other)


# --------------------------------------------------------------------------- the measures


def _wire(direction: str) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        wire = figures.wire_bytes
        counted: int = getattr(wire, direction)
        return counted if wire.source == "interface" else None

    return find


UPLINK: Final = Measure("uplink", "uplink", lambda f: f.uplink_bytes, BYTE_UNITS)
LAST_UPLINK: Final = Measure(
    "uplink-last", "uplink a device, last round", lambda f: f.uplink_bytes_last_round_per_device, BYTE_UNITS
)
DOWNLINK: Final = Measure("downlink", "downlink", lambda f: f.downlink_bytes, BYTE_UNITS)
WIRE_UP: Final = Measure("wire-up", "wire bytes up", _wire("up"), BYTE_UNITS)
WIRE_DOWN: Final = Measure("wire-down", "wire bytes down", _wire("down"), BYTE_UNITS)
JOULES: Final = Measure("joules", "joules of work", _joules, JOULE_UNITS)
TIME: Final = Measure("time", "time", lambda f: f.wall_s, SECOND_UNITS)
COSTS: Final = (UPLINK, LAST_UPLINK, DOWNLINK, WIRE_UP, WIRE_DOWN, JOULES, TIME)


def ratio_of(measure: Measure, one: ArmRun, other: ArmRun) -> tuple[float, float] | None:
    """Both means of a measure, or None where they may not be divided."""
    if measure is JOULES and not have_same_source(one, other):
        return None
    first, second = measure.of(one), measure.of(other)
    return None if first is None or second is None else (first.mean, second.mean)
