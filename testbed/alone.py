"""One run to a folder: a second one there would delete, and mix with, what the first is writing."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedpruneshare.errors import SettingsError

#: A run that was killed may still be ending.
_PATIENCE_S: Final = 2.0
_PAUSE_S: Final = 0.05


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a results folder, made if it is not there, for as long as the process lives. Its files may come and go.

    Raises `SettingsError` where another run holds it, or it is a file. A file system that knows no locks is trusted.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        give_up_s = time.monotonic() + _PATIENCE_S
        while _is_taken(held):
            if time.monotonic() > give_up_s:
                raise SettingsError(
                    f"--out {folder}: another run is at work there, expected to be alone; wait for its end,"
                    " or take another folder"
                )
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(held)


def _is_taken(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
