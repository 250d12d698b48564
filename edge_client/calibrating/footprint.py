"""Memory of a device that trains, measured in a process of its own: `python -m edge_client.calibrating.footprint`.

The order comes on standard input, the figures go to standard output. A new process is needed because a peak is of a
process's whole life, and because what is resident already would be counted in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edge_client.settings import DeviceTask
from fedpruneshare.errors import TaskError
from fedpruneshare.sparse.channels import Groups

STATUS: Final = Path("/proc/self/status")
_TIMEOUT_S: Final = 300
_MIB: Final = 2**20


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to train: so many steps of a task at a width; `groups` as `task export` found them, none for width 1."""

    task: DeviceTask
    groups: Groups = ()
    width: float = 1.0
    batch_size: int = 32
    steps: int = 20
    torch_threads: Annotated[int, Meta(ge=1)] = 1


class Footprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resident memory in MiB.

    base_mib: after imports, with task, data and model. step_mib: on top of it while training. peak_mib: the most at
    any time, loading the data included.
    """

    base_mib: float
    step_mib: float
    peak_mib: float


def measure_footprint(order: Order) -> Footprint:
    """Train in a new process. Raises `TaskError` where that process fails, with its last words."""
    threads = str(order.torch_threads)
    ran = subprocess.run(
        [sys.executable, "-m", __name__],
        input=msgspec.json.encode(order),
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if ran.returncode:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise TaskError(f"training in a new process ended with {ran.returncode}: {last[-300:]}")
    return msgspec.json.decode(ran.stdout, type=Footprint)


def resident_mib(entry: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process. Raises `TaskError` where the system does not say."""
    try:
        found = re.search(rf"^{entry}:\s+(\d+) kB", STATUS.read_text("ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise TaskError(f"{STATUS} has no {entry}, expected Linux's figures of this process's memory")
    return int(found[1]) * 1024 / _MIB


def forget_peak() -> None:
    """The peak starts again at what is resident now. Where that is not allowed, figures can only come out larger."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _train(order: Order) -> Footprint:
    from edge_client.calibrating.trial import Trial
    from edge_client.running import workplace_of  # all that `device run` imports, torch included

    work = workplace_of(order.task, order.torch_threads)
    base_mib, first_peak_mib = resident_mib("VmRSS"), resident_mib("VmHWM")
    forget_peak()
    trial = Trial(work, order.groups, order.width, order.batch_size)
    trial.train(order.steps)
    peak_mib = resident_mib("VmHWM")
    return Footprint(base_mib, max(0.0, peak_mib - base_mib), max(first_peak_mib, peak_mib))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_train(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))))
