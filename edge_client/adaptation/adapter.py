"""What a device knows of itself between rounds, and so what it takes of each (docs/adaptation.md).

`density.decide` is the rule; here is what feeds it: board, calibration, what rounds have shown of steps and links, and
what earlier predictions got wrong.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from edge_client.adaptation.calibration import Calibration, load_calibration
from edge_client.adaptation.predictions import Actual, PredictionLog
from edge_client.adaptation.watches import LinkWatch, StepWatch
from edge_client.board.profiles import BoardProfile, find_board, load_board
from edge_client.byte_ledger import RoundEntry
from edge_client.density import DECLINED, Constraint, DensityDecision, DeviceState, Offer, RungCost, decide
from edge_client.device import Health, measure
from edge_client.gate import batch_size
from edge_client.settings import DeviceSettings
from edge_client.training import count_steps
from fedpruneshare.plan import PlanView

_log = structlog.get_logger()

CALIBRATION_FILE: Final = "calibration.toml"
#: Most declines in a row before a device doubts what it has measured.
_MOST_PATIENCE: Final = 64
#: Envelope, seal and message around one chunk, in bytes (measured below it).
_FRAMING_BYTES: Final = 264


class Adapter:
    """Decides for one device, and learns from each of its rounds."""

    def __init__(self, settings: DeviceSettings, parameters: int) -> None:
        """`parameters`: of the dense model. Raises `SettingsError` for a board or calibration that cannot be read."""
        folder = Path(settings.store)
        self._settings, self._parameters, self._root = settings, parameters, Path(settings.root)
        self._profile = load_board(settings.board) if settings.board else find_board(self._root)
        self._calibration = _calibration(settings.calibration, folder)
        self._learnt = PredictionLog(folder)
        self._steps, self._links = StepWatch(), LinkWatch()
        self._receive_bytes_s: float | None = None
        self._uplink_bytes_s: float | None = None
        self._coolest_c: float | None = None
        self._last_rung: int | None = None
        self._declines, self._patience = 0, 1
        self._doubted: Constraint | None = None

    @property
    def profile(self) -> BoardProfile:
        """The board this is, or is taken for."""
        return self._profile

    def health(self) -> Health | None:
        """How the board is now; None where the device does not adapt to it."""
        if not self._settings.adaptive:
            return None
        health = measure(self._root)
        if health.temperature_c is not None:
            self._coolest_c = min(self._coolest_c or health.temperature_c, health.temperature_c)
        return health

    def decide(
        self, view: PlanView, examples: int, remaining_s: float, now: tuple[Health | None, float | None]
    ) -> DensityDecision:
        """What to train of this plan: rung, width, steps; a rung of None is a decline with its reason.

        `now`: the board's health, and the joules this round may use (None: no budget).
        """
        offer = self._offer(view, examples, remaining_s)
        decision = self._try_least(offer, now) if self._doubted else None
        decision = decision or decide(offer, self._settings.limits, self._state(*now))
        self._last_rung = DECLINED if decision.rung is None else decision.rung
        self._doubt(decision)
        _log.info(
            "decided", round_id=view.plan.round_id, rung=decision.rung, width=decision.width,
            steps=decision.local_steps, constraint=str(decision.constraint), reason=decision.reason,
            inputs=decision.inputs,
        )  # fmt: skip
        return decision

    def _try_least(self, offer: Offer, now: tuple[Health | None, float | None]) -> DensityDecision | None:
        """After a doubt, as little as shows whether it was right: a low battery must not pay for all there is."""
        offer = replace(offer, rungs=offer.rungs[:1], steps=offer.least_steps)
        decision = decide(offer, self._settings.limits, self._state(*now))
        if decision.rung is None or self._doubted is None:
            return None
        reason = f"the least there is, to measure again after a decline for {self._doubted}: {decision.reason}"
        return replace(decision, constraint=self._doubted, reason=reason)

    def _doubt(self, decision: DensityDecision) -> None:
        """Forget what was measured after enough declines for it: a device that declines measures nothing any more.

        One stall would otherwise keep it out for good. It then tries the least there is first. After each time it
        waits twice as long for the next.
        """
        if decision.rung is not None or decision.constraint not in (Constraint.DEADLINE, Constraint.ENERGY):
            return
        self._declines += 1
        if self._declines < self._patience:
            return
        self._declines, self._patience = 0, min(2 * self._patience, _MOST_PATIENCE)
        self._steps, self._links = StepWatch(), LinkWatch()
        self._receive_bytes_s = self._uplink_bytes_s = None
        self._learnt.forget()
        self._doubted = decision.constraint
        _log.info("measurements-doubted", reason=decision.reason, again_after_declines=self._patience)

    def trained(self, width: float, step_s: float) -> None:
        """Note how long a training step took."""
        if step_s > 0:
            self._steps.add(width, step_s)

    def received(self, size_bytes: int, seconds: float) -> None:
        """Note how long the model took to come; a small one shows latency only, unless it took long."""
        if size_bytes > 0 and seconds > 0 and (size_bytes >= _LARGE_BYTES or seconds >= _LONG_S):
            self._receive_bytes_s = size_bytes / seconds

    def uploaded(self, aggregator: str, payload_bytes: int, seconds: float, under_way_bytes: int) -> None:
        """Note how long a broker took to acknowledge a chunk."""
        self._links.add(aggregator, payload_bytes, seconds, in_flight_bytes=under_way_bytes)

    def learn(self, decision: DensityDecision, entry: RoundEntry, joules: float | None) -> dict[str, Any]:
        """Hold the prediction of a finished round against what it took: both sides, for the ledger.

        `joules`: measured over the predicted phases; None where they were modelled or not metered at all.
        """
        if decision.predicted is None or not self._settings.adaptive:
            return {}
        if self._doubted is None:  # what was only tried does not show yet that rounds go well again
            self._declines, self._patience = 0, 1
        self._doubted = None
        down, up = entry.down.model + entry.down.plan, entry.up.shares + entry.up.resent
        if up >= _LARGE_BYTES and entry.seconds.get("send", 0.0) > 0:
            self._uplink_bytes_s = up / entry.seconds["send"]  # all links at once, which no single one shows
        return self._learnt.record(decision.predicted, Actual(entry.seconds, down, up, joules))

    # ------------------------------------------------------------------ what a decision rests on

    def _offer(self, view: PlanView, examples: int, remaining_s: float) -> Offer:
        training = view.plan.training
        size = batch_size(examples, training, self._settings.gate)
        steps = count_steps(examples, size) * training.local_epochs
        return Offer(
            rungs=tuple(_cost(view, rung) for rung in view.plan.rungs),
            steps=steps,
            least_steps=max(min(steps, self._settings.gate.least_steps), math.ceil(training.least_work * steps)),
            remaining_s=remaining_s,
            batch_size=size,
            parameters=self._parameters,
            task=self._settings.task.name,
        )

    def _state(self, health: Health | None, energy_left_j: float | None) -> DeviceState:
        if not self._settings.adaptive:
            return DeviceState(self._profile, energy_left_j=energy_left_j, last_rung=None)
        return DeviceState(
            profile=self._profile,
            health=health,
            calibration=self._calibration,
            step_s=self._steps.steps_s(),
            links=self._links.estimates(),
            uplink_bytes_s=self._uplink_bytes_s,
            receive_bytes_s=self._receive_bytes_s,
            energy_left_j=energy_left_j,
            coolest_c=self._coolest_c,
            last_rung=self._last_rung,
            corrections=self._learnt.ratios(),
        )


#: Fewer bytes show how long the way is, not how broad.
_LARGE_BYTES: Final = 65_536
#: More seconds than latency explains.
_LONG_S: Final = 2.0


def _calibration(path: str, folder: Path) -> Calibration | None:
    """The calibration that is named, else the one in the device's folder, if any."""
    own = folder / CALIBRATION_FILE
    if not path and not own.exists():
        return None
    return load_calibration(Path(path) if path else own)


def _cost(view: PlanView, rung: int) -> RungCost:
    """What a rung weighs on the wire, framing included."""
    segments = view.plan.segments[: rung + 1]
    chunks = sum(view.chunks(segment.blob_bytes) for segment in segments)
    each = {
        ident: view.share_bytes(rung, x) + _FRAMING_BYTES * view.chunks(view.share_bytes(rung, x))
        for ident, x in view.plan.points.items()
    }
    return RungCost(
        rung=rung,
        width=segments[-1].width,
        density=segments[-1].density,
        down_bytes=sum(segment.blob_bytes for segment in segments) + _FRAMING_BYTES * chunks,
        up_bytes=sum(each.values()),
        up_bytes_each=each,
        words=view.upload_words(rung),
    )
