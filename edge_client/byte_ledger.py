"""The device's byte ledger: every MQTT payload byte by direction and cause, as it happens (docs/protocol.md §9.1)."""

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
    """What one round cost this device; `round` 0 is what passed outside any round.

    `status` says how it ended here, `receipts` how many aggregators hold the whole share, `seconds` are by phase.
    `energy`: by phase, as `edge_client.energy.parts.ledger_energy` gives it. `spans`: (phase, from, to) in seconds
    since 1970, for the record of an external meter.
    """

    round: int = 0
    rung: int | None = None
    status: str = ""
    constraint: str = ""
    reason: str = ""
    receipts: int = 0
    up: Up = field(default_factory=Up)
    down: Down = field(default_factory=Down)
    seconds: dict[str, float] = field(default_factory=dict)
    width: float | None = None
    local_steps: int = 0
    prediction: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    examples: int = 0
    weight: int = 0
    loss: float | None = None


class ByteLedger:
    """Counts into the entry of the current round, which is appended to `ledger.jsonl` when the round ends.

    The unfinished entry stands in `ledger.partial` after every count, so that a killed process loses no byte: the
    next one appends it with status "killed".
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._partial = folder / "ledger.jsonl", folder / "ledger.partial"
        self.entry = RoundEntry()
        self._recover()

    def _recover(self) -> None:
        try:
            line = json.loads(self._partial.read_bytes())
        except (OSError, ValueError):
            return
        self._append({**line, "status": "killed"})

    def sent(self, cause: str, size_bytes: int) -> None:
        """Count a payload sent; `cause` is a field of `Up`."""
        setattr(self.entry.up, cause, getattr(self.entry.up, cause) + size_bytes)
        self._save_partial()

    def received(self, cause: str, size_bytes: int) -> None:
        """Count a payload received; `cause` is a field of `Down`."""
        setattr(self.entry.down, cause, getattr(self.entry.down, cause) + size_bytes)
        self._save_partial()

    def begin(self, round_id: int) -> None:
        """Write what was counted before and start a round's entry."""
        self.end()
        self.entry = RoundEntry(round=round_id)

    def end(self) -> None:
        """Append the entry; what follows counts as outside any round until the next `begin`."""
        if self.entry != RoundEntry():
            self._append(asdict(self.entry))
        self.entry = RoundEntry()

    def _save_partial(self) -> None:
        # Not synced: it must survive a killed process, for which the page cache suffices.
        written = self._partial.with_name(self._partial.name + ".part")
        written.write_text(json.dumps(asdict(self.entry)))
        written.replace(self._partial)

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._partial.unlink(missing_ok=True)
