"""The ledgers of a run's devices while they grow: every line is read once, however long the run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from fedpruneshare.errors import PeerError
from testbed.ledger.rounds import DeviceRound

T = TypeVar("T")
KILLED = "killed"


class Tail(Generic[T]):
    """A file of JSON lines that somebody else appends to."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path, self._kind = path, kind
        self._decoder = msgspec.json.Decoder(kind)
        self._offset = 0

    def more(self) -> list[T]:
        """The lines that are new since the last call; one that has no end yet comes later. No file: none.

        Raises `PeerError` where one does not decode.
        """
        try:
            if self._path.stat().st_size == self._offset:
                return []
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(end)
        return [self._decoded(line) for line in whole.split(b"\n")] if end else []

    def _decoded(self, line: bytes) -> T:
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise PeerError(f"{self._path}: {error}, expected lines of {self._kind.__name__}") from None


class DeviceBook:
    """What all devices have written down so far. `ledgers`: entries by device; `uplink`, `downlink`: bytes by round.

    `joules`: by source, of the entries that have a figure for every phase.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.ledgers: dict[str, list[DeviceRound]] = {device: [] for device in paths}
        self.uplink, self.downlink = Counter[int](), Counter[int]()
        self.joules: dict[str, float] = defaultdict(float)
        self._paths = dict(paths)
        self._tails = {device: Tail(path, DeviceRound) for device, path in paths.items()}
        self._by_round: dict[int, dict[str, list[DeviceRound]]] = defaultdict(lambda: defaultdict(list))

    def read(self) -> None:
        """Take in whatever is new."""
        for device, tail in self._tails.items():
            for entry in tail.more():
                self._add(device, entry)

    def read_unfinished(self) -> None:
        """Take in what devices that are gone for good had counted and not written: they were killed in an entry."""
        for device, path in self._paths.items():
            entry = read_partial(path)
            if entry is not None:
                self._add(device, msgspec.structs.replace(entry, status=KILLED))

    def round(self, number: int) -> Mapping[str, Sequence[DeviceRound]]:
        """Entries of a round by device."""
        return self._by_round.get(number, {})

    def newest(self, device: str) -> DeviceRound | None:
        """The newest entry of a device that is of a round."""
        return next((entry for entry in reversed(self.ledgers[device]) if entry.round), None)

    def _add(self, device: str, entry: DeviceRound) -> None:
        self.ledgers[device].append(entry)
        self._by_round[entry.round][device].append(entry)
        self.uplink[entry.round] += entry.up.total
        self.downlink[entry.round] += entry.down.total
        if entry.has_energy:
            for part in entry.energy.values():
                self.joules[part.source] += part.joules or 0.0


class _Partial(msgspec.Struct, frozen=True):
    """How long the ledger was when its device began the entry that stands beside it."""

    ledger_bytes: int | None = None


def read_partial(ledger: Path) -> DeviceRound | None:
    """The entry a device is at, which stands beside its ledger; None between entries, and while it is replaced.

    Also None where it stands in the ledger already: a device that was killed while ending an entry leaves both.
    """
    try:
        data = ledger.with_suffix(".partial").read_bytes()
        before = msgspec.json.decode(data, type=_Partial).ledger_bytes
        if before is not None and ledger.exists() and ledger.stat().st_size > before:
            return None
        return msgspec.json.decode(data, type=DeviceRound)
    except (OSError, msgspec.DecodeError):
        return None
