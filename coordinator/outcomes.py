"""What rounds.jsonl says of a round: one line, the same fields however it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from coordinator.ledger import RoundLedger
from coordinator.opening import Opening
from fedpruneshare.messages import RoundPhase


def _now() -> float:
    return time.monotonic()  # by the module's name each time: a simulation has a time of its own


@dataclass
class Seconds:
    """How long the phases of a round took, by the monotonic clock, and when it began, in seconds since 1970."""

    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=_now)
    phases: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=_now)

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = _now()
        self.phases[phase] = round(now - self._last, 4)
        self._last = now

    def all(self) -> dict[str, float]:
        """Seconds of each phase and in total."""
        return {**self.phases, "total": round(_now() - self.started, 4)}


def outcome_line(round_id: int, phase: RoundPhase, seconds: Seconds, facts: dict[str, Any]) -> dict[str, Any]:
    """One line; what `facts` does not say stays blank."""
    blank: dict[str, Any] = {
        "round": round_id, "phase": str(phase), "reason": "", "contributors": 0, "aggregators": [],
        "verified": False, "verified_by": "", "density": None, "rungs": [], "segments_open": [], "accuracy": None,
        "loss": None, "model_bytes": 0, "cohort": 0, "reveal": "sum", "dealers_checked": False, "left_out_devices": [],
        "wrong_aggregators": [],
    }  # fmt: skip
    return {**blank, **facts, "started_at": round(seconds.started_at, 3), "seconds": seconds.all()}


def round_facts(ledger: RoundLedger, reason: str, opening: Opening | None) -> dict[str, Any]:
    """What is known of a round at its end."""
    view, names = ledger.view, {x: name for name, x in ledger.view.plan.points.items()}
    plan, judgement = view.plan, ledger.judgement
    facts: dict[str, Any] = {
        "reason": reason,
        "density": plan.segments[-1].density,
        "cohort": len(plan.cohort),
        "model_bytes": sum(segment.blob_bytes for segment in plan.segments),
        "reveal": str(plan.sharing.reveal),
        "dealers_checked": judgement is not None,
        "left_out_devices": list(judgement.dealers) if judgement else [],
        "wrong_aggregators": [names[x] for x in judgement.points] if judgement else [],
    }
    if opening is None:
        return facts
    opened = opening.opened
    rungs = [c.rung for c in opened.contributors]
    return facts | {
        "contributors": len(rungs),
        "aggregators": sorted(names[x] for x in opened.points),
        "verified": opened.is_verified,
        "verified_by": opened.verified_by,
        "rungs": [rungs.count(rung) for rung in range(view.rungs)],
        "segments_open": opened.segments,
        "accuracy": opening.accuracy,
        "loss": opening.loss,
        "left_out_devices": facts["left_out_devices"] + list(opened.left_out_devices),
        "wrong_aggregators": sorted({*facts["wrong_aggregators"], *(names[x] for x in opened.wrong_points)}),
    }
