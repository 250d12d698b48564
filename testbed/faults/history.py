"""Histories: what happened in a run, one JSON object a line, for a judge that knows nothing of the product.

docs/histories.md says what each event means; `EVENTS` says what it must hold, so that a writer's slip is found where it
is made. `testbed.faults.checker` judges.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1

#: What each event must hold beside `at` and `event`; more is allowed, and ignored by the checker.
EVENTS: Final[dict[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "begin": "format seed grace_s",
        "plan": "round plan version k points cohort min_devices min_devices_segment segments model deadline_s",
        "upload": "round device upload rung digest",
        "receipt": "round aggregator device upload verdict",
        "decline": "round device",
        "attendance": "round aggregator uploads",
        "freeze-signed": "round freeze aggregators contributors segments",
        "freeze-accepted": "round freeze aggregator",
        "sum-released": "round freeze aggregator digest",
        "burned": "round aggregator",
        "opened": "round freeze contributors values",
        "outcome": "round phase reason",
        "model-applied": "round version",
        "device-model": "round device version",
        "restart": "party",
        "directory": "version revoked",
        "resource": "party",
        "canary": "place aggregators found",
        "fault": "what",
        "end": "",
    }.items()
}


class History:
    """Appends events to one file, each with one write, so that threads and processes may share it.

    `clock` gives `at`, seconds from any fixed moment; it must be the same clock for all writers of a run.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, event: str, **fields: Any) -> None:
        """Append one event. Raises `ValueError` for an event that lacks something; bytes are written in hex."""
        line = json.dumps({"at": round(self._clock(), 6), **checked(event, fields)}, default=bytes.hex)
        with self._lock:
            os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def checked(event: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The event with its name, if it holds what it must; raises `ValueError` otherwise."""
    if event not in EVENTS:
        raise ValueError(f"event {event!r}, expected one of {', '.join(EVENTS)}")
    if lacking := EVENTS[event] - fields.keys():
        raise ValueError(f"{event} lacks {', '.join(sorted(lacking))}")
    return {"event": event, **fields}
