"""Joules of a round by phase: a sensor read in a thread and at every boundary, or the model.

`begin_round`, `enter` (or `with phase(...)`) for what follows one another, `end_round`. A round is measured whole, or
modelled whole, or has no figure and a reason: if the sensor fails in it, no phase of it gets one. Phases shorter than
the sensor's resolution keep their share by time, and an uncertainty that says what it is worth.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from edge_client.energy.meters import EnergyCounter, PowerMeter, Source, find_meter
from edge_client.energy.model import EnergyModel, Radio
from edge_client.energy.parts import Phase, PhaseEnergy, Span, ledger_energy, ledger_spans, measured_j, round_j
from edge_client.energy.recorder import EnergyRecorder, Interval, StuckWatch
from edge_client.energy.settings import EnergySettings
from edge_client.energy.tally import Tally, split
from fedpruneshare.errors import MeterError

if TYPE_CHECKING:
    from edge_client.board.profiles import BoardProfile

_log = structlog.get_logger()

Clock = Callable[[], float]
#: A power meter must be read this often, in its own intervals and in seconds, or what it took in between is a guess.
_LONGEST: Final = (10, 5.0)


@dataclass
class _Round:
    """A round under way: when which phase began, by the meter's clock, and what the readings so far say."""

    to_unix_s: float
    recorder: EnergyRecorder | None
    reading: ExitStack = field(default_factory=ExitStack)
    marks: list[tuple[float, Phase]] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)
    """What the processor had spent at each mark, in seconds, and at the end."""
    end_s: float = math.inf
    tallies: defaultdict[Phase, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def spans(self, since_s: float = -math.inf) -> list[Span]:
        """Phases in order; the last one lasts until the end. Those that ended by `since_s` are left out."""
        found: list[Span] = []
        end_s = self.end_s
        for start_s, phase in reversed(self.marks):  # from the newest: intervals come in order
            if end_s <= since_s:
                break
            found.append(Span(phase, start_s, end_s))
            end_s = start_s
        return found[::-1]

    def processor_s(self) -> dict[Phase, float]:
        """Seconds of the processor by phase, once the round has ended."""
        spent: dict[Phase, float] = defaultdict(float)
        for (_, phase), (start_s, end_s) in zip(self.marks, pairwise(self.worked), strict=True):
            spent[phase] += end_s - start_s
        return spent


class PhaseMeter:
    """Tells joules by phase, one round at a time. Safe to sample from a thread of its own; call it from one thread.

    `meter` None: modelled. `model` None, too: nothing is told. `clock` is monotonic, in seconds; `wall` in seconds
    since 1970, for the record that an external meter's is laid beside. `processor`: seconds this process has computed.
    """

    def __init__(
        self,
        meter: PowerMeter | EnergyCounter | None,
        model: EnergyModel | None,
        every_s: float,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        processor: Clock = time.process_time,
    ) -> None:
        self._meter, self._model, self._every_s = meter, model, every_s
        self._clock, self._wall, self._processor = clock, wall, processor
        self._watch = StuckWatch()
        self._lock = threading.Lock()
        self._round: _Round | None = None
        self._log: list[Span] = []
        self._modelled_j: float | None = None

    @property
    def source(self) -> Source | None:
        """Where its figures come from; None where it gives none."""
        return self._meter.source if self._meter else self._model.source if self._model else None

    @property
    def modelled_j(self) -> float | None:
        """The last round's joules by the model, whether or not it was measured, too; None without a model."""
        return self._modelled_j

    def spans(self) -> list[Span]:
        """When the last round was in which phase, in seconds since 1970; neighbours of one phase are one span."""
        return list(self._log)

    # ------------------------------------------------------------------ one round

    def begin_round(self) -> None:
        """Start with phase `idle`. Raises `RuntimeError` where the last round has not ended."""
        if self._round is not None:
            raise RuntimeError("a round is being metered, expected end_round() before the next begin_round()")
        self._round = _Round(self._wall() - self._clock(), self._recorder())
        if self._round.recorder:
            self._round.reading.enter_context(self._round.recorder.sampling(self._every_s))
        self._mark(self._round, Phase.IDLE)

    def enter(self, phase: Phase) -> None:
        """What was done until now ends, `phase` begins. Raises `RuntimeError` outside of a round."""
        if self._round is None:
            raise RuntimeError(f"phase {phase} outside of a round, expected begin_round() before")
        self._mark(self._round, phase)
        recorder = self._round.recorder
        if recorder and not recorder.failure and recorder.age_s >= recorder.source.interval_s:
            recorder.sample()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """`enter(phase)`, and afterwards what was before; nothing if the round has ended meanwhile."""
        before, within = self._round.marks[-1][1] if self._round else Phase.IDLE, self._round
        self.enter(phase)
        try:
            yield
        finally:
            if self._round is not None and self._round is within:
                self.enter(before)

    def end_round(self, bytes_up: int, bytes_down: int) -> dict[Phase, PhaseEnergy]:
        """Joules by phase; empty where nothing is told. Bytes are those of the round, for the model's radio.

        Raises `RuntimeError` where none has begun.
        """
        ended = self._round
        if ended is None:
            raise RuntimeError("no round is being metered, expected begin_round() before end_round()")
        with self._lock:
            ended.end_s = self._clock()
            ended.worked.append(self._processor())
        ended.reading.close()
        self._round = None
        spans = ended.spans()
        self._log = _joined([Span(s.phase, s.start_s + ended.to_unix_s, s.end_s + ended.to_unix_s) for s in spans])
        seconds = _seconds(spans)
        worked = ended.processor_s()
        modelled = self._model.round_energy(seconds, bytes_up, bytes_down, worked) if self._model else {}
        self._modelled_j = round_j(modelled, is_modelled=True)
        if ended.recorder is None:
            return modelled
        if failure := ended.recorder.failure or _unread(ended):
            return _unavailable(seconds, ended.recorder.source, failure)
        return _measured(ended.tallies, spans, ended.recorder.source)

    # ------------------------------------------------------------------ inside

    def _recorder(self) -> EnergyRecorder | None:
        if self._meter is None:
            return None
        longest_s = max(_LONGEST[0] * self._every_s, _LONGEST[1])
        return EnergyRecorder(self._meter, self._clock, watch=self._watch, longest_s=longest_s, tell=self._divide)

    def _mark(self, to: _Round, phase: Phase) -> None:
        with self._lock:
            to.marks.append((self._clock(), phase))
            to.worked.append(self._processor())

    def _divide(self, interval: Interval) -> None:
        """Called by the recorder, from whichever thread has read."""
        with self._lock:
            if self._round is not None and interval.seconds > 0:
                split(interval, self._round.spans(interval.start_s), self._round.tallies)


def _joined(spans: list[Span]) -> list[Span]:
    """Without empty spans, and with neighbours of one phase as one."""
    joined: list[Span] = []
    for span in spans:
        if span.end_s <= span.start_s:
            continue
        if joined and joined[-1].phase is span.phase:
            joined[-1] = Span(span.phase, joined[-1].start_s, span.end_s)
        else:
            joined.append(span)
    return joined


def _seconds(spans: list[Span]) -> dict[Phase, float]:
    """Seconds of every phase that was entered, in the order of `Phase`."""
    return {
        phase: sum(span.end_s - span.start_s for span in spans if span.phase is phase)
        for phase in Phase
        if any(span.phase is phase for span in spans)
    }


def _unread(ended: _Round) -> str:
    """Why the readings do not cover the round; empty where they do."""
    spans = _joined(ended.spans())
    assert ended.recorder is not None
    if spans and not ended.recorder.taken.readings:
        return f"{ended.recorder.source.sensor}: no second reading in the round"
    return ""


def _unavailable(seconds: Mapping[Phase, float], source: Source, reason: str) -> dict[Phase, PhaseEnergy]:
    return {
        phase: PhaseEnergy(None, length_s, source, False, None, 0, reason=f"unavailable: {reason}")
        for phase, length_s in seconds.items()
    }


def _measured(tallies: Mapping[Phase, Tally], spans: list[Span], source: Source) -> dict[Phase, PhaseEnergy]:
    found, joined = {}, _joined(spans)
    for phase, length_s in _seconds(spans).items():
        tally, count = tallies.get(phase, Tally()), sum(span.phase is phase for span in joined)
        uncertainty_j = tally.uncertainty_j(length_s, count, source)
        found[phase] = PhaseEnergy(tally.joules, length_s, source, False, uncertainty_j, tally.readings)
    return found


# --------------------------------------------------------------------------- which one to take


def find_energy(
    root: Path, profile: BoardProfile, settings: EnergySettings, clock: Clock = time.monotonic, wall: Clock = time.time
) -> PhaseMeter:
    """The meter the settings ask for, of the board whose files lie under `root`.

    Raises `MeterError` where they insist on a sensor that is not there; `auto` logs why there is none, and models.
    """
    radio = Radio.of(profile, settings.radio)
    model = (
        EnergyModel(profile, radio, settings.work_scale, settings.work_is_slowed) if settings.meter != "none" else None
    )
    return PhaseMeter(_meter(root, settings), model, settings.every_s, clock, wall)


def _meter(root: Path, settings: EnergySettings) -> PowerMeter | EnergyCounter | None:
    if settings.meter in ("model", "none"):
        return None
    try:
        meter = find_meter(root)
    except MeterError as error:
        if settings.meter != "auto":
            raise
        _log.info("energy-modelled", reason=str(error))
        return None
    if settings.meter not in ("auto", meter.source.sensor):
        raise MeterError(f"this board's power sensor is {meter.source.sensor}, expected {settings.meter!r}")
    return meter


__all__ = [
    "Phase",
    "PhaseEnergy",
    "PhaseMeter",
    "Span",
    "find_energy",
    "ledger_energy",
    "ledger_spans",
    "measured_j",
    "round_j",
]
