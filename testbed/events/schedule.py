"""When what happens to a fleet: rules without clock or processes.

A schedule is asked what is `due` at a time, in seconds since the fleet was started, in a round. It answers with
actions in the order of their times, and how often it is asked changes none of them (only those counted from a round's
beginning, which it learns by being asked). Whoever is down is up, or down:

    up    -> outage                 -> down until its end: kill
    down  -> another outage         -> down until the later end: nothing is done
    down  -> its end, start or join -> up: start
    up    -> its end, start or join -> nothing is done
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from fedpruneshare.rng import stream
from testbed.events.settings import Churn, FleetEvent

Do = Literal["kill", "start", "restart", "throttle", "recover"]
Role = Literal["device", "aggregator", "broker", "coordinator"]
COORDINATOR: Final = "coordinator"
_OUTAGES: Final = ("reboot", "leave", "kill-aggregator", "kill-coordinator", "restart-broker")
_RETURNS: Final = ("join", "start-aggregator", "start-coordinator")


@dataclass(frozen=True)
class Action:
    """Something to be done to one process. `share`: of its speed that a throttled device keeps. `because`: of which."""

    do: Do
    role: Role
    name: str
    text: str
    share: float = 1.0
    because: str = ""


@dataclass(frozen=True)
class Members:
    """Who is in the fleet: devices, with the number of each one's group, and aggregators."""

    devices: tuple[str, ...]
    groups: tuple[int, ...]
    aggregators: tuple[str, ...]

    def of(self, event: FleetEvent) -> list[tuple[Role, str]]:
        """Whom an event happens to."""
        if event.kind in ("kill-coordinator", "start-coordinator"):
            return [("coordinator", COORDINATOR)]
        numbers = set(event.devices) | {i for i, group in enumerate(self.groups) if group in event.groups}
        return [
            *(("device", self.devices[number]) for number in sorted(numbers)),
            *(("aggregator", self.aggregators[number - 1]) for number in event.aggregators),
            *(("broker", name) for name in event.brokers),
        ]


#: What happens at a time: it may lead to actions now and to further happenings later.
_Step = Callable[[float], Iterator[Action]]


@dataclass
class Schedule:
    """What is still to happen. `absent`: devices that a `join` brings in; they are not started with the fleet."""

    events: Sequence[FleetEvent]
    churn: Churn
    members: Members
    seed: int
    absent: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._later: list[tuple[float, int, _Step]] = []
        self._pushed = 0
        self._by_round = [event for event in self.events if event.at_round]
        self._down: dict[tuple[Role, str], float] = {}
        self.absent = frozenset(self._joining())
        self._down.update({("device", name): math.inf for name in self.absent})
        for event in self.events:
            if not event.at_round:
                self._plan(event, event.at_s)
        self._plan_churn()

    @property
    def awaits_round(self) -> bool:
        """Whether anything left depends on which round it is."""
        return bool(self._by_round)

    def due(self, now_s: float, round_id: int) -> list[Action]:
        """What is to be done by now, in order. `round_id`: the round under way."""
        begun = [event for event in self._by_round if event.at_round <= round_id]
        self._by_round = [event for event in self._by_round if event.at_round > round_id]
        for event in begun:
            self._plan(event, now_s + event.at_s)
        actions: list[Action] = []
        while self._later and self._later[0][0] <= now_s:
            at_s, _, step = heapq.heappop(self._later)
            actions += step(at_s)
        return actions

    def gone(self, device: str) -> None:
        """A device ended for good, by no doing of this schedule: only a `join` brings it back."""
        self._down["device", device] = math.inf

    # ------------------------------------------------------------------ planning

    def _joining(self) -> Iterator[str]:
        """Devices whose first event is a `join`."""
        first: dict[str, FleetEvent] = {}
        for event in sorted(self.events, key=lambda event: (event.at_round, event.at_s)):
            for _, name in self.members.of(event):
                first.setdefault(name, event)
        yield from (name for name, event in first.items() if event.kind == "join")

    def _push(self, at_s: float, step: _Step) -> None:
        self._pushed += 1
        heapq.heappush(self._later, (at_s, self._pushed, step))

    def _plan(self, event: FleetEvent, at_s: float) -> None:
        for role, name in self.members.of(event):
            self._push(at_s, self._step(event, role, name))

    def _step(self, event: FleetEvent, role: Role, name: str) -> _Step:
        if event.kind == "restart-broker" and not event.for_s:
            return lambda _: iter([Action("restart", role, name, f"broker {name} restarted")])
        if event.kind in _OUTAGES:
            return lambda at_s: self._go_down(role, name, at_s, event.for_s)
        if event.kind in _RETURNS:
            return lambda at_s: self._come_up(role, name)
        return lambda at_s: self._slow(event, name, at_s)

    def _plan_churn(self) -> None:
        means = (
            ("reboot", self.churn.reboot_every_s, self.churn.reboot_s),
            ("leave", self.churn.leave_every_s, self.churn.away_s),
        )
        for index, name in enumerate(self.members.devices):
            for what, mean_s, for_s in means:
                if mean_s:
                    rng = stream(self.seed, "churn", what, index)
                    self._push(rng.exponential(mean_s), self._churning(name, rng, mean_s, for_s))

    def _churning(self, name: str, rng: np.random.Generator, mean_s: float, for_s: float) -> _Step:
        def step(at_s: float) -> Iterator[Action]:
            yield from self._go_down("device", name, at_s, for_s)
            self._push(at_s + for_s + rng.exponential(mean_s), step)

        return step

    # ------------------------------------------------------------------ happening

    def _go_down(self, role: Role, name: str, at_s: float, for_s: float) -> Iterator[Action]:
        until_s = at_s + for_s if for_s else math.inf
        before_s = self._down.get((role, name))
        self._down[role, name] = until_s if before_s is None else max(before_s, until_s)
        if until_s < math.inf:
            self._push(until_s, lambda end_s: self._end_outage(role, name, end_s))
        if before_s is None:
            back = f", back in {for_s:g} s" if for_s else ""
            yield Action("kill", role, name, f"{_called(role, name)} went down{back}")

    def _end_outage(self, role: Role, name: str, end_s: float) -> Iterator[Action]:
        if self._down.get((role, name), math.inf) <= end_s:
            yield from self._come_up(role, name)

    def _come_up(self, role: Role, name: str) -> Iterator[Action]:
        if self._down.pop((role, name), None) is not None:
            yield Action("start", role, name, f"{_called(role, name)} came up")

    def _slow(self, event: FleetEvent, name: str, at_s: float) -> Iterator[Action]:
        because = f"event {self.events.index(event)}"
        if event.for_s:
            end = Action("recover", "device", name, f"{name} back at full speed", because=because)
            self._push(at_s + event.for_s, lambda _: iter([end]))
        text = f"{name} throttled to {event.share:.0%} of its speed"
        yield Action("throttle", "device", name, text, event.share, because)


def _called(role: Role, name: str) -> str:
    return f"broker {name}" if role == "broker" else name


__all__ = ["Action", "Members", "Schedule"]
