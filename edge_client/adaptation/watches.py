"""What real work has shown of the links and the training steps: robust figures from a bounded number of samples.

Rules without I/O and without a clock: whoever publishes or trains reports how long it took.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

#: Publishes of at most this many bytes show the round-trip time; their own transfer hardly counts.
SMALL_BYTES: Final = 2_048
#: Publishes of at least this many bytes show the rate.
LARGE_BYTES: Final = 16_384
#: Samples kept of each kind.
KEPT: Final = 32


@dataclass(frozen=True)
class LinkEstimate:
    """Rate and round-trip time of one uplink; None until publishes have shown it. With how many showed it."""

    up_bytes_s: float | None
    rtt_s: float | None
    large: int
    small: int


@dataclass
class _Samples:
    large: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    small: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class LinkWatch:
    """Times of publishes, from handing a payload over to its PUBACK, by aggregator (docs/protocol.md §3).

    Medians of the last `KEPT` publishes of each kind: one stall or one lucky packet moves nothing.
    """

    def __init__(self) -> None:
        self._links: dict[str, _Samples] = {}

    def add(self, aggregator: str, payload_bytes: int, seconds: float, *, in_flight_bytes: int | None = None) -> None:
        """Report one acknowledged publish.

        `in_flight_bytes`: unacknowledged bytes at the moment it was handed over, its own included; with several
        publishes outstanding all of them go before its PUBACK. Default: the payload alone. Raises `ValueError` for
        figures that cannot be.
        """
        ahead = payload_bytes if in_flight_bytes is None else in_flight_bytes
        if payload_bytes < 0 or ahead < payload_bytes or not 0 < seconds < float("inf"):
            found = f"{payload_bytes} bytes ({ahead} in flight) in {seconds} s"
            raise ValueError(f"a publish of {found}, expected bytes >= 0, not more than in flight, and seconds > 0")
        samples = self._links.setdefault(aggregator, _Samples())
        if ahead <= SMALL_BYTES:
            samples.small.append(seconds)
        elif payload_bytes >= LARGE_BYTES:
            samples.large.append((ahead, seconds))

    def estimate(self, aggregator: str) -> LinkEstimate:
        """What is known of one link."""
        samples = self._links.get(aggregator, _Samples())
        rtt_s = median(samples.small) if samples.small else None
        rates = [_rate(count, seconds, rtt_s or 0.0) for count, seconds in samples.large]
        return LinkEstimate(median(rates) if rates else None, rtt_s, len(rates), len(samples.small))

    def estimates(self) -> dict[str, LinkEstimate]:
        """What is known of every link that anything was published on, by aggregator."""
        return {ident: self.estimate(ident) for ident in sorted(self._links)}


def _rate(count: int, seconds: float, rtt_s: float) -> float:
    """Bytes a second while the payload was on its way.

    The acknowledgement's way back is no transfer time; but on a link whose times are all round trip, taking it off
    would leave nothing, so at most half is taken off: such a rate is too low, never too high by much.
    """
    return count / max(seconds - rtt_s, seconds / 2)


class StepWatch:
    """Seconds of training steps by width: the median of the last `KEPT` of each."""

    def __init__(self) -> None:
        self._steps: dict[str, deque[float]] = {}

    def add(self, width: float, seconds: float) -> None:
        """Report one step at `width`, the kept share of channels (0 < width <= 1). Raises `ValueError`."""
        if not 0 < width <= 1 or not 0 < seconds < float("inf"):
            raise ValueError(f"a step of {seconds} s at width {width}, expected seconds > 0 and 0 < width <= 1")
        self._steps.setdefault(width_key(width), deque(maxlen=KEPT)).append(seconds)

    def steps_s(self) -> dict[str, float]:
        """Seconds of a step by width as text ("0.5"), as a calibration keeps them."""
        return {width: median(steps) for width, steps in sorted(self._steps.items())}


def width_key(width: float) -> str:
    """A width as the text that keys tables: 0.5 -> "0.5", 1 -> "1.0"."""
    return str(float(width))


__all__ = ["KEPT", "LARGE_BYTES", "SMALL_BYTES", "LinkEstimate", "LinkWatch", "StepWatch", "width_key"]
