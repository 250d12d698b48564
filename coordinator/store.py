"""The coordinator's memory: rounds, the model, the fleet (docs/protocol.md §9.3).

SQLite; every method that returns has committed. A round's outcome and the model it led to are one transaction, so a
restart finds either the round still open or its model in place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.averaging import ServerMoments
from coordinator.planning import AvailableDevices, ModelState
from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import open_database, write_atomically

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (one INTEGER PRIMARY KEY CHECK (one = 1), bundle BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round_id INTEGER PRIMARY KEY, plan BLOB, started_at REAL NOT NULL, checked BLOB, judged TEXT, freeze BLOB,
    outcome TEXT);
CREATE TABLE IF NOT EXISTS models (
    applied INTEGER PRIMARY KEY, coded BLOB NOT NULL, vectors BLOB NOT NULL, clips TEXT NOT NULL,
    first_moment BLOB, second_moment BLOB, last_rungs BLOB, last_channels BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS devices (
    device_id TEXT PRIMARY KEY, rung_limit INTEGER NOT NULL, missed INTEGER NOT NULL, last_rung INTEGER);
"""
_KEPT_MODELS = 3


@dataclass(frozen=True)
class OpenRound:
    """A round without outcome: plan, DealerCheck and Freeze bodies, and when it began (wall time, a restart's hint)."""

    round_id: int
    plan: bytes
    started_at: float
    check: bytes | None = None
    judged: str | None = None
    freeze: bytes | None = None


