"""The aggregator's journal: what must survive a restart (docs/protocol.md §9.2).

Plan, chunks, declines, attendance, Freeze and sum of the open round, in SQLite. Every method that returns has
committed; one that raises `StoreError` has changed nothing, and may be called again. The transaction that stores a sum
deletes the shares, or the first of them: deleting overwrites, and many take seconds (`burn_more`). What is read back is
checked against its digest: a flipped bit in a share would make a wrong sum.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Final

from aggregator.settings import RETRIES
from aggregator.uploads import Attempt
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import StoreError
from fedpruneshare.floors import KEPT_SETS
from fedpruneshare.messages import Contribution
from fedpruneshare.storage import damaged, disk_errors, open_database, row_digest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    round_id INTEGER PRIMARY KEY, plan BLOB NOT NULL, deadline_at REAL NOT NULL,
    attendance BLOB, checked BLOB, freeze BLOB, freeze_digest BLOB, sum BLOB, closed INTEGER NOT NULL DEFAULT 0,
    digest BLOB);
CREATE TABLE IF NOT EXISTS accepted_by (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, of BLOB NOT NULL, aggregator_id TEXT NOT NULL,
    digest BLOB NOT NULL, PRIMARY KEY (round_id, of, aggregator_id));
CREATE TABLE IF NOT EXISTS sums_given (
    round_id INTEGER PRIMARY KEY, model_version INTEGER NOT NULL, supports BLOB NOT NULL, freeze BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, device_id TEXT NOT NULL, upload_id BLOB NOT NULL,
    rung INTEGER NOT NULL, prg TEXT NOT NULL, chunks INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (round_id, device_id, upload_id));
CREATE TABLE IF NOT EXISTS chunks (
    round_id INTEGER NOT NULL, device_id TEXT NOT NULL, upload_id BLOB NOT NULL, chunk INTEGER NOT NULL,
    signer BLOB NOT NULL, data BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (round_id, device_id, upload_id, chunk),
    FOREIGN KEY (round_id, device_id, upload_id) REFERENCES uploads ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS declines (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, device_id TEXT NOT NULL,
    PRIMARY KEY (round_id, device_id));
"""
#: Closed rounds whose plan and Freeze are kept, so that a late repeat still gets the one true answer.
_KEPT_ROUNDS: Final = 8
_ROUND: Final = "round_id, plan, deadline_at, attendance, checked, freeze, freeze_digest, sum, closed"
#: What a disk has to have free beyond what the shares take: tables, log, and whatever else is written there.
_RESERVE_BYTES: Final = 256 * 1024
#: What is deleted at a time.
_SLICE_BYTES: Final = 2 * 1024 * 1024
_SLICE_ROWS: Final = 1024
#: The first round whose shares, and the first whose uploads, may not be deleted yet.
_LIVE: Final = (
    "SELECT round_id + (closed OR sum IS NOT NULL), round_id + closed FROM rounds ORDER BY round_id DESC LIMIT 1"
)


