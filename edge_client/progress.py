"""How far a device has got, for ever: the last round that is over, the newest model it took (docs/protocol.md §9.1).

Kept twice. With one copy damaged the other counts; with both, nobody knows any more which rounds are over, and the
device says so instead of opening them again.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import PlanError, SettingsError
from fedpruneshare.storage import write_atomically

_NAMES: Final = ("progress-1", "progress-2")
_MOST_BYTES: Final = 4096


class Reached(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`round_id`: up to this one all rounds are over. `model_version`: of the newest model taken, in `model_round`."""

    round_id: Annotated[int, Meta(ge=0, lt=2**48)] = 0
    model_version: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    model_round: Annotated[int, Meta(ge=0, lt=2**48)] = 0


class Progress:
    """Reads both copies. Raises `SettingsError` where all there are do not read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / name for name in _NAMES]
        self.reached = self._read()

    def _read(self) -> Reached:
        there = [path for path in self._paths if path.exists()]
        whole = [found for found in map(_decoded, there) if found is not None]
        if there and not whole:
            names = " and ".join(str(path) for path in there)
            raise SettingsError(
                f"{names}: damaged, expected the rounds this device has done; delete them to begin anew, or set the "
                f"device up again"
            )
        return max(whole, key=lambda found: (found.round_id, found.model_version), default=Reached())

    def finish(self, round_id: int) -> None:
        """A round is over. Raises `OSError` where that cannot be kept."""
        if round_id > self.reached.round_id:
            self._write(msgspec.structs.replace(self.reached, round_id=round_id))

    def is_new_epoch(self, round_id: int) -> bool:
        """Whether the root has begun anew since the newest model was taken (docs/protocol.md §4.1)."""
        return _epoch(round_id) > _epoch(self.reached.model_round)

    def is_outdated(self, round_id: int) -> bool:
        """Whether the root has begun anew since this round, by the newest model taken."""
        return _epoch(round_id) < _epoch(self.reached.model_round)

    def check_model(self, model_version: int, round_id: int) -> None:
        """Raises `PlanError` for a model older than one taken before, unless the root began a new epoch since."""
        if not self.is_new_epoch(round_id) and model_version < self.reached.model_version:
            raise PlanError(f"model version {model_version}, expected {self.reached.model_version} or later: it fell")

    def take_model(self, model_version: int, round_id: int) -> None:
        """A model is taken; it may be no older than the one before. Raises `PlanError`, `OSError`."""
        self.check_model(model_version, round_id)
        if model_version != self.reached.model_version or round_id > self.reached.model_round:
            self._write(msgspec.structs.replace(self.reached, model_version=model_version, model_round=round_id))

    def _write(self, reached: Reached) -> None:
        body = msgspec.json.encode(reached)
        for path in self._paths:
            write_atomically(path, b"%08x %s\n" % (zlib.crc32(body), body), mode=0o600)
        self.reached = reached


def _epoch(round_id: int) -> int:
    return max(round_id - 1, 0) // ROUNDS_PER_EPOCH


def _decoded(path: Path) -> Reached | None:
    try:
        with path.open("rb") as file:
            head, _, body = file.read(_MOST_BYTES).rstrip(b"\n").partition(b" ")
        found = msgspec.json.decode(body, type=Reached)
        return found if int(head, 16) == zlib.crc32(body) else None
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None
