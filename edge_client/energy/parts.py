"""What a round's joules are told apart by, and what is said of each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edge_client.energy.meters import Source


class Phase(StrEnum):
    """What a device does with its time in a round; `idle` is waiting in it."""

    RECEIVE = "receive"
    TRAIN = "train"
    PRUNE = "prune"
    ENCODE = "encode"
    SHARE = "share"
    SEND = "send"
    IDLE = "idle"


@dataclass(frozen=True)
class Span:
    """A phase from one moment to another, in seconds since 1970, so that an external meter's record fits."""

    phase: Phase
    start_s: float
    end_s: float


@dataclass(frozen=True)
class PhaseEnergy:
    """Joules of one phase of one round, with what they come from; None where `reason` says why there is no figure.

    `uncertainty_j`: plus or minus, an estimate itself. `readings`: intervals between two of the sensor's that the phase
    has a part in. `idle_j`: what the idle board would have taken in that time (a model's only).
    """

    joules: float | None
    seconds: float
    source: Source
    is_modelled: bool
    uncertainty_j: float | None
    readings: int
    idle_j: float | None = None
    reason: str = ""

    def as_entry(self) -> dict[str, Any]:
        """For the ledger (JSON-able)."""
        entry: dict[str, Any] = {
            "joules": _rounded(self.joules),
            "uncertainty_j": _rounded(self.uncertainty_j),
            "seconds": round(self.seconds, 4),
            "source": self.source.sensor,
            "modelled": self.is_modelled,
            "readings": self.readings,
            "covers": self.source.covers,
            "resolution": self.source.resolution,
        }
        if self.idle_j is not None:
            entry["idle_j"] = _rounded(self.idle_j)
        return entry | ({"reason": self.reason} if self.reason else {})


def ledger_energy(found: Mapping[Phase, PhaseEnergy]) -> dict[str, Any]:
    """A round's energy for `RoundEntry.energy`."""
    return {str(phase): part.as_entry() for phase, part in found.items()}


def ledger_spans(found: Sequence[Span]) -> list[tuple[str, float, float]]:
    """A round's phases for `RoundEntry.spans`, to the millisecond."""
    return [(str(span.phase), round(span.start_s, 3), round(span.end_s, 3)) for span in found]


def measured_j(found: Mapping[Phase, PhaseEnergy]) -> float | None:
    """What was measured over the phases of work, idle left out; None where any of them was not measured."""
    return _sum(found, is_modelled=False, without=(Phase.IDLE,))


def round_j(found: Mapping[Phase, PhaseEnergy], *, is_modelled: bool) -> float | None:
    """The whole round's joules, idle included, if all its phases are of that kind; else None."""
    return _sum(found, is_modelled=is_modelled, without=())


def _sum(found: Mapping[Phase, PhaseEnergy], *, is_modelled: bool, without: tuple[Phase, ...]) -> float | None:
    if not found or any(part.is_modelled is not is_modelled for part in found.values()):
        return None
    joules = [part.joules for phase, part in found.items() if phase not in without]
    known = [value for value in joules if value is not None]
    return sum(known) if len(known) == len(joules) else None


def _rounded(joules: float | None) -> float | None:
    return None if joules is None else round(joules, 6)
