"""Whether a service is at work on a store: its process holds a lock on it for as long as it lives, however it ends.

Two on one store would each go on from what it alone remembers: the second aggregator knows no Freeze of the first. Who
would measure beside a device looks here, too: at a broker that knows a device by its certificate, a second connection
ends the first.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedpruneshare.errors import SettingsError

LOCK_FILE: Final = "in-use.lock"
#: A process that was killed may still be ending, and whoever looks holds the lock for a moment.
_PATIENCE_S: Final = 2.0
_PAUSE_S: Final = 0.05


@contextmanager
def at_work(store: Path) -> Iterator[None]:
    """Be the one process at work on a store, which is made if it is not there, for its owner only.

    Raises `SettingsError` where another process is, or the store cannot be written.
    """
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(f"store {store}: {error.strerror}, expected a folder that this user can write") from None
    try:
        _take(lock, store)
        yield
    finally:
        os.close(lock)


def is_at_work(store: Path) -> bool:
    """Whether a service is at work on this store; False also where that cannot be told."""
    try:
        with (store / LOCK_FILE).open("rb") as lock:
            return not _is_taken(lock.fileno(), fcntl.LOCK_SH)
    except OSError:  # none has ever been, or it is somebody else's
        return False


def _take(lock: int, store: Path) -> None:
    give_up_s = time.monotonic() + _PATIENCE_S
    while not _is_taken(lock, fcntl.LOCK_EX):
        if time.monotonic() > give_up_s:
            found = os.pread(lock, 20, 0).decode(errors="replace") or "unknown"
            raise SettingsError(
                f"store {store} is in use by process {found}, expected one service to a store: stop that one first,"
                " or give this one another store"
            )
        time.sleep(_PAUSE_S)
    with suppress(OSError):  # a full disk: the number is only for whoever is refused
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)


def _is_taken(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
