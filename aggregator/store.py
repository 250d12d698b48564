"""The aggregator's journal: what must survive a restart (docs/protocol.md §9.2).

Plan, chunks, declines, attendance, Freeze and sum of the open round, in SQLite. Every method that returns has
committed. Shares are deleted in the transaction that stores their sum.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aggregator.book import Attempt
from fedpruneshare.messages import Contribution
from fedpruneshare.storage import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    round_id INTEGER PRIMARY KEY, plan BLOB NOT NULL, deadline_at REAL NOT NULL,
    attendance BLOB, checked BLOB, freeze BLOB, freeze_digest BLOB, sum BLOB, closed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS uploads (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, device_id TEXT NOT NULL, upload_id BLOB NOT NULL,
    rung INTEGER NOT NULL, prg TEXT NOT NULL, chunks INTEGER NOT NULL,
    PRIMARY KEY (round_id, device_id, upload_id));
CREATE TABLE IF NOT EXISTS chunks (
    round_id INTEGER NOT NULL, device_id TEXT NOT NULL, upload_id BLOB NOT NULL, chunk INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (round_id, device_id, upload_id, chunk),
    FOREIGN KEY (round_id, device_id, upload_id) REFERENCES uploads ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS declines (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, device_id TEXT NOT NULL,
    PRIMARY KEY (round_id, device_id));
"""
#: Closed rounds whose plan and Freeze are kept, so that a late repeat still gets the one true answer.
_KEPT_ROUNDS = 8


@dataclass(frozen=True)
class StoredRound:
    """The newest round in the store.

    `plan` and `freeze` are message bodies, `attendance` the signed payload, `check_digest` that of the DealerCheck,
    `answer` what the Freeze is answered with: the sum's words or the contributors' fragments.
    """

    round_id: int
    plan: bytes
    deadline_at: float
    attendance: bytes | None
    check_digest: bytes | None
    freeze: bytes | None
    freeze_digest: bytes | None
    answer: bytes | None
    is_closed: int


