"""How much of the processor another process has used, by its clock: no file is parsed and nothing rounded to ticks."""

from __future__ import annotations

import time


def cpu_s(pid: int) -> float | None:
    """Seconds of all its threads, those that ended included; None where there is no such process (or not on Linux).

    The clock's id is made as clock_getcpuclockid(3) makes it: the complement of the pid, and 2 for all it ran.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None
