"""One direction of an emulated link as arithmetic: when, if at all, does a packet arrive? No I/O and no clock.

Times are seconds since the link came up, and never go backwards from call to call. The order is that of netem:
chance of loss, then the queue, which is left at the link's rate, then the delay. On top of it outages, which lose
what would have been sent in them, and a duty cycle, in which what is to be sent waits for the radio.
"""

from __future__ import annotations

import math
import random
from typing import Final

from testbed.links.settings import LinkProfile

#: Packets on their way in one direction, beyond which the newest is dropped (netem's default too).
QUEUE_PACKETS: Final = 1000
#: How often the delay takes another course, in seconds at least.
_WANDER_S: Final = 0.05


class Gate:
    """When a radio is out or asleep. Both directions of a link make one each, from the same seed."""

    def __init__(self, profile: LinkProfile, seed: int) -> None:
        self._rng = random.Random(seed)
        self._every_s, self._outage_s = profile.outage_every_s, profile.outage_s
        self._period_s, self._on_s = profile.duty_period_s, profile.duty_on_s
        self._from_s = self._to_s = 0.0
        if self._every_s > 0:
            self._next_outage(0.0)

    def _next_outage(self, after_s: float) -> None:
        self._from_s = after_s + self._rng.expovariate(1.0 / (self._every_s - self._outage_s))
        self._to_s = self._from_s + self._outage_s

    def outage_until(self, now_s: float) -> float | None:
        """The end of the outage at `now_s`, None where there is none."""
        if self._every_s <= 0:
            return None
        while now_s >= self._to_s:
            self._next_outage(self._to_s)
        return self._to_s if now_s >= self._from_s else None

    def awake_from(self, now_s: float) -> float:
        """The first time from `now_s` on at which the radio is on."""
        if self._period_s <= 0:
            return now_s
        periods, into_s = divmod(now_s, self._period_s)
        return now_s if into_s < self._on_s else (periods + 1) * self._period_s

    def sent_by(self, at_s: float, air_s: float) -> float:
        """When what takes `air_s` seconds to send has been sent; it begins at `at_s` and pauses in every gap."""
        while True:
            at_s = self._open_from(at_s)
            closes_s = self._closes_at(at_s)
            if at_s + air_s <= closes_s:
                return at_s + air_s
            air_s, at_s = air_s - (closes_s - at_s), closes_s

    def _open_from(self, at_s: float) -> float:
        """The first time from `at_s` on at which the radio is neither asleep nor out."""
        while True:
            start_s, end_s = self._waking(at_s)
            at_s = max(at_s, start_s) if at_s < end_s else start_s + self._period_s
            until_s = self.outage_until(at_s)
            if until_s is None:
                return at_s
            at_s = until_s

    def _closes_at(self, at_s: float) -> float:
        """The next outage or sleep, of a radio that is on at `at_s`."""
        return min(self._from_s if self._every_s > 0 else math.inf, self._waking(at_s)[1])

    def _waking(self, at_s: float) -> tuple[float, float]:
        """From when to when the radio is on in the period `at_s` lies in; a hair before its start counts as in it."""
        if self._period_s <= 0:
            return at_s, math.inf
        start_s = math.floor(at_s / self._period_s + 1e-9) * self._period_s
        return start_s, start_s + self._on_s


def wander_step_s(jitter_s: float) -> float:
    """After how long the delay takes another course: long enough for it to change less than time does."""
    return max(_WANDER_S, 4 * jitter_s)


class Wander:
    """A delay that wanders by up to `jitter_s` to either side, without ever letting a packet overtake another.

    Straight from one seeded level to the next, less steeply than time passes: a packet sent later arrives later.
    Jitter drawn anew for each packet would have to be smoothed to keep the order, and raise the delay by doing so.
    """

    def __init__(self, delay_s: float, jitter_s: float, rng: random.Random) -> None:
        self._delay_s, self._jitter_s, self._rng = delay_s, jitter_s, rng
        self._step_s = wander_step_s(jitter_s)
        self._from_s, self._levels = 0.0, (self._level(), self._level())

    def _level(self) -> float:
        return self._rng.uniform(-self._jitter_s, self._jitter_s)

    def at(self, now_s: float) -> float:
        """The delay of what is sent at `now_s`."""
        if self._jitter_s <= 0:
            return self._delay_s
        while now_s >= self._from_s + self._step_s:
            self._from_s, self._levels = self._from_s + self._step_s, (self._levels[1], self._level())
        part = (now_s - self._from_s) / self._step_s
        return self._delay_s + self._levels[0] * (1 - part) + self._levels[1] * part


class Direction:
    """One direction of one link. `rate_bit_s` 0: not limited. Which packets are lost follows from `seed` alone."""

    def __init__(self, profile: LinkProfile, rate_bit_s: float, gate: Gate, seed: int) -> None:
        self._rate_bit_s, self._gate = rate_bit_s, gate
        self._loss = profile.loss_percent / 100
        self._losses = random.Random(seed)
        self._wander = Wander(profile.delay_ms / 1000, profile.jitter_ms / 1000, random.Random(seed + 1))
        self._free_s = 0.0
        self._waiting = 0
        self.counts = {"packets": 0, "lost": 0, "in_outage": 0, "queue_full": 0}

    def offer(self, now_s: float, size_bytes: int) -> float | None:
        """When a packet given to the link now arrives at the other end; None if it never does."""
        self.counts["packets"] += 1
        is_lost = self._loss > 0 and self._losses.random() < self._loss
        if is_lost:
            self.counts["lost"] += 1
            return None
        if self._waiting >= QUEUE_PACKETS:
            self.counts["queue_full"] += 1
            return None
        start_s = self._gate.awake_from(max(now_s, self._free_s))
        if self._gate.outage_until(start_s) is not None:
            self.counts["in_outage"] += 1
            return None
        sent_s = start_s + (size_bytes * 8 / self._rate_bit_s if self._rate_bit_s > 0 else 0.0)
        self._free_s = sent_s
        self._waiting += 1
        return sent_s + self._wander.at(sent_s)

    def arrived(self) -> None:
        """A packet that was on its way has been delivered: there is room for another."""
        self._waiting -= 1


def both_ways(profile: LinkProfile, seed: int) -> tuple[Direction, Direction]:
    """The directions of one link: (from the device, to the device)."""
    rng = random.Random(seed)
    gate_seed, up_seed, down_seed = (rng.getrandbits(62) for _ in range(3))
    return (
        Direction(profile, profile.up_bit_s, Gate(profile, gate_seed), up_seed),
        Direction(profile, profile.down_bit_s, Gate(profile, gate_seed), down_seed),
    )
