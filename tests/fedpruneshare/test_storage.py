"""Databases of another version are refused, files are replaced in one step (docs/protocol.md §9)."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from fedpruneshare import storage
from fedpruneshare.errors import SettingsError, StoreDamagedError, StoreError
from fedpruneshare.storage import disk_errors, open_database, write_atomically

SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT);"


def test_a_database_of_this_version_is_opened_again(tmp_path: Path) -> None:
    for count in (1, 2):
        database = open_database(tmp_path / "folder" / "a.sqlite", SCHEMA)
        database.execute("INSERT INTO things VALUES ('kept')")
        assert database.execute("SELECT COUNT(*) FROM things").fetchone()[0] == count
        database.close()
    assert (tmp_path / "folder" / "a.sqlite").stat().st_mode & 0o077 == 0


def test_power_lost_while_the_tables_are_made_is_no_other_version(tmp_path: Path) -> None:
    two = SCHEMA + "CREATE TABLE IF NOT EXISTS more (name TEXT);"
    with pytest.raises(SettingsError):
        open_database(tmp_path / "a.sqlite", two + "CREATE TABLE nonsense;")
    database = sqlite3.connect(tmp_path / "a.sqlite")
    assert database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 2
    assert database.execute("PRAGMA user_version").fetchone()[0] != 0
    database.close()


@pytest.mark.parametrize("other", ["CREATE TABLE IF NOT EXISTS things (name TEXT, colour TEXT);", SCHEMA + " "])
def test_a_database_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path, other: str) -> None:
    """Its columns are others: better no start than a crash at the first upload."""
    open_database(tmp_path / "a.sqlite", other).close()
    before = (tmp_path / "a.sqlite").read_bytes()
    with pytest.raises(SettingsError, match="written by another version"):
        open_database(tmp_path / "a.sqlite", SCHEMA)
    assert (tmp_path / "a.sqlite").read_bytes() == before


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("years of work " * 100)
    with pytest.raises(StoreDamagedError, match="is damaged: file is not a database"):
        open_database(tmp_path / "a.sqlite", SCHEMA)


def test_damage_is_found_at_the_start(tmp_path: Path) -> None:
    """A page that was overwritten is named when the service starts, not when a round needs it."""
    path = tmp_path / "a.sqlite"
    database = open_database(path, SCHEMA)
    database.executemany("INSERT INTO things VALUES (?)", [(f"thing {number} " * 50,) for number in range(200)])
    database.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + bytes(4096) + whole[12_288:])
    with pytest.raises(StoreDamagedError, match="expected a whole database"):
        open_database(path, SCHEMA)
    path.write_bytes(whole)
    assert open_database(path, SCHEMA).execute("SELECT COUNT(*) FROM things").fetchone()[0] == 200


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, StoreError),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreError),
        (sqlite3.SQLITE_IOERR_WRITE, StoreError),
        (sqlite3.SQLITE_CORRUPT, StoreDamagedError),
        (sqlite3.SQLITE_CONSTRAINT, sqlite3.OperationalError),
    ],
)
def test_a_failing_disk_is_another_thing_than_a_damaged_file(
    code: int, expected: type[Exception], tmp_path: Path
) -> None:
    error = sqlite3.OperationalError("as the library says it")
    error.sqlite_errorcode = code
    with pytest.raises(expected, match="as the library says it"), disk_errors(tmp_path / "a.sqlite"):
        raise error


def test_the_log_beside_a_database_is_private_and_cut_back(tmp_path: Path) -> None:
    database = open_database(tmp_path / "a.sqlite", SCHEMA)
    database.execute("INSERT INTO things VALUES (?)", (bytes(12_000_000),))
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    assert (tmp_path / "a.sqlite-wal").stat().st_size > 10_000_000
    for text in ("the checkpoint", "starts the log anew"):
        database.execute("INSERT INTO things VALUES (?)", (text,))
    assert (tmp_path / "a.sqlite-wal").stat().st_size <= 4 * 1024 * 1024
    database.close()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in (b"first", b"second"):
        write_atomically(path, text, mode=0o600)
        assert path.read_bytes() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_secret_never_lies_in_a_file_that_others_can_read(tmp_path: Path) -> None:
    """Also where something lies beside it already: left by a crash, by an older version, or on purpose."""
    path, other = tmp_path / "key", tmp_path / "theirs"
    (tmp_path / "key.part").write_bytes(b"open to all")
    (tmp_path / "key.part").chmod(0o666)
    with open(tmp_path / "key.part", "rb") as watching:
        write_atomically(path, b"secret", mode=0o600)
        assert watching.read() == b"open to all", "nobody who has it open reads the new one"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"secret", 0o600)
    other.write_bytes(b"theirs")
    (tmp_path / "key.part").symlink_to(other)
    write_atomically(path, b"secret", mode=0o600)
    assert (other.read_bytes(), path.is_symlink()) == (b"theirs", False)


def test_a_disk_that_refuses_a_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "file", b"much")
    assert caught.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())
