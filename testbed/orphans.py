"""No process outlives the run that started it: `python -m testbed.orphans PID ARGV…` dies with process PID.

Started this way a program gets SIGKILL from the kernel as soon as its parent ends, however that ends. Off Linux there
is no such signal: there only an orderly stop cleans up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; end at once if that has already happened.

    The signal follows the parent's *thread*, so a parent must start its children from a thread that stays.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent_pid:
        os._exit(1)


def bound_command(arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` and dies with the calling process."""
    return [sys.executable, "-m", "testbed.orphans", str(os.getpid()), *arguments]


def _main(parent_pid: str, *arguments: str) -> None:
    die_with(int(parent_pid))
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    _main(*sys.argv[1:])
