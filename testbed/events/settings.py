"""The tables `[[events]]` and `[churn]` of a scenario."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import Fault

if TYPE_CHECKING:
    from testbed.scenario import Scenario

EventKind = Literal[
    "reboot",
    "leave",
    "join",
    "throttle",
    "kill-aggregator",
    "start-aggregator",
    "restart-broker",
    "kill-coordinator",
    "start-coordinator",
]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
#: What an event of each kind happens to.
_OF_DEVICES: Final = ("reboot", "leave", "join", "throttle")
_OF_AGGREGATORS: Final = ("kill-aggregator", "start-aggregator")
#: The broker of the coordinator; an aggregator's broker has the aggregator's name.
CONTROL_BROKER: Final = "control"


class FleetEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event. It happens `at_s` seconds after round `at_round` began, or (0) after the fleet was started.

    devices: by number, from 0; groups: by number, all their devices; aggregators: by number, from 1; brokers:
    `control`, or an aggregator's by its name. for_s: how long it lasts, 0 for good (a reboot takes as long as it says).
    share: of its speed that a throttled device keeps.

    A reboot is a loss of power (SIGKILL) and a start `for_s` later. `leave` is one without a return, or with one after
    `for_s`; `join` brings a device back, and where it is the first event of a device, that is not there before.
    """

    kind: EventKind
    at_round: Annotated[int, Meta(ge=0)] = 0
    at_s: Seconds = 0.0
    for_s: Seconds = 0.0
    devices: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    groups: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    aggregators: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    brokers: tuple[str, ...] = ()
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5


class Churn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to every device now and then, at times drawn from the seed; 0 is never.

    reboot_every_s: mean time from when a device is there until it loses power, for reboot_s. leave_every_s: the same
    until it leaves, for away_s. Both means are of exponential distributions.
    """

    reboot_every_s: Seconds = 0.0
    reboot_s: Annotated[float, Meta(gt=0, le=86_400)] = 20.0
    leave_every_s: Seconds = 0.0
    away_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0


def event_faults(scenario: Scenario) -> Iterator[Fault]:
    """Events that cannot happen to this fleet."""
    for index, event in enumerate(scenario.events):
        for key, found, expected in _mistakes(scenario, event):
            yield Fault(f"events.{index}.{key}", found, expected)
    yield from _unclear_joins(scenario)
    if not _comes_back(scenario):
        yield Fault("events", "kill-coordinator with for_s = 0", "for_s above 0 or a start-coordinator: no run ends so")


def _mistakes(scenario: Scenario, event: FleetEvent) -> Iterator[tuple[str, str, str]]:
    yield from _wrong_targets(scenario, event)
    if event.kind == "reboot" and not event.for_s:
        yield "for_s", "0", "above 0: how long a reboot takes"
    if event.kind == "throttle" and scenario.boards.cpu == "none":
        yield "kind", '"throttle" with boards.cpu = "none"', 'boards.cpu = "auto", so that there is a speed to lower'
    members = scenario.fleet.members()
    struck = _struck(scenario, event)
    if event.kind == "throttle" and any(not members[n].board for n in struck):
        yield "devices", "a device without a board", "a board: there is no speed to lower otherwise"
    if event.at_round > scenario.rounds.count:
        yield "at_round", str(event.at_round), f"at most rounds.count = {scenario.rounds.count}"


def _wrong_targets(scenario: Scenario, event: FleetEvent) -> Iterator[tuple[str, str, str]]:
    """Each kind needs its own sort of target and takes no other; each target must exist."""
    aggregators = scenario.aggregators.count
    names = (CONTROL_BROKER, *(f"aggregator-{number}" for number in range(1, aggregators + 1)))
    limits = {
        "devices": (event.devices, range(scenario.fleet.devices), event.kind in _OF_DEVICES),
        "groups": (event.groups, range(max(1, len(scenario.fleet.groups))), event.kind in _OF_DEVICES),
        "aggregators": (event.aggregators, range(1, aggregators + 1), event.kind in _OF_AGGREGATORS),
        "brokers": (event.brokers, names, event.kind == "restart-broker"),
    }
    wanted = [key for key, (_, _, is_taken) in limits.items() if is_taken]
    if wanted and not any(limits[key][0] for key in wanted):
        yield wanted[0], "none", f"{' or '.join(wanted)} that this happens to"
    for key, (found, known, is_taken) in limits.items():
        if found and not is_taken:
            yield key, str(list(found)), f"none with kind = {event.kind!r}"
        elif strange := [one for one in found if one not in known]:
            yield key, str(strange[0]), f"one of {', '.join(map(str, (known[0], '…', known[-1])))}"


def _unclear_joins(scenario: Scenario) -> Iterator[Fault]:
    """Whether a device is there at first follows from its first event; rounds and times have no order before a run."""
    for index, event in enumerate(scenario.events):
        if event.kind != "join":
            continue
        mine = _struck(scenario, event)
        others = [other for other in scenario.events if mine & _struck(scenario, other)]
        if any((other.at_round == 0) != (event.at_round == 0) for other in others):
            found = "by round beside an event of the same device by time, or the other way round"
            expected = "all of a device's events by round, or all by time, so that the first of them is known"
            yield Fault(f"events.{index}.at_round", found, expected)


def _struck(scenario: Scenario, event: FleetEvent) -> set[int]:
    """The numbers of the devices that an event happens to."""
    groups = scenario.fleet.member_groups()
    return {n for n, group in enumerate(groups) if n in event.devices or group in event.groups}


def _comes_back(scenario: Scenario) -> bool:
    """Whether the coordinator is there in the end."""
    kinds = [event for event in scenario.events if event.kind in ("kill-coordinator", "start-coordinator")]
    is_started = any(event.kind == "start-coordinator" for event in kinds)
    return is_started or all(event.for_s for event in kinds if event.kind == "kill-coordinator")


__all__ = ["CONTROL_BROKER", "Churn", "EventKind", "FleetEvent", "event_faults"]
