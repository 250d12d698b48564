"""The child processes of a run: started with a log file each, stopped by pid, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fedpruneshare.errors import RunError
from testbed.orphans import bound_command
from testbed.places import HERE, Place

#: One thread a process: with more, processes that share cores wait for each other instead of working.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_KILLED_TIMEOUT_S: Final = 60.0


class Processes:
    """Named child processes. Each is a session of its own, so that Ctrl-C reaches only the run, which stops them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str], place: Place = HERE) -> int:
        """Start a program in its place and return its pid; output is appended to `NAME.log`.

        Raises `RunError` where a process of this name still runs.
        """
        if self.is_running(name):
            raise RunError(f"{name} runs already, expected it to have ended before it is started again")
        with open(self.log(name), "ab") as log:
            self._running[name] = subprocess.Popen(
                bound_command(place.command(arguments)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(os.environ),
                start_new_session=True,
            )
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def names(self) -> tuple[str, ...]:
        """Everything ever started, in order."""
        return tuple(self._running)

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        return self._running[name].poll()

    def kill(self, name: str) -> None:
        """SIGKILL, as a loss of power would; returns when the process is gone."""
        self._running[name].kill()
        self._running[name].wait(_KILLED_TIMEOUT_S)

    def stop(self, names: Sequence[str], grace_s: float) -> None:
        """SIGTERM to all of them at once; whoever still runs after `grace_s` is killed."""
        chosen = [self._running[name] for name in names if name in self._running]
        for process in chosen:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for process in chosen:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in chosen:
            process.wait(_KILLED_TIMEOUT_S)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: as inherited, with one thread for every numeric library."""
    return {**inherited, **ONE_THREAD}


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for a message that says why a process ended."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
