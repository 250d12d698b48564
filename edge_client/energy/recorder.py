"""Sampling a meter for a while: joules, or the reason why there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_client.energy.meters import EnergyCounter, PowerMeter, Source
from fedpruneshare.errors import MeterError

#: So many equal readings in a row, of a sensor that has noise, mean that it hangs.
_STUCK_AFTER = 50


@dataclass
class Energy:
    """What was taken: joules over so many seconds, from so many readings."""

    joules: float = 0.0
    seconds: float = 0.0
    readings: int = 0


@dataclass
class EnergyRecorder:
    """Adds up a meter's readings; call `sample` often, or let `sampling` do it. `clock` in seconds.

    A power meter is integrated by the trapezoidal rule between samples, a counter is read off. The first failure ends
    the recording: then `failure` says why, and no figure is given for what was not measured whole.
    """

    meter: PowerMeter | EnergyCounter
    clock: Callable[[], float]
    taken: Energy = field(default_factory=Energy)
    failure: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None
        self._equal = 0

    @property
    def source(self) -> Source:
        """Where the joules come from."""
        return self.meter.source

    def sample(self) -> None:
        """Read the meter and add what has passed since the last reading."""
        with self._lock:
            if self.failure:
                return
            try:
                self._add(self.clock(), self._read())
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

    def _read(self) -> float:
        return self.meter.watts() if isinstance(self.meter, PowerMeter) else self.meter.joules()

    def _add(self, now_s: float, reading: float) -> None:
        last, self._last = self._last, (now_s, reading)
        if last is None:
            return
        self._refuse_stuck(reading == last[1])
        seconds = now_s - last[0]
        is_power = isinstance(self.meter, PowerMeter)
        self.taken.joules += (reading + last[1]) / 2 * seconds if is_power else reading - last[1]
        self.taken.seconds += seconds
        self.taken.readings += 1

    def _refuse_stuck(self, is_equal: bool) -> None:
        self._equal = self._equal + 1 if is_equal else 0
        if self._equal >= _STUCK_AFTER:
            raise MeterError(f"{self.meter.source.sensor}: {self._equal} equal readings in a row, the sensor hangs")
