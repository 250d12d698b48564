"""SQLite as the services use it: one file, one writer, committed before any answer (docs/protocol.md §9)."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedpruneshare.errors import SettingsError

if TYPE_CHECKING:
    import sqlite3


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """Open or create a database that survives loss of power: WAL, every commit synced, deleted pages overwritten.

    The file and its folder are readable by their owner only. Raises `SettingsError` if it cannot be opened, or holds
    the tables of another version of this software.
    """
    import sqlite3  # a device has no database

    version = zlib.crc32(schema.encode()) >> 1  # fits SQLite's signed number
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA secure_delete=ON")
        database.execute("PRAGMA foreign_keys=ON")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] and found != version:
            database.close()
            raise SettingsError(f"store {path} was written by another version, expected an empty folder or one of this")
        database.execute(f"PRAGMA user_version = {version}")  # first: power lost in between leaves no unknown tables
        database.executescript(schema)
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(
            f"store {path}: {error}, expected a database of this version in a writable folder"
        ) from None
    return database


def write_atomically(path: Path, *parts: bytes | memoryview, mode: int = 0o644) -> None:
    """Replace a file in one step: write beside it, sync, rename, sync the folder. Nothing half-written is ever seen.

    The parts follow one another in the file; in memory they are never joined.
    """
    partial = path.with_name(path.name + ".part")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
