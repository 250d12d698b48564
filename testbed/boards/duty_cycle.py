"""Holding processes to a share of one core without control groups: stopped and continued by the time they used.

`python -m testbed.boards.duty_cycle` reads JSON lines {"pid": …, "share": …} (share null: let it go) and watches the
processor clock of every pid. A process earns `share` seconds a second, up to one period's worth; once it has used more
than it earned it is stopped (SIGSTOP) until it has earned that. So a process that waits is never stopped, and what one
look too few let it use is paid back. At the end of input everything is continued.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.boards.clocks import cpu_s
from testbed.orphans import bound_command

_LOOK_S: Final = 0.005
_PERIOD_S: Final = 0.1
_END_TIMEOUT_S: Final = 5.0


@dataclass
class Account:
    """What one process has earned and used, in seconds of a processor; pure."""

    share: float
    used_s: float
    now_s: float
    earned_s: float = 0.0
    is_stopped: bool = False

    def look(self, now_s: float, used_s: float) -> bool:
        """Note what it has used until now; whether it is to be stopped until it has earned that."""
        most_s = self.share * _PERIOD_S
        passed_s, spent_s = now_s - self.now_s, used_s - self.used_s
        self.earned_s = min(most_s, self.earned_s + self.share * passed_s - spent_s)
        self.now_s, self.used_s = now_s, used_s
        # Let go only with a part of a period's worth in hand: otherwise it would be stopped again at the next look.
        return self.earned_s < (most_s / 2 if self.is_stopped else 0.0)


@dataclass
class _Held:
    """A process under way. Its descriptor stays the process's, whoever gets its number next."""

    descriptor: int
    account: Account


class Keeper:
    """Stops and continues processes; what `python -m testbed.boards.duty_cycle` runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[int, _Held] = {}

    def hold(self, pid: int, share: float | None) -> None:
        """Hold a process to a share from now on, or let it go (None)."""
        known, used_s = self._held.get(pid), cpu_s(pid)
        if share is None or used_s is None:
            self._let_go(pid)
        elif known is not None:
            known.account.share = share
        else:
            with suppress(ProcessLookupError):
                self._held[pid] = _Held(os.pidfd_open(pid), Account(share, used_s, self._clock()))

    def look(self) -> None:
        """Look at every process once."""
        for pid, held in list(self._held.items()):
            used_s = cpu_s(pid)
            if used_s is None:
                self._let_go(pid)
                continue
            account = held.account
            must_stop = account.look(self._clock(), used_s)
            if must_stop != account.is_stopped and self._signal(pid, signal.SIGSTOP if must_stop else signal.SIGCONT):
                account.is_stopped = must_stop

    def let_all_go(self) -> None:
        """Continue whatever is stopped."""
        for pid in list(self._held):
            self._let_go(pid)

    def _let_go(self, pid: int) -> None:
        held = self._held.get(pid)
        if held is None:
            return
        if held.account.is_stopped:
            self._signal(pid, signal.SIGCONT)
        if self._held.pop(pid, None) is not None:
            os.close(held.descriptor)

    def _signal(self, pid: int, number: signal.Signals) -> bool:
        """Whether the process was there to get it; one that is gone is forgotten."""
        try:
            signal.pidfd_send_signal(self._held[pid].descriptor, number)
        except ProcessLookupError:
            os.close(self._held.pop(pid).descriptor)
            return False
        return True


def _serve() -> None:
    keeper, pending = Keeper(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        try:
            while True:
                if selector.select(_LOOK_S):
                    data = os.read(0, 65536)
                    if not data:
                        return
                    *lines, pending = (pending + data).split(b"\n")
                    for line in map(json.loads, lines):
                        keeper.hold(int(line["pid"]), line["share"])
                keeper.look()
        finally:
            keeper.let_all_go()


class DutyCycle:
    """The process that holds others to their share; a context manager."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DutyCycle:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                bound_command([sys.executable, "-m", "testbed.boards.duty_cycle"]),
                stdin=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the keeper runs."""
        return self._process is not None and self._process.poll() is None

    def hold(self, pid: int, share: float | None) -> None:
        """Hold a process to a share of one core, or let it go (None). Raises `OSError` if the keeper has ended."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"pid": pid, "share": share}).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Let everything go and end. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=_END_TIMEOUT_S)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            process.kill()
            process.wait()


if __name__ == "__main__":
    _serve()