class RoundStore:
    """SQLite database, `rounds.jsonl` and `model.onnx` in one folder."""

    def __init__(self, folder: Path, bundle: bytes) -> None:
        """`bundle`: digest of the task bundle; a store made for another one is refused with `SettingsError`."""
        self.folder = folder
        self._db = open_database(folder / "rounds.sqlite", _SCHEMA)
        self._db.execute("INSERT OR IGNORE INTO run VALUES (1, ?)", (bundle,))
        found = self._db.execute("SELECT bundle FROM run").fetchone()[0]
        if found != bundle:
            raise SettingsError(f"store {folder} belongs to bundle {found.hex()[:16]}…, expected {bundle.hex()[:16]}…")
        self._write_journal()

    # ------------------------------------------------------------------ rounds

    def open_round(self) -> OpenRound | None:
        """The round that was under way, if any."""
        row = self._db.execute(
            "SELECT round_id, plan, started_at, checked, judged, freeze FROM rounds WHERE outcome IS NULL"
            " ORDER BY round_id DESC LIMIT 1"
        ).fetchone()
        return OpenRound(*row) if row else None

    def next_round_id(self) -> int:
        """One more than the highest round ever begun."""
        return int(self._db.execute("SELECT COALESCE(MAX(round_id), 0) + 1 FROM rounds").fetchone()[0])

    def last_plan(self) -> bytes | None:
        """Body of the newest plan: names the model chunks still retained on the broker."""
        row = self._db.execute(
            "SELECT plan FROM rounds WHERE plan IS NOT NULL ORDER BY round_id DESC LIMIT 1"
        ).fetchone()
        return row[0] if row else None

    def begin(self, round_id: int, plan: bytes, started_at: float) -> None:
        """Commit a plan before it is published."""
        self._db.execute(
            "INSERT INTO rounds (round_id, plan, started_at) VALUES (?, ?, ?)", (round_id, plan, started_at)
        )

    def note_check(self, round_id: int, check: bytes) -> None:
        """Commit the one DealerCheck of a round before it is sent."""
        self._db.execute("UPDATE rounds SET checked = ? WHERE round_id = ? AND checked IS NULL", (check, round_id))

    def note_judgement(self, round_id: int, judged: str) -> None:
        """Commit what the DealerCheck showed, before the Freeze that follows from it."""
        self._db.execute("UPDATE rounds SET judged = ? WHERE round_id = ?", (judged, round_id))

    def freeze(self, round_id: int, freeze: bytes) -> None:
        """Commit the one Freeze of a round before it is sent."""
        self._db.execute("UPDATE rounds SET freeze = ? WHERE round_id = ? AND freeze IS NULL", (freeze, round_id))

    def finish(self, round_id: int, outcome: dict[str, Any], model: ModelState | None) -> None:
        """Commit the outcome of a round, with the new model if it was applied, then append it to `rounds.jsonl`."""
        line = json.dumps(outcome)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT OR IGNORE INTO rounds (round_id, started_at) VALUES (?, 0)", (round_id,))
        self._db.execute("UPDATE rounds SET outcome = ? WHERE round_id = ?", (line, round_id))
        if model is not None:
            self._insert_model(model)
        self._db.execute("COMMIT")
        with open(self.folder / "rounds.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def outcomes(self) -> list[dict[str, Any]]:
        """Outcomes of all finished rounds in order."""
        rows = self._db.execute("SELECT outcome FROM rounds WHERE outcome IS NOT NULL ORDER BY round_id")
        return [json.loads(row[0]) for row in rows]

    def _write_journal(self) -> None:
        """Write `rounds.jsonl` anew from the database: a crash may have cut or skipped its last line."""
        lines = "".join(json.dumps(outcome) + "\n" for outcome in self.outcomes())
        write_atomically(self.folder / "rounds.jsonl", lines.encode())

    # ------------------------------------------------------------------ model

    def save_first_model(self, model: ModelState) -> None:
        """Commit the model a run starts from."""
        self._insert_model(model)

    def _insert_model(self, model: ModelState) -> None:
        clips = json.dumps([model.weight_clips, model.vector_clips])
        coded, vectors = model.coded.astype("<u2").tobytes(), model.vectors.astype("<f4").tobytes()
        own = [model.moments.first, model.moments.second] if model.moments is not None else []
        moments: list[bytes | None] = [part.astype("<f4").tobytes() for part in own]
        rungs = None if model.last_rungs is None else model.last_rungs.tobytes()
        channels = msgspec.msgpack.encode(model.last_channels)
        row = (model.applied, coded, vectors, clips, *(moments or [None, None]), rungs, channels)
        self._db.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute("DELETE FROM models WHERE applied <= ?", (model.applied - _KEPT_MODELS,))

    def model(self) -> ModelState | None:
        """The newest model, if any."""
        row = self._db.execute(
            "SELECT applied, coded, vectors, clips, first_moment, second_moment, last_rungs, last_channels FROM models"
            " ORDER BY applied DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        weight_clips, vector_clips = (tuple(clips) for clips in json.loads(row[3]))
        coded = np.frombuffer(row[1], dtype="<u2").astype(np.uint16)
        vectors = np.frombuffer(row[2], dtype="<f4").astype(np.float32)
        moments = None
        if row[4] is not None:
            moments = ServerMoments(*(np.frombuffer(part, dtype="<f4").astype(np.float32) for part in row[4:6]))
        last_rungs = None if row[6] is None else np.frombuffer(row[6], dtype=np.uint8)
        last_channels = msgspec.msgpack.decode(row[7], type=tuple[bytes, ...])
        return ModelState(coded, vectors, weight_clips, vector_clips, row[0], moments, last_rungs, last_channels)

    # ------------------------------------------------------------------ fleet

    def greet(self, device_id: str, rung_limit: int) -> None:
        """Note that a device is there. What it took before it went away is no guide any more."""
        self._db.execute(
            "INSERT INTO devices VALUES (?, ?, 0, NULL) ON CONFLICT (device_id)"
            " DO UPDATE SET rung_limit = excluded.rung_limit, missed = 0, last_rung = NULL",
            (device_id, rung_limit),
        )

    def note_rung(self, device_id: str, rung: int | None) -> None:
        """Note the rung that what it measured left a device in its last round; None where nothing held it back."""
        # Nothing is written, and nothing waits for the disk, where nothing changes.
        statement = "UPDATE devices SET last_rung = ?1 WHERE device_id = ?2 AND last_rung IS NOT ?1"
        self._db.execute(statement, (rung, device_id))

    def note_round(self, cohort: tuple[str, ...], present: set[str]) -> None:
        """Count a missed round for every cohort device that neither uploaded nor declined."""
        self._db.execute("BEGIN IMMEDIATE")
        for device in cohort:
            missed = "0" if device in present else "missed + 1"
            self._db.execute(f"UPDATE devices SET missed = {missed} WHERE device_id = ?", (device,))
        self._db.execute("COMMIT")

    def fleet_size(self, missed_below: int) -> int:
        """How many devices `fleet` gives."""
        return int(self._db.execute("SELECT COUNT(*) FROM devices WHERE missed < ?", (missed_below,)).fetchone()[0])

    def fleet(self, missed_below: int) -> AvailableDevices:
        """Devices that missed fewer rounds in a row than that."""
        rows = self._db.execute(
            "SELECT device_id, rung_limit, last_rung FROM devices WHERE missed < ?", (missed_below,)
        ).fetchall()
        limits = {device: limit for device, limit, _ in rows}
        return AvailableDevices(limits, {device: last for device, _, last in rows if last is not None})

    def close(self) -> None:
        """Close the database."""
        self._db.close()
