"""Sampling a meter for a while: joules, or the reason why there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from edge_client.energy.meters import EnergyCounter, PowerMeter, Source, read_meter
from fedpruneshare.errors import MeterError

#: So many equal readings in a row, of a sensor that has noise, mean that it hangs.
_STUCK_AFTER: Final = 50
#: No board draws so much: a counter that says so was set back (a reset looks like a wrap of nearly its whole range).
_MOST_W: Final = 10_000.0


@dataclass
class Energy:
    """What was taken: joules over so many seconds, from so many readings."""

    joules: float = 0.0
    seconds: float = 0.0
    readings: int = 0


@dataclass(frozen=True)
class Interval:
    """What passed between two readings. `start_w` and `end_w` are equal where the sensor is a counter."""

    start_s: float
    end_s: float
    joules: float
    start_w: float
    end_w: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end_s - self.start_s

    def watts_at(self, moment_s: float) -> float:
        """Power at a moment within, linear between both readings."""
        return self.start_w + (self.end_w - self.start_w) * (moment_s - self.start_s) / self.seconds


@dataclass
class StuckWatch:
    """Counts equal readings in a row, of those far enough apart to differ; lives longer than one recording."""

    reading: float | None = None
    seen_s: float = float("-inf")
    equal: int = 0

    def look(self, now_s: float, reading: float, source: Source) -> None:
        """Note a reading. Raises `MeterError` when the sensor hangs."""
        if reading != self.reading:
            self.reading, self.seen_s, self.equal = reading, now_s, 0
        elif now_s - self.seen_s >= source.interval_s:
            self.seen_s = now_s
            self.equal += 1
        if self.equal >= _STUCK_AFTER:
            raise MeterError(f"{source.sensor}: {self.equal} equal readings in a row, the sensor hangs")


@dataclass
class EnergyRecorder:
    """Adds up a meter's readings; call `sample` often, or let `sampling` do it. `clock` in seconds.

    A power meter is integrated by the trapezoidal rule between samples, a counter is read off. The first failure ends
    the recording: then `failure` says why, and no figure is given for what was not measured whole. That a power meter
    was not read for `longest_s` is a failure, too. `tell` gets each interval.
    """

    meter: PowerMeter | EnergyCounter
    clock: Callable[[], float]
    taken: Energy = field(default_factory=Energy)
    failure: str = ""
    watch: StuckWatch = field(default_factory=StuckWatch)
    longest_s: float = float("inf")
    tell: Callable[[Interval], None] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None

    @property
    def source(self) -> Source:
        """Where the joules come from."""
        return self.meter.source

    @property
    def age_s(self) -> float:
        """How long ago the last reading was; infinite before the first."""
        last = self._last
        return float("inf") if last is None else self.clock() - last[0]

    def sample(self) -> None:
        """Read the meter and add what has passed since the last reading."""
        with self._lock:
            if self.failure:
                return
            try:
                self._add(self.clock(), read_meter(self.meter))
            except MeterError as error:
                self.failure, self.taken = str(error), Energy()

    @contextmanager
    def sampling(self, every_s: float) -> Iterator[None]:
        """Sample in a thread of its own for as long as the block lasts."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every_s):
                self.sample()

        self.sample()
        thread = threading.Thread(target=work, name="energy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.sample()

    def _add(self, now_s: float, reading: float) -> None:
        last, self._last = self._last, (now_s, reading)
        self.watch.look(now_s, reading, self.source)
        if last is None:
            return
        found = self._interval(*last, now_s, reading)
        self.taken.joules += found.joules
        self.taken.seconds += found.seconds
        self.taken.readings += 1
        if self.tell is not None:
            self.tell(found)

    def _interval(self, start_s: float, start: float, end_s: float, end: float) -> Interval:
        seconds, sensor = end_s - start_s, self.source.sensor
        if isinstance(self.meter, PowerMeter):
            if seconds > self.longest_s:
                raise MeterError(f"{sensor}: not read for {seconds:.1f} s, expected a reading in {self.longest_s:g} s")
            return Interval(start_s, end_s, (start + end) / 2 * seconds, start, end)
        joules = end - start
        watts = joules / seconds if seconds > 0 else 0.0
        if joules < 0 or watts > _MOST_W:
            raise MeterError(f"{sensor}: {joules:g} J in {seconds:g} s, expected 0 to {_MOST_W:g} W; was it reset?")
        return Interval(start_s, end_s, joules, watts, watts)
