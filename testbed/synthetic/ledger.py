"""The byte ledger of a synthetic device: the entries of a real one's, written once a round.

A real device saves its entry after every count and syncs every line, so that a loss of power costs nothing
(`edge_client.byte_ledger`). For thousands on one disk that would be the fleet's largest cost, and none of a device's.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from edge_client.byte_ledger import RoundEntry


class PlainLedger:
    """Counts into the entry of the current round, which is appended to `ledger.jsonl` when the round ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "ledger.jsonl"
        self.entry = RoundEntry()

    def sent(self, cause: str, size_bytes: int) -> None:
        """Count a payload sent; `cause` is a field of `edge_client.byte_ledger.Up`."""
        setattr(self.entry.up, cause, getattr(self.entry.up, cause) + size_bytes)

    def received(self, cause: str, size_bytes: int) -> None:
        """Count a payload received; `cause` is a field of `edge_client.byte_ledger.Down`."""
        setattr(self.entry.down, cause, getattr(self.entry.down, cause) + size_bytes)

    def begin(self, round_id: int) -> None:
        """Write what was counted before and start a round's entry."""
        self.end()
        self.entry = RoundEntry(round=round_id)

    def end(self) -> None:
        """Append the entry; what follows counts as outside any round until the next `begin`."""
        if self.entry != RoundEntry():
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.entry)) + "\n")
        self.entry = RoundEntry()
