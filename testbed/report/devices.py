"""What each device, and each group of devices alike, did and cost: totals over an arm's rounds and seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from testbed.ledger.device_lines import ABSENT, DeviceLine
from testbed.ledger.rounds import IDLE

_NOT_ASKED: Final = ("not-in-cohort", ABSENT, "")


@dataclass(frozen=True)
class Traffic:
    """Bytes of one direction: MQTT payload, and at the interface (None: not counted there)."""

    payload: int
    wire: int | None

    @property
    def overhead_percent(self) -> float | None:
        """What the interface carried beyond the payload, in per cent of the payload."""
        return None if self.wire is None or not self.payload else 100 * (self.wire / self.payload - 1)


@dataclass(frozen=True)
class DeviceTotal:
    """One device over all rounds and seeds of an arm. `asked`: rounds in whose cohort it was.

    `joules` of work and `idle_joules`, by source: what is idled follows the time that this machine takes.
    """

    device: str
    group: int
    board: str
    link: str
    asked: int
    statuses: Counter[str]
    rungs: Counter[int]
    constraints: Counter[str]
    seconds: dict[str, list[float]]
    up: Traffic
    down: Traffic
    joules: dict[str, float]
    idle_joules: dict[str, float]

    @property
    def kind(self) -> tuple[int, str, str]:
        """What devices alike have in common."""
        return self.group, self.board, self.link


def device_totals(lines: Iterable[DeviceLine]) -> list[DeviceTotal]:
    """Every device in the order of names."""
    by_device: dict[str, list[DeviceLine]] = defaultdict(list)
    for line in lines:
        by_device[line.device].append(line)
    return [_total(device, lines) for device, lines in sorted(by_device.items())]


def by_kind(totals: Iterable[DeviceTotal]) -> dict[tuple[int, str, str], list[DeviceTotal]]:
    """Devices by group, board and link."""
    kinds: dict[tuple[int, str, str], list[DeviceTotal]] = defaultdict(list)
    for one in totals:
        kinds[one.kind].append(one)
    return dict(sorted(kinds.items()))


def _total(device: str, lines: Sequence[DeviceLine]) -> DeviceTotal:
    asked = [line for line in lines if line.round and line.status not in _NOT_ASKED]
    seconds: dict[str, list[float]] = defaultdict(list)
    joules: dict[str, float] = defaultdict(float)
    idled: dict[str, float] = defaultdict(float)
    for line in lines:
        for phase, length_s in line.seconds.items():
            seconds[phase].append(length_s)
        if line.energy and all(part.joules is not None for part in line.energy.values()):
            for phase, part in line.energy.items():
                (idled if phase == IDLE else joules)[part.source] += part.joules or 0.0
    first = lines[0]
    return DeviceTotal(
        device=device,
        group=first.group,
        board=first.board,
        link=first.link,
        asked=len(asked),
        statuses=Counter(line.status for line in asked),
        rungs=Counter(line.rung for line in asked if line.rung is not None and line.status == "uploaded"),
        constraints=Counter(line.constraint for line in asked if line.constraint),
        seconds=dict(seconds),
        up=Traffic(sum(line.up.total for line in lines), _wire([line.wire_up for line in lines])),
        down=Traffic(sum(line.down.total for line in lines), _wire([line.wire_down for line in lines])),
        joules=dict(joules),
        idle_joules=dict(idled),
    )


def _wire(counts: Sequence[int | None]) -> int | None:
    """Their sum, where every one was counted: bytes of some rounds say nothing beside the payload of all."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def dropped(statuses: Counter[str]) -> int:
    """How often a device that was asked ended a round neither with an upload nor with a decline."""
    return sum(count for status, count in statuses.items() if status not in ("uploaded", "declined"))
