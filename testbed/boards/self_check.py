"""Whether a process is really held to its share: a child that does nothing but compute, measured for half a second."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedpruneshare.errors import SettingsError
from testbed.boards.clocks import cpu_s
from testbed.orphans import bound_command

#: How far the measured share may be off, as a part of what was asked.
TOLERANCE: Final = 0.10
#: A measurement lasts whole periods, and long enough that a scheduler's tick (up to 4 ms) hardly shows.
_PERIOD_S, _LEAST_CPU_S, _LEAST_S, _MOST_S = 0.1, 0.08, 0.5, 3.0
_BEGUN_CPU_S, _START_TIMEOUT_S = 0.02, 60.0
_TRIES: Final = 3
_SPIN: Final = "while True: pass"


def measure_share(confine: Callable[[int], None], share: float) -> float:
    """What part of one core a spinning child gets once `confine` has been told its pid. Raises `SettingsError`."""
    window_s = min(_MOST_S, max(_LEAST_S, _LEAST_CPU_S / share))
    window_s = _PERIOD_S * round(window_s / _PERIOD_S)
    with _spinning() as pid:
        confine(pid)
        time.sleep(_PERIOD_S)
        begun_s, begun_cpu_s = time.monotonic(), cpu_s(pid) or 0.0
        time.sleep(window_s)
        used_s, ended_s = (cpu_s(pid) or 0.0) - begun_cpu_s, time.monotonic()
    return used_s / (ended_s - begun_s)


def check_share(confine: Callable[[int], None], share: float) -> float:
    """The measured share. Raises `SettingsError` if it is off by more than `TOLERANCE` each of three times.

    A busy machine can deny a process its share for a moment; it cannot give it more, or deny it every time.
    """
    found = []
    for _ in range(_TRIES):
        found.append(measure_share(confine, share))
        if abs(found[-1] / share - 1) <= TOLERANCE:
            return found[-1]
    shown = ", ".join(f"{one:.3f}" for one in found)
    raise SettingsError(
        f"a process held to {share:.3f} of a core got {shown}, expected {share:.3f} within {TOLERANCE:.0%}: "
        "its times would not be those of the board"
    )


@contextmanager
def _spinning() -> Iterator[int]:
    command = bound_command([sys.executable, "-S", "-E", "-c", _SPIN])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as child:
        try:
            _wait_begun(child.pid)
            yield child.pid
        finally:
            child.kill()


def _wait_begun(pid: int) -> None:
    """Until it has used some of the processor: what it does then, it does without end."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while (cpu_s(pid) or 0.0) < _BEGUN_CPU_S:
        if time.monotonic() > deadline:
            raise SettingsError(f"a child that only computes had less than {_BEGUN_CPU_S} s in {_START_TIMEOUT_S:g} s")
        time.sleep(0.005)
