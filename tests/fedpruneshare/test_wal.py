"""A log of SQLite that is broken in its middle is told from one that ends in the middle of a commit."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fedpruneshare.errors import StoreDamagedError
from fedpruneshare.storage import open_database
from fedpruneshare.wal import lost_commits

SCHEMA = "CREATE TABLE IF NOT EXISTS things (number INTEGER PRIMARY KEY, data BLOB NOT NULL);"
WRITER = f"""
import os, sys
from pathlib import Path
from fedpruneshare.storage import open_database
database = open_database(Path(sys.argv[1]), {SCHEMA!r})
for number in range(int(sys.argv[2])):
    if number == int(sys.argv[3]):
        database.execute("PRAGMA wal_checkpoint")  # the log is begun anew, over what it held
    database.execute("INSERT INTO things VALUES (?, ?)", (number, bytes([number]) * 6000))
os._exit(0)
"""
#: Commits before the log, and in it.
ROWS = 20
PAGE, LOG_HEADER, FRAME_HEADER = 4096, 32, 24


def killed_after(folder: Path, rows: int, checkpoint_at: int = -1) -> Path:
    """A database whose writer was killed after so many commits; all of them in its log, or all after a checkpoint."""
    folder.mkdir()
    arguments = [sys.executable, "-c", WRITER, str(folder / "a.sqlite"), str(rows), str(checkpoint_at)]
    subprocess.run(arguments, check=True, timeout=30)
    return folder / "a.sqlite"


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def copied(path: Path, folder: Path, log: bytes) -> Path:
    """The database with another log."""
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    log_of(folder / path.name).write_bytes(log)
    return folder / path.name


def rows_by_sqlite(path: Path) -> int:
    """How many rows SQLite itself finds, without a word about those it does not."""
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        tables = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        return int(database.execute("SELECT COUNT(*) FROM things").fetchone()[0]) if tables else 0
    finally:
        database.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed_after(tmp_path_factory.mktemp("whole") / "store", ROWS)


@pytest.fixture(scope="module")
def begun_anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its log has eight commits, and behind them frames of the twelve before the checkpoint."""
    return killed_after(tmp_path_factory.mktemp("anew") / "store", ROWS, 12)


@pytest.mark.parametrize("name", ["whole", "begun_anew"])
def test_a_log_that_was_killed_is_whole(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    assert lost_commits(path) == 0
    again = open_database(copied(path, tmp_path / "again", log_of(path).read_bytes()), SCHEMA)
    assert again.execute("SELECT COUNT(*) FROM things").fetchone()[0] == ROWS
    again.close()


def test_a_log_that_is_cut_anywhere_is_no_damage(whole: Path, tmp_path: Path) -> None:
    """So it looks when the power fails in the middle of a commit; whatever the disk then has in the last places."""
    log, rng = log_of(whole).read_bytes(), random.Random(1)
    for number, size in enumerate([0, 1, LOG_HEADER, *(rng.randrange(len(log)) for _ in range(20))]):
        assert lost_commits(copied(whole, tmp_path / f"{number}", log[:size])) == 0
        end = len(log) - 2 * (FRAME_HEADER + PAGE)
        torn = log[:end] + rng.choice((bytes(600), rng.randbytes(600), log[:600])) + log[end + 600 :]
        assert lost_commits(copied(whole, tmp_path / f"torn-{number}", torn)) == 0


@pytest.mark.parametrize("name", ["whole", "begun_anew"])
def test_a_bit_in_the_log_costs_no_more_than_two_commits_in_silence(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SQLite drops everything behind it, and finds its database whole; the service refuses to start on that."""
    path: Path = request.getfixturevalue(name)
    log, rng, refused = log_of(path).read_bytes(), random.Random(name), 0
    for number in range(48):
        at = number if number < LOG_HEADER else rng.randrange(len(log))
        damaged = log[:at] + bytes([log[at] ^ 1 << rng.randrange(8)]) + log[at + 1 :]
        lost = ROWS - rows_by_sqlite(copied(path, tmp_path / f"sqlite-{number}", damaged))
        ours = copied(path, tmp_path / f"ours-{number}", damaged)
        if lost_commits(ours):
            refused += 1
            for _ in range(2):  # also the second time: what is left of the log is not thrown away
                with pytest.raises(StoreDamagedError, match="commits behind the break"):
                    open_database(ours, SCHEMA)
            assert log_of(ours).read_bytes() == damaged
        else:
            assert lost <= 2, f"{lost} commits lost to a bit at {at}"
    assert refused >= LOG_HEADER


def test_a_log_without_its_database_is_nothing(whole: Path, tmp_path: Path) -> None:
    """As when an operator has moved a damaged database away, and left its log where it was."""
    log = bytearray(log_of(whole).read_bytes())
    log[len(log) // 2] ^= 1
    path = copied(whole, tmp_path / "a", bytes(log))
    assert lost_commits(path) > 2
    os.truncate(path, 0)
    assert lost_commits(path) == 0
    database = open_database(path, SCHEMA)
    assert database.execute("SELECT COUNT(*) FROM things").fetchone()[0] == 0
    database.close()
