"""SQLite as the services use it: one file, one writer, committed before any answer (docs/protocol.md §9)."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from fedpruneshare.errors import SettingsError, StoreDamagedError, StoreError
from fedpruneshare.wal import lost_commits

if TYPE_CHECKING:
    import sqlite3


#: What rows mean and which columns their digests cover, in all stores. Whoever changes that while the tables stay alike
#: raises it, or a store of another version would read as a damaged one.
FORMAT: Final = 1
#: A write-ahead log that grew larger in one transaction is cut back to this at the next checkpoint.
_LOG_BYTES: Final = 4 * 1024 * 1024
#: SQLite's primary codes of a disk that may take it another time, and of a file that is not what was written.
_TRY_AGAIN: Final = frozenset({5, 7, 8, 10, 13, 14})  # busy, no memory, read-only, I/O error, full, cannot open
_DAMAGED: Final = frozenset({11, 26})  # corrupt, not a database


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """Open or create a database that survives loss of power: WAL, every commit synced, deleted pages overwritten.

    The file and its folder are readable by their owner only. Raises `SettingsError` if it cannot be opened, or was
    written by another version of this software: other tables, or another `FORMAT`; `StoreDamagedError` if it is no
    whole database.
    """
    import sqlite3  # a device has no database

    version = zlib.crc32(f"{FORMAT}\n{schema}".encode()) >> 1  # fits SQLite's signed number
    database: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sync_folder(path.parent)
        if lost := lost_commits(path):  # before SQLite reads the log: it would go on without them
            raise damaged(path, f"its log is broken, with {lost} commits behind the break")
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        _prepare(database, path, version)
        database.execute(f"PRAGMA user_version = {version}")  # first: power lost in between leaves no unknown tables
        database.executescript(schema)
    except (OSError, sqlite3.Error) as error:
        if database is not None:
            database.close()
        if isinstance(error, sqlite3.Error) and _primary_code(error) in _DAMAGED:
            raise damaged(path, str(error)) from None
        raise SettingsError(
            f"store {path}: {error}, expected a database of this version in a writable folder, on a disk with room"
        ) from None
    except SettingsError:
        if database is not None:
            database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, version: int) -> None:
    """Set what every connection needs, and look at what is there before anything is written."""
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("PRAGMA secure_delete=ON")
    database.execute("PRAGMA foreign_keys=ON")
    database.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if not database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
        return
    if found != version:
        raise SettingsError(f"store {path} was written by another version, expected an empty folder or one of this")
    faults = [row[0] for row in database.execute("PRAGMA integrity_check(3)")]
    if faults != ["ok"]:
        raise damaged(path, "; ".join(faults))


def damaged(path: Path, what: str) -> StoreDamagedError:
    """The error of a store that cannot be gone on from, with what an operator can do."""
    return StoreDamagedError(
        f"store {path} is damaged: {what}; expected a whole database. Look for a failing disk, then move the file away:"
        " the service starts anew, without what it held (an older copy in its place would undo what was decided since)"
    )


def row_digest(columns: Sequence[object]) -> bytes:
    """SHA-256 over what a row holds: SQLite itself does not notice a flipped bit in a value."""
    return hashlib.sha256(msgspec.msgpack.encode(list(columns))).digest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What SQLite says of the disk -> `StoreError` (full or failing: try again) or `StoreDamagedError`."""
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        code = _primary_code(error)
        if code in _TRY_AGAIN:
            raise StoreError(f"store {path}: {error}, expected a disk with room that takes it") from None
        if code in _DAMAGED:
            raise damaged(path, str(error)) from None
        raise


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def refuse_open_file(path: Path, what: str = "key file") -> None:
    """Raise `SettingsError` if a secret file is missing, or others than its owner may read or write it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise SettingsError(f"{what} {path}: {error.strerror}, expected one that this user can read") from None
    if mode & 0o077:
        raise SettingsError(f"{what} {path} is open to others (mode {mode:04o}), expected 0600: chmod 600 {path}")


def write_atomically(path: Path, *parts: bytes | memoryview, mode: int = 0o644) -> None:
    """Replace a file in one step: write beside it, sync, rename, sync the folder. Nothing half-written is ever seen.

    The parts follow one another in the file; in memory they are never joined. What lies beside it already is never
    written into: it could have another mode, be open in another process, or lead elsewhere.
    """
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a full disk half a file would take the room that is left
            partial.unlink()
        error.filename = error.filename or str(path)  # a full disk does not say which
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the disk keep what was created in, renamed into or removed from a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
