"""The battery of an emulated board: it holds what its group says and loses what the device's own ledger says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

_J_PER_WH: Final = 3600.0


@dataclass
class Battery:
    """Charge by what was spent. `capacity_wh` when full, `first_percent` at the start."""

    capacity_wh: float
    first_percent: float
    spent_j: float = 0.0

    @property
    def percent(self) -> float:
        """Charge now, 0 to 100."""
        return max(0.0, self.first_percent - 100 * self.spent_j / (self.capacity_wh * _J_PER_WH))

    @property
    def is_empty(self) -> bool:
        """Whether the board goes dark."""
        return self.percent <= 0.0


class _Entry(msgspec.Struct, frozen=True):
    """Of a line of a device's ledger, what is needed here."""

    energy: dict[str, dict[str, Any]] = {}


@dataclass
class SpentJoules:
    """Joules in a device's ledger, read on from where the last look ended."""

    ledger: Path
    _offset: int = 0
    _spent_j: float = field(default=0.0, init=False)

    def read(self) -> float:
        """All joules so far: every phase of every whole line."""
        try:
            with self.ledger.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return self._spent_j
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            entry = msgspec.json.decode(line, type=_Entry)
            self._spent_j += sum(float(part.get("joules") or 0.0) for part in entry.energy.values())
        return self._spent_j


__all__ = ["Battery", "SpentJoules"]
