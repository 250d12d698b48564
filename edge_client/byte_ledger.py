"""The device's byte ledger: every MQTT payload byte by direction and cause, written as it happens (docs/protocol.md §9.1)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Up:
    """Bytes sent: shares at first transmission, shares sent again, everything else."""

    shares: int = 0
    resent: int = 0
    control: int = 0


@dataclass
class Down:
    """Bytes received: model segments, plans, receipts (and calls for missing chunks), everything else."""

    model: int = 0
    plan: int = 0
    receipts: int = 0
    other: int = 0


@dataclass
class RoundEntry:
    """What one round cost this device. Seconds by phase; `status` says how it ended here."""

    round: int = 0
    rung: int | None = None
    status: str = ""
    constraint: str = ""
    reason: str = ""
    up: Up = field(default_factory=Up)
    down: Down = field(default_factory=Down)
    seconds: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    weight: int = 0
    loss: float | None = None


class ByteLedger:
    """Counts into the entry of the current round and appends it to `ledger.jsonl` when the round ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.entry = RoundEntry()

    def begin(self, round_id: int) -> None:
        """Close what was counted before and start a round's entry."""
        self._write()
        self.entry = RoundEntry(round=round_id)

    def end(self) -> dict[str, Any]:
        """Append the entry; what follows counts as outside any round until the next `begin`."""
        written = self._write()
        self.entry = RoundEntry()
        return written

    def _write(self) -> dict[str, Any]:
        line = asdict(self.entry)
        if self.entry != RoundEntry():
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return line
