"""A run's rounds.jsonl and devices.jsonl as it goes: a round is appended once nothing more is expected of it.

That is when the coordinator has closed it and every device that runs has ended it in its own ledger, or `PATIENCE_S`
after the close (a device that is cut off may take as long as its round had time), or at the end of the run. Lines are
whole and flushed, so that what a killed run leaves is a readable prefix. Bytes that come later, and round 0, which is
open as long as anything passes, are in the files as they are rewritten at the end (docs/measuring.md, "The ledger").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from testbed.ledger.device_book import DeviceBook
from testbed.ledger.device_lines import DEVICES, DeviceFacts, device_lines
from testbed.ledger.rounds import ROUNDS, Around, CoordinatorRound, InterfaceBytes, merge

PATIENCE_S: Final = 5.0


class Counts(Protocol):
    """What an interface has counted since it is there: bytes sent and received."""

    @property
    def up(self) -> int:
        """Bytes sent."""

    @property
    def down(self) -> int:
        """Bytes received."""


class InterfaceBook:
    """What passed the devices' interfaces, by round: differences of counters that only grow.

    `read` gives the counters by device, or None where there are none to be read.
    """

    def __init__(self, read: Callable[[], Mapping[str, Counts] | None]) -> None:
        self.by_round: dict[int, dict[str, InterfaceBytes]] = {}
        self._read = read
        self._last: dict[str, InterfaceBytes] = {}

    def mark(self, number: int) -> None:
        """Whatever has passed since the last mark belongs to this round. Several marks of one round add up."""
        found = self._read()
        if found is None:
            return
        own = self.by_round.setdefault(number, {})
        for device, counts in found.items():
            last, before = self._last.get(device, _NONE), own.get(device, _NONE)
            own[device] = InterfaceBytes(before.up + counts.up - last.up, before.down + counts.down - last.down)
            self._last[device] = InterfaceBytes(counts.up, counts.down)


_NONE: Final = InterfaceBytes(0, 0)


@dataclass
class Journal:
    """Appends what is final. `seed` and `arm` say of which run, `facts` which devices there are."""

    folder: Path
    run: tuple[str, int]
    facts: Mapping[str, DeviceFacts]
    book: DeviceBook
    interface: InterfaceBook
    happened: Callable[[], list[tuple[float, str]]] = list
    written: int = 0

    def around(self, rounds: Sequence[CoordinatorRound]) -> Around:
        """What the testbed knows beside the parties: arm, interface bytes and events by round."""
        return Around(self.run[0], self.interface.by_round, events_by_round(rounds, self.happened()))

    def is_final(self, closed: CoordinatorRound, running: Collection[str]) -> bool:
        """Whether every device that runs has ended a round."""
        ended = self.book.round(closed.round)
        return all(device in ended for device in running)

    def append(self, rounds: Sequence[CoordinatorRound]) -> None:
        """Write the next round, of those that are closed."""
        closed, around = rounds[self.written], self.around(rounds)
        entries, seed = self.book.round(closed.round), self.run[1]
        so_far = sum(size for number, size in self.book.uplink.items() if number <= closed.round)
        devices = [line for line in device_lines(seed, [closed], entries, self.facts, around) if line.round]
        (line,) = (line for line in merge(seed, [closed], entries, around) if line.round)
        _append(self.folder / DEVICES, devices)
        _append(self.folder / ROUNDS, [msgspec.structs.replace(line, uplink_bytes_so_far=so_far)])
        self.written += 1


def events_by_round(
    rounds: Sequence[CoordinatorRound], happened: Iterable[tuple[float, str]]
) -> dict[int, tuple[str, ...]]:
    """Events by the round in which they happened: the last that had begun, 0 before the first."""
    found: dict[int, tuple[str, ...]] = {}
    for at, text in happened:
        number = max((line.round for line in rounds if line.started_at and line.started_at <= at), default=0)
        found[number] = (*found.get(number, ()), text)
    return found


def _append(path: Path, lines: Iterable[msgspec.Struct]) -> None:
    with open(path, "ab") as file:
        file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
