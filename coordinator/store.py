"""The coordinator's memory: rounds, the model, the fleet (docs/protocol.md §9.3).

SQLite; every method that returns has committed. A round's outcome and the model it led to are one transaction, so a
restart finds either the round still open or its model in place. A disk that is full or fails is a `StoreError`:
nothing of the step was kept, and it can be made again. What is read back is checked against its digest: a flipped bit
in a model would otherwise become everybody's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from coordinator.averaging import ServerMoments
from coordinator.planning import AvailableDevices, ModelState
from fedpruneshare.crash_points import reach
from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import SettingsError, StoreError
from fedpruneshare.messages import RoundPhase
from fedpruneshare.storage import damaged, disk_errors, open_database, row_digest, write_atomically

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (one INTEGER PRIMARY KEY CHECK (one = 1), bundle BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round_id INTEGER PRIMARY KEY, plan BLOB, started_at REAL NOT NULL, checked BLOB, judged TEXT, freeze BLOB,
    seed BLOB, phase TEXT, outcome TEXT, digest BLOB);
CREATE TABLE IF NOT EXISTS models (
    applied INTEGER PRIMARY KEY, coded BLOB NOT NULL, vectors BLOB NOT NULL, clips TEXT NOT NULL,
    first_moment BLOB, second_moment BLOB, last_rungs BLOB, last_channels BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS devices (
    device_id TEXT PRIMARY KEY, rung_limit INTEGER NOT NULL, missed INTEGER NOT NULL, last_rung INTEGER);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_KEPT_MODELS: Final = 3
#: Finished rounds whose plans and decisions are kept, to look things up in; outcomes are kept for ever.
_KEPT_PLANS: Final = 100
_ROUND: Final = "round_id, plan, started_at, checked, judged, freeze, seed"
_MODEL: Final = "applied, coded, vectors, clips, first_moment, second_moment, last_rungs, last_channels"


@dataclass(frozen=True)
class OpenRound:
    """A round without outcome: plan, DealerCheck and Freeze bodies, and when it began (wall time, a restart's hint).

    `seed`: that of the hidden checksum, if the round has one; it goes with the round.
    """

    round_id: int
    plan: bytes
    started_at: float
    check: bytes | None = None
    judged: str | None = None
    freeze: bytes | None = None
    seed: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FrozenRound:
    """A round that is over and was frozen: bodies of its plan and Freeze, and who is known to have summed it."""

    plan: bytes
    freeze: bytes
    is_applied: bool
    summed_by: frozenset[str]


class RoundStore:
    """SQLite database and `rounds.jsonl` in one folder.

    Raises `SettingsError` for a store of another task or version, or one that is damaged; every method raises
    `StoreError` where the disk is full or fails.
    """

    def __init__(self, folder: Path, bundle: bytes) -> None:
        """`bundle`: digest of the task bundle; a store made for another one is refused with `SettingsError`."""
        self.folder, self._path = folder, folder / "rounds.sqlite"
        self._db = open_database(self._path, _SCHEMA)
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO run VALUES (1, ?)", (bundle,))
        found = self._db.execute("SELECT bundle FROM run").fetchone()[0]
        if found != bundle:
            raise SettingsError(
                f"store {folder} was begun with task bundle {found.hex()[:16]}…, and `bundle` is {bundle.hex()[:16]}…;"
                " expected the same: put it back, or give this one a store of its own"
            )
        self._journaled: int | None = None  # the last round in rounds.jsonl; None: what is there is not known

    @contextmanager
    def _writing(self, point: str = "") -> Iterator[None]:
        """One transaction, whole or not at all. `point`: the crash point around its commit."""
        with disk_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if point:
                    reach(f"{point}.before")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        if point:
            reach(f"{point}.after")

    def _rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with disk_errors(self._path):
            return self._db.execute(statement, arguments).fetchall()

    # ------------------------------------------------------------------ rounds

    def open_round(self) -> OpenRound | None:
        """The round that was under way, if any."""
        rows = self._rows(f"SELECT {_ROUND}, digest FROM rounds WHERE outcome IS NULL ORDER BY round_id DESC LIMIT 1")
        if not rows:
            return None
        *columns, digest = rows[0]
        self._check(columns, digest)
        return OpenRound(*columns)

    def next_round_id(self, epoch: int = 0) -> int:
        """One more than the highest round ever begun, and at least the first of the epoch (docs/protocol.md §4.1)."""
        highest = self._rows("SELECT COALESCE(MAX(round_id), 0) FROM rounds")[0][0]
        return max(int(highest), epoch * ROUNDS_PER_EPOCH) + 1

    def last_plan(self) -> bytes | None:
        """Body of the newest plan: names the model chunks still retained on the broker."""
        rows = self._rows("SELECT plan FROM rounds WHERE plan IS NOT NULL ORDER BY round_id DESC LIMIT 1")
        return rows[0][0] if rows else None

    def begin(self, round_id: int, plan: bytes, started_at: float, seed: bytes | None = None) -> None:
        """Commit a plan, and the seed of its checksum, before it is published."""
        with self._writing("coordinator.round-persisted"):
            self._db.execute(
                "INSERT INTO rounds (round_id, plan, started_at, seed) VALUES (?, ?, ?, ?)",
                (round_id, plan, started_at, seed),
            )
            self._stamp(round_id)

    def note_check(self, round_id: int, check: bytes) -> None:
        """Commit the one DealerCheck of a round before it is sent."""
        with self._writing():
            self._db.execute("UPDATE rounds SET checked = ? WHERE round_id = ? AND checked IS NULL", (check, round_id))
            self._stamp(round_id)

    def note_judgement(self, round_id: int, judged: str) -> None:
        """Commit what the DealerCheck showed, before the Freeze that follows from it."""
        with self._writing():
            self._db.execute("UPDATE rounds SET judged = ? WHERE round_id = ?", (judged, round_id))
            self._stamp(round_id)

    def freeze(self, round_id: int, freeze: bytes) -> None:
        """Commit the one Freeze of a round before it is sent."""
        with self._writing("coordinator.freeze-persisted"):
            self._db.execute("UPDATE rounds SET freeze = ? WHERE round_id = ? AND freeze IS NULL", (freeze, round_id))
            self._stamp(round_id)

    def finish(self, round_id: int, outcome: dict[str, Any], model: ModelState | None) -> None:
        """Commit the outcome of a round, with the new model if it was applied; the seed of its checksum goes."""
        with self._writing("coordinator.round-closed"):
            self._db.execute("INSERT OR IGNORE INTO rounds (round_id, started_at) VALUES (?, 0)", (round_id,))
            self._db.execute(
                "UPDATE rounds SET outcome = ?, phase = ?, seed = NULL WHERE round_id = ?",
                (json.dumps(outcome), outcome["phase"], round_id),
            )
            self._stamp(round_id)
            old = "SELECT round_id FROM rounds ORDER BY round_id DESC LIMIT -1 OFFSET ?"
            self._db.execute(
                f"UPDATE rounds SET plan = NULL, checked = NULL, freeze = NULL WHERE plan IS NOT NULL"
                f" AND outcome IS NOT NULL AND round_id IN ({old})",
                (_KEPT_PLANS,),
            )
            if model is not None:
                self._insert_model(model)

    def frozen(self, since: int = 0) -> list[FrozenRound]:
        """The rounds from `since` on that are over and were frozen, newest first, as far as plans are kept."""
        rows = self._rows(
            f"SELECT {_ROUND}, digest, phase, outcome FROM rounds"
            " WHERE outcome IS NOT NULL AND freeze IS NOT NULL AND round_id >= ? ORDER BY round_id DESC",
            since,
        )
        found = []
        for *columns, digest, phase, outcome in rows:
            self._check(columns, digest)
            names = self._decoded(outcome).get("aggregators", ())
            found.append(FrozenRound(columns[1], columns[5], phase == RoundPhase.APPLIED, frozenset(names)))
        return found

    def frozen_in_vain(self, since: int) -> list[bytes]:
        """Bodies of the Freezes of rounds from `since` on that failed after the last applied one, newest first."""
        return [old.freeze for old in takewhile(lambda old: not old.is_applied, self.frozen(since))]

    def _check(self, columns: list[Any], digest: bytes) -> None:
        if row_digest(columns) != digest:
            raise damaged(self._path, f"round {columns[0]} is not as it was written")

    def _stamp(self, round_id: int) -> None:
        columns = self._db.execute(f"SELECT {_ROUND} FROM rounds WHERE round_id = ?", (round_id,)).fetchone()
        self._db.execute("UPDATE rounds SET digest = ? WHERE round_id = ?", (row_digest(columns), round_id))

    def finished(self) -> tuple[int, int]:
        """How many rounds are over, and how many of them FAILED."""
        found = self._rows(
            "SELECT COUNT(*), COALESCE(SUM(phase = ?), 0) FROM rounds WHERE outcome IS NOT NULL", RoundPhase.FAILED
        )
        return int(found[0][0]), int(found[0][1])

    def last_outcome(self, phase: RoundPhase | None = None) -> dict[str, Any] | None:
        """The newest outcome, or the newest of a phase."""
        rows = self._rows(
            "SELECT outcome FROM rounds WHERE outcome IS NOT NULL AND (?1 IS NULL OR phase = ?1)"
            " ORDER BY round_id DESC LIMIT 1",
            phase,
        )
        return self._decoded(rows[0][0]) if rows else None

    def outcomes(self, after: int = 0) -> list[dict[str, Any]]:
        """Outcomes of all finished rounds in order, or of those after one."""
        statement = "SELECT outcome FROM rounds WHERE outcome IS NOT NULL AND round_id > ? ORDER BY round_id"
        return [self._decoded(row[0]) for row in self._rows(statement, after)]

    def _decoded(self, line: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except (ValueError, TypeError) as error:
            raise damaged(self._path, f"an outcome is not as it was written: {error}") from None
        return found

    def write_journal(self) -> None:
        """Bring `rounds.jsonl` to what the database says: a crash or a full disk may have cut or skipped lines.

        Once it is whole only lines that are missing are appended. Raises `StoreError`.
        """
        path, outcomes = self.folder / "rounds.jsonl", self.outcomes(self._journaled or 0)
        lines = [json.dumps(outcome) + "\n" for outcome in outcomes]
        try:
            if self._journaled is None:
                write_atomically(path, "".join(lines).encode())
            elif lines:
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(lines)
        except OSError as error:
            self._journaled = None
            raise StoreError(f"{path}: {error.strerror}, expected a disk with room that takes it") from None
        self._journaled = outcomes[-1]["round"] if outcomes else self._journaled or 0

    # ------------------------------------------------------------------ model

    def save_first_model(self, model: ModelState) -> None:
        """Commit the model a run starts from."""
        with self._writing():
            self._insert_model(model)

    def _insert_model(self, model: ModelState) -> None:
        clips = json.dumps([model.weight_clips, model.vector_clips])
        coded, vectors = model.coded.astype("<u2").tobytes(), model.vectors.astype("<f4").tobytes()
        own = [model.moments.first, model.moments.second] if model.moments is not None else []
        moments: list[bytes | None] = [part.astype("<f4").tobytes() for part in own]
        rungs = None if model.last_rungs is None else model.last_rungs.tobytes()
        channels = msgspec.msgpack.encode(model.last_channels)
        row = (model.applied, coded, vectors, clips, *(moments or [None, None]), rungs, channels)
        self._db.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, row_digest(row)))
        self._db.execute("DELETE FROM models WHERE applied <= ?", (model.applied - _KEPT_MODELS,))

    def model(self) -> ModelState | None:
        """The newest model, if any."""
        rows = self._rows(f"SELECT {_MODEL}, digest FROM models ORDER BY applied DESC LIMIT 1")
        if not rows:
            return None
        *row, digest = rows[0]
        if row_digest(row) != digest:
            raise damaged(self._path, f"the model of {row[0]} applied rounds is not as it was written")
        weight_clips, vector_clips = (tuple(clips) for clips in json.loads(row[3]))
        coded = np.frombuffer(row[1], dtype="<u2").astype(np.uint16)
        vectors = np.frombuffer(row[2], dtype="<f4").astype(np.float32)
        moments = None
        if row[4] is not None:
            moments = ServerMoments(*(np.frombuffer(part, dtype="<f4").astype(np.float32) for part in row[4:6]))
        last_rungs = None if row[6] is None else np.frombuffer(row[6], dtype=np.uint8)
        last_channels = msgspec.msgpack.decode(row[7], type=tuple[bytes, ...])
        return ModelState(coded, vectors, weight_clips, vector_clips, row[0], moments, last_rungs, last_channels)

    # ------------------------------------------------------------------ small numbers

    def note(self, name: str, value: int) -> None:
        """Commit a number by name."""
        if self.noted(name) != value:
            with self._writing():
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> int:
        """A number by name; 0 if it was never noted."""
        rows = self._rows("SELECT value FROM notes WHERE name = ?", name)
        return int(rows[0][0]) if rows else 0

    # ------------------------------------------------------------------ fleet

    def greet(self, devices: Mapping[str, int]) -> None:
        """Note that devices are there, by name with their highest rungs.

        What each took before it went away is no guide any more.
        """
        with self._writing():
            self._db.executemany(
                "INSERT INTO devices VALUES (?, ?, 0, NULL) ON CONFLICT (device_id)"
                " DO UPDATE SET rung_limit = excluded.rung_limit, missed = 0, last_rung = NULL"
                " WHERE rung_limit != excluded.rung_limit OR missed != 0 OR last_rung IS NOT NULL",
                list(devices.items()),
            )

    def note_rung(self, device_id: str, rung: int | None) -> None:
        """Note the rung that what it measured left a device in its last round; None where nothing held it back."""
        # Nothing is written, and nothing waits for the disk, where nothing changes.
        statement = "UPDATE devices SET last_rung = ?1 WHERE device_id = ?2 AND last_rung IS NOT ?1"
        with self._writing():
            self._db.execute(statement, (rung, device_id))

    def note_round(self, cohort: tuple[str, ...], present: set[str]) -> None:
        """Count a missed round for every cohort device that neither uploaded nor declined."""
        with self._writing():
            for device in cohort:
                missed = "0" if device in present else "missed + 1"
                self._db.execute(f"UPDATE devices SET missed = {missed} WHERE device_id = ?", (device,))

    def fleet_size(self, missed_below: int) -> int:
        """How many devices `fleet` gives."""
        return int(self._rows("SELECT COUNT(*) FROM devices WHERE missed < ?", missed_below)[0][0])

    def fleet(self, missed_below: int) -> AvailableDevices:
        """Devices that missed fewer rounds in a row than that."""
        rows = self._rows("SELECT device_id, rung_limit, last_rung FROM devices WHERE missed < ?", missed_below)
        limits = {device: limit for device, limit, _ in rows}
        return AvailableDevices(limits, {device: last for device, _, last in rows if last is not None})

    def close(self) -> None:
        """Close the database."""
        self._db.close()
