"""What was predicted beside what happened, and what the next prediction learns from it (docs/adaptation.md).

The rule is pure (`corrected`); `PredictionLog` keeps its state beside the ledger. A lost or damaged file costs a few
rounds of learning and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from edge_client.adaptation.estimates import PHASES, Prediction
from fedpruneshare.storage import write_atomically

_log = structlog.get_logger()

LEAST: Final = 0.25
MOST: Final = 4.0
#: How far a correction moves towards the middle one of the last three rounds, on a logarithmic scale.
_PACE: Final = 0.7
#: So much either way is no misprediction: short phases are mostly waiting, whatever the rung. Joules and MiB have none.
_SLACK_S: Final = {"receive": 0.5, "train": 0.1, "share": 0.1, "send": 0.5}
#: Phases of the ledger that are predicted together with another.
_COUNTED_WITH: Final = {"prune": "train", "encode": "share"}

_Ratio = Annotated[float, Meta(ge=LEAST, le=MOST)]


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ratio`: actual over predicted, as applied now. `recent`: what the last two rounds alone would have said."""

    ratio: _Ratio = 1.0
    recent: tuple[_Ratio, _Ratio] = (1.0, 1.0)


def corrected(old: Correction, predicted: float, actual: float, slack: float = 0.0) -> Correction:
    """The correction after a round in which `actual` came of `predicted`, which had `old` applied to it.

    A bounded moving average of the middle one of the last three rounds: a single outlier moves nothing, a lasting
    change is followed from its second round on. A difference well below `slack` is none. A figure that is not
    positive and finite teaches nothing.
    """
    if not (0 < predicted < float("inf") and 0 < actual < float("inf")):
        return old
    newest = _bounded((actual + slack) / (predicted / old.ratio + slack))
    target = median((*old.recent, newest))
    return Correction(_bounded(old.ratio * (target / old.ratio) ** _PACE), (old.recent[1], newest))


def _bounded(ratio: float) -> float:
    return min(max(ratio, LEAST), MOST)


@dataclass(frozen=True)
class Actual:
    """What a round really cost. Leave out what did not happen, or not wholly: a phase cut short teaches nothing.

    seconds: by phase, as the ledger names them. joules: over the predicted phases, None unmetered. mib: the most the
    process held in this round; None where only the peak of its whole life is known.
    """

    seconds: Mapping[str, float]
    down_bytes: int
    up_bytes: int
    joules: float | None = None
    mib: float | None = None
    by_phase: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        by_phase: dict[str, float] = {}
        for phase, seconds in self.seconds.items():
            name = _COUNTED_WITH.get(phase, phase)
            by_phase[name] = by_phase.get(name, 0.0) + seconds
        object.__setattr__(self, "by_phase", {name: by_phase[name] for name in PHASES if name in by_phase})


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal[1]
    corrections: dict[Annotated[str, Meta(max_length=32)], Correction]


class PredictionLog:
    """Learns from every round and remembers it in `corrections.json` in the device's store folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "corrections.json"
        self._corrections = self._read()

    def ratios(self) -> dict[str, float]:
        """For `DeviceState.corrections`: by phase, "energy" and "memory"; what was never learnt is absent."""
        return {name: correction.ratio for name, correction in sorted(self._corrections.items())}

    def forget(self) -> None:
        """Begin anew: what was learnt keeps the device from learning anything else."""
        self._corrections = {}
        self._path.unlink(missing_ok=True)

    def record(self, predicted: Prediction, actual: Actual) -> dict[str, Any]:
        """Learn from a round; returns both sides and the new corrections, for the round's ledger entry (JSON-able)."""
        for name, (expected, found) in _pairs(predicted, actual).items():
            before = self._corrections.get(name, Correction())
            self._corrections[name] = corrected(before, expected, found, _SLACK_S.get(name, 0.0))
        data = msgspec.json.encode(_File(1, dict(sorted(self._corrections.items()))))
        write_atomically(self._path, msgspec.json.format(data) + b"\n")
        return {
            "predicted": _row(predicted.seconds, predicted, predicted.joules),
            "actual": _row(actual.by_phase, actual, actual.joules),
            "corrections": {name: round(ratio, 4) for name, ratio in self.ratios().items()},
        }

    def _read(self) -> dict[str, Correction]:
        try:
            return dict(msgspec.json.decode(self._path.read_bytes(), type=_File).corrections)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            _log.warning("corrections-forgotten", path=str(self._path), reason=str(error))
            return {}


def _pairs(predicted: Prediction, actual: Actual) -> dict[str, tuple[float, float]]:
    """What can be compared: (predicted, actual) by the name of its correction."""
    pairs = {
        phase: (predicted.seconds[phase], actual.by_phase[phase])
        for phase in PHASES
        if phase in predicted.seconds and phase in actual.by_phase
    }
    # Joules of a round with an unpredicted phase, and MiB on top of an unknown base, would be blamed on the rest.
    if actual.joules is not None and all(phase in predicted.seconds for phase in PHASES):
        pairs["energy"] = (predicted.joules, actual.joules)
    base_mib = predicted.mib - predicted.extra_mib
    if actual.mib is not None and base_mib > 0:
        pairs["memory"] = (predicted.extra_mib, actual.mib - base_mib)
    return pairs


def _row(seconds: Mapping[str, float], of: Prediction | Actual, joules: float | None) -> dict[str, Any]:
    return {
        "seconds": {phase: round(value, 4) for phase, value in seconds.items()},
        "down_bytes": of.down_bytes,
        "up_bytes": of.up_bytes,
        "joules": None if joules is None else round(joules, 3),
        "mib": None if of.mib is None else round(of.mib, 1),
    }


__all__ = ["Actual", "Correction", "PredictionLog", "corrected"]
