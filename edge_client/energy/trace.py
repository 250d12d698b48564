"""An external meter's record: a CSV file of seconds and watts, laid beside what the device did."""

from __future__ import annotations

import csv
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

from edge_client.energy.meters import Source
from fedpruneshare.errors import MeterError


@dataclass(frozen=True)
class PowerTrace:
    """Power over time: rising seconds (of any clock) and watts, linear in between."""

    name: str
    seconds: tuple[float, ...] = field(repr=False)
    watts: tuple[float, ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> PowerTrace:
        """A CSV file with the columns `time_s` and `watts`. Raises `MeterError` naming the line."""
        seconds: list[float] = []
        watts: list[float] = []
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                if not {"time_s", "watts"} <= set(rows.fieldnames or ()):
                    raise MeterError(f"{path}: columns {rows.fieldnames}, expected time_s and watts")
                for row in rows:
                    seconds.append(_number(path, rows.line_num, row["time_s"]))
                    watts.append(_number(path, rows.line_num, row["watts"]))
                    if len(seconds) > 1 and seconds[-1] <= seconds[-2]:
                        raise MeterError(f"{path}, line {rows.line_num}: time {seconds[-1]}, expected a later one")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise MeterError(f"{path}: {error}, expected a CSV file of time_s and watts") from None
        if len(seconds) < 2:
            raise MeterError(f"{path}: {len(seconds)} samples, expected at least 2")
        return cls(path.name, tuple(seconds), tuple(watts))

    @property
    def source(self) -> Source:
        """The file, and how far apart its samples are."""
        step = (self.seconds[-1] - self.seconds[0]) / (len(self.seconds) - 1)
        return Source(
            "external", f"what the meter of {self.name} is wired to", f"a sample each {step:.3g} s", interval_s=step
        )

    def joules(self, start_s: float, end_s: float) -> float:
        """Energy between two moments of the trace, by the trapezoidal rule. Raises `MeterError` outside of it."""
        if not self.seconds[0] <= start_s <= end_s <= self.seconds[-1]:
            raise MeterError(
                f"{self.name}: {start_s} to {end_s} s, expected a time from {self.seconds[0]} to {self.seconds[-1]} s"
            )
        inner = range(bisect_left(self.seconds, start_s), bisect_left(self.seconds, end_s))
        times = [start_s, *(self.seconds[place] for place in inner), end_s]
        powers = [self._at(start_s), *(self.watts[place] for place in inner), self._at(end_s)]
        return sum(
            (powers[place] + powers[place + 1]) / 2 * (times[place + 1] - times[place])
            for place in range(len(times) - 1)
        )

    def _at(self, moment_s: float) -> float:
        place = bisect_left(self.seconds, moment_s)
        if self.seconds[place] == moment_s:
            return self.watts[place]
        share = (moment_s - self.seconds[place - 1]) / (self.seconds[place] - self.seconds[place - 1])
        return self.watts[place - 1] + share * (self.watts[place] - self.watts[place - 1])


def _number(path: Path, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise MeterError(f"{path}, line {line}: {text!r}, expected a number") from None
    if not abs(value) < float("inf"):
        raise MeterError(f"{path}, line {line}: {text!r}, expected a finite number")
    return value
