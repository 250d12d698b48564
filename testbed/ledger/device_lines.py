"""devices.jsonl: what each round cost each device, one line a device and round (docs/measuring.md, "The ledger")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from testbed.ledger.rounds import (
    Around,
    BytesDown,
    BytesUp,
    CoordinatorRound,
    DeviceRound,
    InterfaceBytes,
    PhaseJoules,
    added,
    entries_by_round,
    read_lines,
)
from testbed.scenario import Scenario

DEVICES: Final = "devices.jsonl"
#: The status of a device that has no entry of a round in its ledger: it was away, or never heard of the round.
ABSENT: Final = "absent"


class DeviceLine(msgspec.Struct, frozen=True):
    """One line of devices.jsonl. Round 0 is what passed outside any round.

    `group` counts the scenario's groups from 0; `board` and `link` name profiles ("": none). `shares_by`: bytes of
    `up.shares` by aggregator. `wire_up`, `wire_down`: bytes at the device's interface, None where nobody counted them.
    `spans`: (phase, from, to) in seconds since 1970. `energy`: by phase. A device that was started again within the
    round has several entries in its ledger: bytes, seconds, joules and spans are added, everything else is of the last.
    Every field has a default, so that files of older versions are read.
    """

    arm: str = ""
    seed: int = 0
    device: str = ""
    group: int = 0
    board: str = ""
    link: str = ""
    round: int = 0
    status: str = ""
    rung: int | None = None
    width: float | None = None
    local_steps: int = 0
    constraint: str = ""
    reason: str = ""
    up: BytesUp = BytesUp()
    shares_by: dict[str, int] = {}
    down: BytesDown = BytesDown()
    wire_up: int | None = None
    wire_down: int | None = None
    seconds: dict[str, float] = {}
    spans: tuple[tuple[str, float, float], ...] = ()
    energy: dict[str, PhaseJoules] = {}
    prediction: dict[str, Any] = {}


@dataclass(frozen=True)
class DeviceFacts:
    """What a scenario says of a device: its group and the profiles of its board and link."""

    group: int = 0
    board: str = ""
    link: str = ""


def device_facts(scenario: Scenario, devices: Sequence[str]) -> dict[str, DeviceFacts]:
    """The facts of each device, by name, in the order of the fleet."""
    groups = scenario.fleet.groups
    numbers = {id(group): number for number, group in enumerate(groups)}
    return {
        device: DeviceFacts(numbers.get(id(group), 0), group.board, getattr(group, "link", ""))
        for device, group in zip(devices, scenario.fleet.members(), strict=True)
    }


def device_lines(
    seed: int,
    rounds: Iterable[CoordinatorRound],
    ledgers: Mapping[str, Sequence[DeviceRound]],
    facts: Mapping[str, DeviceFacts],
    around: Around | None = None,
) -> list[DeviceLine]:
    """The lines of a run's devices.jsonl: round 0, then round after round every device that `facts` names."""
    numbers = [line.round for line in rounds]
    around = around or Around()
    by_round = entries_by_round(set(numbers), ledgers)
    lines = []
    for number in [0, *numbers]:
        entries, interface = by_round.get(number, {}), around.interface.get(number, {})
        for device, own in facts.items():
            made = _line(entries.get(device, ()), own, interface.get(device))
            status = made.status if number else ""
            said = {"arm": around.arm, "seed": seed, "device": device, "round": number, "status": status}
            lines.append(msgspec.structs.replace(made, **said))
    return lines


def _line(entries: Sequence[DeviceRound], facts: DeviceFacts, interface: InterfaceBytes | None) -> DeviceLine:
    last = entries[-1] if entries else DeviceRound(0, ABSENT)
    return DeviceLine(
        group=facts.group,
        board=facts.board,
        link=facts.link,
        status=last.status,
        rung=last.rung,
        width=last.width,
        local_steps=last.local_steps,
        constraint=last.constraint,
        reason=last.reason,
        up=sum((entry.up for entry in entries), BytesUp()),
        shares_by=added(entry.shares_by for entry in entries),
        down=sum((entry.down for entry in entries), BytesDown()),
        wire_up=None if interface is None else interface.up,
        wire_down=None if interface is None else interface.down,
        seconds=_seconds(entries),
        spans=tuple(span for entry in entries for span in entry.spans),
        energy=_energy(entries),
        prediction=last.prediction,
    )


def _seconds(entries: Iterable[DeviceRound]) -> dict[str, float]:
    total = Counter[str]()
    for entry in entries:
        total.update(entry.seconds)
    return {phase: round(seconds, 4) for phase, seconds in total.items()}


def _energy(entries: Iterable[DeviceRound]) -> dict[str, PhaseJoules]:
    """Joules by phase; of entries by different sources, or of which one has no figure, the last stands alone."""
    total: dict[str, PhaseJoules] = {}
    for entry in entries:
        for phase, part in entry.energy.items():
            before = total.get(phase)
            total[phase] = part if before is None else _added_joules(before, part)
    return total


def _added_joules(one: PhaseJoules, other: PhaseJoules) -> PhaseJoules:
    if one.source != other.source or one.joules is None or other.joules is None:
        return other
    spread = [part.uncertainty_j for part in (one, other) if part.uncertainty_j is not None]
    return msgspec.structs.replace(
        other, joules=one.joules + other.joules, uncertainty_j=sum(spread) if len(spread) == 2 else None
    )


def write_devices(path: Path, lines: Iterable[DeviceLine]) -> None:
    """Write devices.jsonl."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_devices(path: Path) -> list[DeviceLine]:
    """Read devices.jsonl; none where there is no file. Raises `PeerError` where it is not one."""
    return read_lines(path, DeviceLine)
