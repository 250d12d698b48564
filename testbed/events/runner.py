"""Makes happen what a schedule says, to a fleet that runs; called from the loop that watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from testbed.events.schedule import Action, Members, Schedule

if TYPE_CHECKING:
    from testbed.fleet import Fleet

_log = structlog.get_logger()


class EventRunner:
    """Acts on a fleet, and remembers what happened and when."""

    def __init__(
        self, fleet: Fleet, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        scenario = fleet.scenario
        members = Members(fleet.devices, scenario.fleet.member_groups(), fleet.aggregators)
        self._fleet, self._clock, self._wall = fleet, clock, wall
        self._schedule = Schedule(scenario.events, scenario.churn, members, fleet.seed)
        self._started_s: float | None = None
        self._happened: list[tuple[float, str]] = []

    @property
    def absent(self) -> frozenset[str]:
        """Devices that join later."""
        return self._schedule.absent

    def begin(self) -> None:
        """The fleet has been started: seconds count from now."""
        self._started_s = self._clock()

    def tick(self) -> None:
        """Do what is due, if the fleet was started."""
        if self._started_s is None:
            return
        round_id = len(self._fleet.rounds()) + 1 if self._schedule.awaits_round else 0
        for action in self._schedule.due(self._clock() - self._started_s, round_id):
            self._note(action.text)
            self._act(action)

    def gone(self, device: str, text: str) -> None:
        """Note that a device ended for good, by no doing of an event."""
        self._schedule.gone(device)
        self._note(text)

    def note(self, text: str) -> None:
        """Note something else that happened."""
        self._note(text)

    def happened(self) -> list[tuple[float, str]]:
        """Everything so far: seconds since 1970, and what."""
        return list(self._happened)

    def _note(self, text: str) -> None:
        self._happened.append((self._wall(), text))
        _log.info("event", what=text)

    def _act(self, action: Action) -> None:
        fleet, name = self._fleet, action.name
        is_up = action.role == "broker" or fleet.is_running(name)
        match action.role, action.do:
            case "device", "kill" if is_up:
                fleet.kill_device(name)
            case "device", "start" if not is_up:
                fleet.start_device(name)
            case "device", "throttle":
                fleet.boards.throttle(name, action.share, action.because)
            case "device", "recover":
                fleet.boards.throttle(name, None, action.because)
            case "aggregator", "kill" if is_up:
                fleet.kill_aggregator(name)
            case "aggregator", "start" if not is_up:
                fleet.start_aggregator(name)
            case "coordinator", "kill" if is_up:
                fleet.kill_coordinator()
            case "coordinator", "start" if not is_up:
                fleet.start_coordinator()
            case "broker", "kill":
                fleet.kill_broker(name)
            case "broker", "start":
                fleet.start_broker(name)
            case "broker", "restart":
                fleet.restart_broker(name)


__all__ = ["EventRunner"]