class ShareStore:
    """SQLite journal of one aggregator."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """`folder` is created if need be; `limit_bytes` bounds the share bytes held."""
        self._db = open_database(folder / "shares.sqlite", _SCHEMA)
        self._limit = limit_bytes
        self._held = int(self._db.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM chunks").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def latest(self) -> StoredRound | None:
        """The newest round, if any."""
        row = self._db.execute(
            "SELECT round_id, plan, deadline_at, attendance, checked, freeze, freeze_digest, sum, closed FROM rounds"
            " ORDER BY round_id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        return StoredRound(*row)

    def open_round(self, round_id: int, plan: bytes, deadline_at: float) -> None:
        """Begin a round: the shares of earlier ones are dropped. `deadline_at` is wall time, a restart's hint only."""
        with self._transaction() as db:
            db.execute("DELETE FROM uploads")
            db.execute("DELETE FROM declines")
            db.execute("DELETE FROM rounds WHERE round_id <= ?", (round_id - _KEPT_ROUNDS,))
            db.execute("UPDATE rounds SET sum = NULL")
            db.execute(
                "INSERT INTO rounds (round_id, plan, deadline_at) VALUES (?, ?, ?)", (round_id, plan, deadline_at)
            )
        self._held = 0

    def attempts(self, round_id: int) -> list[Attempt]:
        """All attempts of a round with the chunks they have."""
        rows = self._db.execute(
            "SELECT device_id, upload_id, rung, prg, chunks FROM uploads WHERE round_id = ? ORDER BY rowid", (round_id,)
        ).fetchall()
        attempts = {(row[0], row[1]): Attempt(*row) for row in rows}
        stored = self._db.execute("SELECT device_id, upload_id, chunk FROM chunks WHERE round_id = ?", (round_id,))
        for device_id, upload_id, chunk in stored:
            attempts[device_id, upload_id].stored.add(chunk)
        return list(attempts.values())

    def declined(self, round_id: int) -> list[str]:
        """Devices that declined a round."""
        rows = self._db.execute("SELECT device_id FROM declines WHERE round_id = ?", (round_id,))
        return [row[0] for row in rows]

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether another chunk fits under the limit."""
        return self._held + size_bytes <= self._limit

    def add_chunk(self, round_id: int, attempt: Attempt, chunk: int, data: bytes) -> None:
        """Commit one opened chunk."""
        key = (round_id, attempt.device_id, attempt.upload_id)
        with self._transaction() as db:
            facts = (*key, attempt.rung, attempt.prg, attempt.chunks)
            db.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, ?, ?, ?)", facts)
            db.execute("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?)", (*key, chunk, data))
            db.execute("DELETE FROM declines WHERE round_id = ? AND device_id = ?", key[:2])
        self._held += len(data)

    def share(self, round_id: int, device_id: str, upload_id: bytes) -> bytes:
        """The whole share of a complete upload."""
        rows = self._db.execute(
            "SELECT data FROM chunks WHERE round_id = ? AND device_id = ? AND upload_id = ? ORDER BY chunk",
            (round_id, device_id, upload_id),
        )
        return b"".join(row[0] for row in rows)

    def keep_uploads(self, round_id: int, device_id: str, upload_ids: list[bytes]) -> None:
        """Drop a device's uploads that the book no longer knows."""
        marks = ",".join("?" * len(upload_ids))
        others = f"round_id = ? AND device_id = ? AND upload_id NOT IN ({marks})"
        which = (round_id, device_id, *upload_ids)
        with self._transaction() as db:
            freed = db.execute(f"SELECT COALESCE(SUM(LENGTH(data)), 0) FROM chunks WHERE {others}", which).fetchone()
            db.execute(f"DELETE FROM uploads WHERE {others}", which)
        self._held -= int(freed[0])

    def decline(self, round_id: int, device_id: str) -> None:
        """Commit a decline."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO declines VALUES (?, ?)", (round_id, device_id))

    def attend(self, round_id: int, attendance: bytes) -> None:
        """Commit the attendance."""
        with self._transaction() as db:
            db.execute("UPDATE rounds SET attendance = ? WHERE round_id = ?", (attendance, round_id))

    def note_check(self, round_id: int, digest: bytes) -> None:
        """Commit the one DealerCheck of a round, before it is answered."""
        with self._transaction() as db:
            db.execute("UPDATE rounds SET checked = ? WHERE round_id = ? AND checked IS NULL", (digest, round_id))

    def freeze(self, round_id: int, freeze: bytes, digest: bytes) -> None:
        """Commit the one Freeze of a round, before anything is answered."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rounds SET freeze = ?, freeze_digest = ? WHERE round_id = ? AND freeze IS NULL",
                (freeze, digest, round_id),
            )

    def shares(self, round_id: int, contributors: tuple[Contribution, ...]) -> Iterator[tuple[Contribution, bytes]]:
        """The shares of the contributors, one at a time."""
        for contributor in contributors:
            yield contributor, self.share(round_id, contributor.device_id, contributor.upload_id)

    def burn(self, round_id: int, answer: bytes) -> None:
        """Commit the answer to the Freeze and delete every share, in one transaction."""
        with self._transaction() as db:
            db.execute("UPDATE rounds SET sum = ? WHERE round_id = ?", (answer, round_id))
            db.execute("DELETE FROM uploads WHERE round_id = ?", (round_id,))
        self._held = 0

    def close_round(self, round_id: int) -> None:
        """Commit that a round is over: shares, declines and the sum go."""
        with self._transaction() as db:
            db.execute("UPDATE rounds SET sum = NULL, closed = 1 WHERE round_id = ?", (round_id,))
            db.execute("DELETE FROM uploads WHERE round_id = ?", (round_id,))
            db.execute("DELETE FROM declines WHERE round_id = ?", (round_id,))
        self._held = 0

    def close(self) -> None:
        """Close the database."""
        self._db.close()
