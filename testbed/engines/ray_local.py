"""A Ray cluster of a run's own, on this machine, that nothing of is left when the run ends, however it ends.

Ray's processes have one keeper above them: `python -m testbed.engines.ray_local FOLDER NODES CPUS`. It starts them,
writes the cluster's address to standard output and waits for the end of its standard input, which also comes where the
run is killed. Then it kills all that descends from it and deletes the folder. (Ray alone leaves its agents running for
up to a minute, and its folder for ever.)

Whoever reaches Ray's ports, and they are open to the network, could run programs here: so a token is asked for, drawn
anew in every run and kept in memory alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fedpruneshare.errors import RunError
from testbed.processes import environment, tail

#: Ray keeps the first token a process showed it, so one serves all clusters of a process.
_TOKEN: Final = secrets.token_hex(32)
_START_S: Final = 90.0
_STOP_S: Final = 20.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_OBJECT_STORE_BYTES: Final = 80 << 20


def local_environment() -> dict[str, str]:
    """Variables of Ray's own processes and of whoever connects to them.

    Devices get the priority of any other process of the run (Ray's own default is 15 steps lower), and what they
    need of memory is between them and the kernel, not Ray's memory monitor, which would end a whole node.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }


class LocalRay:
    """Handle of the keeper: starts it, knows the address, stops it. Nothing happens before `launch`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        #: Private folder of Ray, for its nodes' folders too; its path is short, for Ray's sockets lie in it.
        self.folder = Path()

    def launch(self, nodes: int, cpus: int) -> None:
        """Start `nodes` Ray nodes with `cpus` processors each, without waiting for them."""
        self.folder = Path(tempfile.mkdtemp(prefix="fps-ray-", dir="/tmp"))
        arguments = [sys.executable, "-m", "testbed.engines.ray_local", str(self.folder), str(nodes), str(cpus)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment({**os.environ, **local_environment(), "RAY_TMPDIR": str(self.folder)}),
                start_new_session=True,
            )

    def address(self) -> str:
        """HOST:PORT of the cluster, as soon as it runs. Raises `RunError` with the end of the log where it does not."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(_START_S) else b""
        if not line.endswith(b"\n"):
            raise RunError(f"Ray did not start on this machine within {_START_S:g} s:\n{tail(self._log)}")
        return line.decode().strip()

    def stop(self) -> None:
        """End the cluster and wait until nothing of it is left. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=_STOP_S)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            process.kill()
            process.wait()


# --------------------------------------------------------------------------- the keeper


def _keep(folder: Path, nodes: int, cpus: int) -> None:
    """Start the cluster, say where it is, wait for the end of input, remove everything."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Children of a Ray process that has ended become this process's, not the system's.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    replies = os.dup(1)
    os.set_inheritable(replies, False)
    os.dup2(2, 1)
    try:
        address = _start_cluster(folder, nodes, cpus)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans that end are not kept as zombies
        with contextlib.suppress(BrokenPipeError):
            os.write(replies, address.encode() + b"\n")
            while os.read(0, 4096):
                pass
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _kill_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _start_cluster(folder: Path, nodes: int, cpus: int) -> str:
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {
        "num_cpus": cpus,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "include_log_monitor": False,
        "temp_dir": str(folder / "ray"),  # what Ray makes of RAY_TMPDIR; one of both alone is not heeded everywhere
    }
    cluster = Cluster(initialize_head=True, head_node_args={**common, "no_monitor": True})
    for _ in range(1, nodes):
        cluster.add_node(**common)
    return str(cluster.address)


def _kill_descendants() -> None:
    """Until there are none: a process may start another while it is looked for."""
    give_up_s = time.monotonic() + _STOP_S / 2
    while time.monotonic() < give_up_s:
        found = list(_descendants(os.getpid()))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.02)
            continue
        return


def _descendants(pid: int) -> Iterator[int]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listing.read_text().split()):
                yield from _descendants(child)
                yield child


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # without Ray's own exit handlers: what they would stop is gone