@dataclass(frozen=True)
class StoredRound:
    """The newest round in the store.

    `plan`, `attendance` and `freeze` are message bodies, `check_digest` names the DealerCheck,
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


@dataclass(frozen=True)
class NewChunk:
    """One opened chunk of an attempt, and the key that signed it."""

    attempt: Attempt
    chunk: int
    data: bytes = field(repr=False)
    signer: bytes


@dataclass(frozen=True)
class SumGiven:
    """Whom a sum that was sent is of. `supports`: the plan's support digests, joined; `freeze`: its Freeze's body."""

    round_id: int
    model_version: int
    supports: bytes
    freeze: bytes


class ShareStore:
    """SQLite journal of one aggregator."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """`folder` is created if need be; `limit_bytes` bounds the share bytes held.

        Raises `SettingsError` where it cannot be opened, `StoreDamagedError` where it is not whole.
        """
        self._path = folder / "shares.sqlite"
        self._db = open_database(self._path, _SCHEMA)
        self._limit = limit_bytes
        self._held = self._count_held()
        self._given = 0
        self._is_trimmed = True
        self._trim_log()  # a crash may have come between a deletion and this

    def _count_held(self) -> int:
        return int(self._db.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM chunks").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with disk_errors(self._path):
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    def _trim_log(self) -> None:
        """Bring everything into the database itself: the log still holds the shares that were just deleted.

        A disk that does not take it now will at the next checkpoint; what was to be kept is kept already.
        """
        with suppress(StoreError), disk_errors(self._path):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def latest(self) -> StoredRound | None:
        """The newest round, if any."""
        with disk_errors(self._path):
            row = self._db.execute(f"SELECT {_ROUND}, digest FROM rounds ORDER BY round_id DESC LIMIT 1").fetchone()
        if row is None:
            return None
        *columns, digest = row
        if row_digest(columns) != digest:
            raise damaged(self._path, f"round {columns[0]} is not as it was written")
        return StoredRound(*columns)

    def _stamp(self, round_id: int) -> None:
        """Within a transaction: the digest of a round that was changed."""
        row = self._db.execute(f"SELECT {_ROUND} FROM rounds WHERE round_id = ?", (round_id,)).fetchone()
        if row is not None:
            self._db.execute("UPDATE rounds SET digest = ? WHERE round_id = ?", (row_digest(row), round_id))

    def open_round(self, round_id: int, plan: bytes, deadline_at: float) -> None:
        """Begin a round: the shares of earlier ones are to be burned. `deadline_at` is wall time, a restart's hint."""
        with self._burning() as db:
            db.execute("DELETE FROM declines")
            db.execute("DELETE FROM accepted_by")
            db.execute("DELETE FROM rounds WHERE round_id <= ?", (round_id - _KEPT_ROUNDS,))
            db.execute("UPDATE rounds SET sum = NULL")  # their digests are not needed any more: only the newest is read
            db.execute(
                "INSERT INTO rounds (round_id, plan, deadline_at) VALUES (?, ?, ?)", (round_id, plan, deadline_at)
            )
            self._stamp(round_id)

    def attempts(self, round_id: int) -> list[Attempt]:
        """All attempts of a round with the chunks they have."""
        with disk_errors(self._path):
            rows = self._db.execute(
                "SELECT device_id, upload_id, rung, prg, chunks, digest FROM uploads WHERE round_id = ? ORDER BY rowid",
                (round_id,),
            ).fetchall()
            stored = self._db.execute(
                "SELECT device_id, upload_id, chunk, signer FROM chunks WHERE round_id = ?", (round_id,)
            ).fetchall()
        what = f"an upload of round {round_id}"
        attempts = {columns[:2]: Attempt(*columns) for columns in self._checked(rows, what)}
        if any(row[:2] not in attempts for row in stored):
            raise damaged(self._path, f"{what} is not as it was written")
        for device_id, upload_id, chunk, signer in stored:
            attempts[device_id, upload_id].stored.add(chunk)
            attempts[device_id, upload_id].signers.add(signer)
        return list(attempts.values())

    def declined(self, round_id: int) -> list[str]:
        """Devices that declined a round."""
        rows = self._db.execute("SELECT device_id FROM declines WHERE round_id = ?", (round_id,))
        return [row[0] for row in rows]

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether so much more fits under the limit, and onto the disk.

        Deleting shares takes as much room in the log as they take themselves (they are overwritten), so what is held
        must always fit a second time; what is new is in log and database for a while.
        """
        if self._held + size_bytes > self._limit:
            return False
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize >= self._held + 2 * size_bytes + _RESERVE_BYTES

    def add_chunks(self, round_id: int, chunks: Sequence[NewChunk]) -> None:
        """Commit opened chunks, all of them or none."""
        with self._transaction() as db:
            keys = [(round_id, new.attempt.device_id, new.attempt.upload_id) for new in chunks]
            facts = [(new.attempt.rung, new.attempt.prg, new.attempt.chunks) for new in chunks]
            rows = [(new.chunk, new.signer, new.data) for new in chunks]
            db.executemany(
                "INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)",
                [key + fact + (row_digest(key[1:] + fact),) for key, fact in zip(keys, facts, strict=True)],
            )
            db.executemany(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)",
                [key + row + (row_digest(key + row),) for key, row in zip(keys, rows, strict=True)],
            )
            db.executemany("DELETE FROM declines WHERE round_id = ? AND device_id = ?", [key[:2] for key in keys])
            reach("aggregator.rows-written")
            reach("aggregator.chunks-committed.before")
        self._held += sum(len(new.data) for new in chunks)

    def share(self, round_id: int, device_id: str, upload_id: bytes) -> bytes:
        """The whole share of a complete upload. Raises `StoreDamagedError` where it is not what was stored."""
        with disk_errors(self._path):
            rows = self._db.execute(
                "SELECT round_id, device_id, upload_id, chunk, signer, data, digest FROM chunks"
                " WHERE round_id = ? AND device_id = ? AND upload_id = ? ORDER BY chunk",
                (round_id, device_id, upload_id),
            ).fetchall()
        return b"".join(row[-1] for row in self._checked(rows, f"the share of {device_id!r} in round {round_id}"))

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
            self._stamp(round_id)

    def note_check(self, round_id: int, digest: bytes) -> None:
        """Commit the one DealerCheck of a round, before it is answered."""
        with self._transaction() as db:
            db.execute("UPDATE rounds SET checked = ? WHERE round_id = ? AND checked IS NULL", (digest, round_id))
            self._stamp(round_id)

    def freeze(self, round_id: int, freeze: bytes, digest: bytes) -> None:
        """Commit the one Freeze of a round, before anything is answered."""
        with self._transaction() as db:
            db.execute(
                "UPDATE rounds SET freeze = ?, freeze_digest = ? WHERE round_id = ? AND freeze IS NULL",
                (freeze, digest, round_id),
            )
            self._stamp(round_id)

    def note_sum(self, given: SumGiven) -> None:
        """Commit whom a sum is of, before it is sent for the first time: later ones are compared with it (§4.4)."""
        if self._given == given.round_id:
            return
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO sums_given VALUES (?, ?, ?, ?, ?)", (*astuple(given), row_digest(astuple(given)))
            )
            db.execute(
                "DELETE FROM sums_given WHERE round_id NOT IN"
                " (SELECT round_id FROM sums_given ORDER BY round_id DESC LIMIT ?)",
                (KEPT_SETS,),
            )
        self._given = given.round_id

    def sums_given(self, round_id: int, model_version: int, last: int) -> list[SumGiven]:
        """The sums sent in the rounds just before this one on the same model, and the `last` ones on any."""
        with disk_errors(self._path):
            rows = self._db.execute(
                "SELECT round_id, model_version, supports, freeze, digest FROM sums_given WHERE round_id < ?"
                " AND (model_version = ? AND round_id >= ? OR round_id IN"
                " (SELECT round_id FROM sums_given ORDER BY round_id DESC LIMIT ?)) ORDER BY round_id",
                (round_id, model_version, round_id - RETRIES, last),
            ).fetchall()
        return [SumGiven(*columns) for columns in self._checked(rows, "whom an earlier sum is of")]

    def note_acceptance(self, round_id: int, of: bytes, aggregator_id: str) -> None:
        """Commit that an aggregator has accepted a Freeze or DealerCheck."""
        with self._transaction() as db:
            row = round_id, of, aggregator_id
            db.execute("INSERT OR IGNORE INTO accepted_by VALUES (?, ?, ?, ?)", (*row, row_digest(row)))

    def acceptances(self, round_id: int) -> list[tuple[bytes, str]]:
        """What was accepted in a round, and by which aggregator."""
        with disk_errors(self._path):
            rows = self._db.execute("SELECT * FROM accepted_by WHERE round_id = ?", (round_id,)).fetchall()
        return [(of, aggregator_id) for _, of, aggregator_id in self._checked(rows, "who accepted what")]

    def _checked(self, rows: list[tuple[Any, ...]], what: str) -> list[tuple[Any, ...]]:
        """Rows without their digest. Raises `StoreDamagedError` where one is not what was stored."""
        if any(row_digest(row[:-1]) != row[-1] for row in rows):
            raise damaged(self._path, f"{what} is not as it was written")
        return [row[:-1] for row in rows]

    def drop_uploads(self, round_id: int, uploads: Sequence[tuple[str, bytes]]) -> None:
        """Delete uploads by device and upload id, whatever they hold."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM uploads WHERE round_id = ? AND device_id = ? AND upload_id = ?",
                [(round_id, *upload) for upload in uploads],
            )
        self._held = self._count_held()

    def shares(self, round_id: int, contributors: tuple[Contribution, ...]) -> Iterator[tuple[Contribution, bytes]]:
        """The shares of the contributors, one at a time."""
        for contributor in contributors:
            yield contributor, self.share(round_id, contributor.device_id, contributor.upload_id)

    def burn(self, round_id: int, answer: bytes) -> None:
        """Commit the answer to the Freeze, and with it that its shares are to be burned: no other sum is made of them.

        It may not be sent before they are (`is_burned`). What was uploaded is known until the round is over.
        """
        with self._burning() as db:
            db.execute("UPDATE rounds SET sum = ? WHERE round_id = ?", (answer, round_id))
            self._stamp(round_id)

    def close_round(self, round_id: int) -> None:
        """Commit that a round is over: declines and the sum go, its shares are to be burned."""
        with self._burning() as db:
            db.execute("UPDATE rounds SET sum = NULL, closed = 1 WHERE round_id = ?", (round_id,))
            self._stamp(round_id)
            db.execute("DELETE FROM declines WHERE round_id = ?", (round_id,))

    def burn_more(self) -> None:
        """Burn one more slice of what is to be burned."""
        with self._burning():
            pass

    def is_burned(self) -> bool:
        """Whether nothing is left of what is to be burned: of shares but those of a round that has no sum yet."""
        with disk_errors(self._path):
            live = self._db.execute(_LIVE).fetchone() or (0, 0)
            older = "SELECT 1 FROM chunks WHERE round_id < ?1 UNION ALL SELECT 1 FROM uploads WHERE round_id < ?2"
            return not self._db.execute(f"SELECT EXISTS ({older})", live).fetchone()[0]

    @contextmanager
    def _burning(self) -> Iterator[sqlite3.Connection]:
        """A transaction that ends with a slice of what is to be burned by then, and is in no log any more."""
        with self._transaction() as db:
            yield db
            burned = self._burn_slice(db)
            is_over = self.is_burned()
        self._held -= burned
        self._is_trimmed = self._is_trimmed and not burned
        if not self._is_trimmed and is_over:
            self._trim_log()
            self._is_trimmed = True

    @staticmethod
    def _burn_slice(db: sqlite3.Connection) -> int:
        """Delete the first chunks of what is to be burned, and once there are none its uploads; how many bytes."""
        summable, kept = db.execute(_LIVE).fetchone() or (0, 0)
        found = db.execute("SELECT rowid, LENGTH(data) FROM chunks WHERE round_id < ? LIMIT ?", (summable, _SLICE_ROWS))
        rows: list[tuple[int]] = []
        size_bytes = 0
        for row, length in found.fetchall():
            if rows and size_bytes + length > _SLICE_BYTES:
                break
            rows.append((row,))
            size_bytes += length
        db.executemany("DELETE FROM chunks WHERE rowid = ?", rows)
        db.execute(
            "DELETE FROM uploads WHERE round_id < ?1 AND NOT EXISTS (SELECT 1 FROM chunks WHERE round_id < ?1)", (kept,)
        )
        return size_bytes

    def close(self) -> None:
        """Close the database."""
        self._db.close()
