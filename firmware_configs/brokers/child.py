"""Runs one broker that does not outlive its launcher. A script, not a module: `child.py LAUNCHER_PID KIND ARGUMENT…`.

`embedded CONFIG` runs iotcore in this very process; `program PATH ARGUMENT…` becomes that program. Either way the
process id the launcher knows is the broker's, so that it can be killed by it.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import threading
import time

_POLL_S = 0.25


def run_embedded(launcher: int, config: str) -> None:
    """Run iotcore until killed or orphaned."""
    import logging

    from iotcore import Broker

    # rumqttd logs every packet of a client as an error.
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    Broker(config_path=config).run_forever()


def _end_with(launcher: int) -> None:
    # Asked of the kernel, not read from a pipe: a pipe stays open in every process the launcher has forked.
    while os.getppid() == launcher:
        time.sleep(_POLL_S)
    os._exit(0)


def run_program(launcher: int, command: list[str]) -> None:
    """Become a program; a forked guard terminates it when the launcher is gone."""
    broker = os.getpid()
    if hasattr(os, "pidfd_open") and os.fork() == 0:
        _guard(launcher, broker)
        os._exit(0)
    os.execv(command[0], command)


def _guard(launcher: int, broker: int) -> None:
    try:
        watched = [os.pidfd_open(launcher), os.pidfd_open(broker)]
    except ProcessLookupError:
        watched = []
    if watched:
        select.select(watched, [], [])
    if os.getppid() == broker:
        os.kill(broker, signal.SIGTERM)


def main() -> None:
    """Read the command line (see the module) and run."""
    launcher, kind, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # every device is a connection
    if kind == "embedded":
        run_embedded(launcher, arguments[0])
    else:
        run_program(launcher, arguments)


if __name__ == "__main__":
    main()
