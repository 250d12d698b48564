"""Whether the clock can be believed: boards without a battery for it start in the past."""

from __future__ import annotations

import ctypes
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from edge_client.board.files import BoardFiles

Clock = Literal["ok", "unset", "unsynchronised"]

#: This software did not exist before: a clock that shows less has not been set since the board was switched on.
RELEASED: Final = datetime(2026, 11, 1, tzinfo=UTC)

#: What adjtimex(2) returns for a clock that nobody keeps in step.
_TIME_ERROR: Final = 5
#: More than struct timex takes on any 64-bit Linux (208 bytes). All zero: ask, do not set.
_TIMEX_BYTES: Final = 512


def clock(files: BoardFiles, unix_s: float) -> Clock | None:
    """Whether a clock that shows `unix_s` (seconds since 1970) has been set, and is kept in step with a time source.

    systemd-timesyncd leaves a file; any other service (chrony, ntpd, PTP) tells the kernel, which is asked only where
    the root is this machine's own. None where neither answers.
    """
    if unix_s < RELEASED.timestamp():
        return "unset"
    if os.path.exists(files.root / "run/systemd/timesync/synchronized"):
        return "ok"
    return _kernel() if files.root == Path("/") else None


def _kernel() -> Clock | None:
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    if not isinstance(state, int) or state < 0:
        return None
    return "unsynchronised" if state == _TIME_ERROR else "ok"
