"""A process that holds many synthetic devices: `python -m testbed.synthetic.host TASK DATA_DIR`.

Speaks as the zygote of real devices does (`testbed.zygote`), so that `testbed.devices.DeviceProcesses` drives either:
commands as JSON lines on standard input, replies on the first standard output. A signal to a device ends that device
and nothing else; the pid of each is this process's. It ends at the end of input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

from edge_client.settings import DeviceSettings
from fedpruneshare import logs
from fedpruneshare.errors import FedPruneShareError
from fedpruneshare.link import Link
from fedpruneshare.moving import Brokers, brokers_of, follow
from fedpruneshare.party import Party
from fedpruneshare.process import open_link
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role
from testbed.synthetic.device import Shared, SyntheticDevice

_log = structlog.get_logger()
#: Devices of one host that are connecting at a time.
_CONNECTING = 32


class Host:
    """Starts and ends devices on command. `replies` is the descriptor it speaks to."""

    def __init__(self, replies: int) -> None:
        self._replies = replies
        self._devices: dict[str, asyncio.Task[None]] = {}
        self._how: dict[str, int] = {}
        self._shared = Shared(asyncio.Semaphore(_CONNECTING))

    async def serve(self) -> None:
        """Until the end of input."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._reply({"ready": os.getpid()})
        while line := await reader.readline():
            self._obey(json.loads(line))
        for task in self._devices.values():
            task.cancel()
        await asyncio.gather(*self._devices.values(), return_exceptions=True)

    def _obey(self, command: dict[str, Any]) -> None:
        name = command["name"]
        if command["do"] == "start":
            self._how.pop(name, None)
            task = asyncio.create_task(self._run(name, Path(command["settings"])), name=name)
            self._devices[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
            self._reply({"started": name, "pid": os.getpid()})
        elif command["do"] == "signal":
            task_or_none = self._devices.get(name)
            if task_or_none is not None:
                self._how.setdefault(name, int(command["signal"]))
                task_or_none.cancel()
            self._reply({"signalled": name, "pid": os.getpid() if task_or_none else None})
        else:
            raise RuntimeError(f"no such command: {command['do']!r}")

    async def _run(self, name: str, path: Path) -> None:
        settings = load_settings(path, DeviceSettings)
        party = Party.load(settings.party, Role.DEVICE)

        def at(brokers: Brokers) -> SyntheticDevice:
            uplinks: dict[str, Link] = {who: open_link(place, name, settings.link) for who, place in brokers.items()}
            links = uplinks.pop(party.directory.coordinator_id), uplinks
            return SyntheticDevice(party, settings, links, self._shared)

        await follow(party, brokers_of, at)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._devices.get(name) is task:
            del self._devices[name]
        how = self._how.pop(name, None)
        code = 0 if how in (None, signal.SIGTERM) else -int(how or 0)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = None if isinstance(error, FedPruneShareError) else error
            _log.error("device-ended", device=name, reason=str(error), exc_info=level)
            code = 1
        self._reply({"ended": name, "code": code})

    def _reply(self, message: dict[str, Any]) -> None:
        os.write(self._replies, json.dumps(message).encode() + b"\n")


def main() -> int:
    """Serve until the end of input; the exit code."""
    replies = os.dup(1)
    os.set_inheritable(replies, False)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure("devices", str(os.getpid()), "warning")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # every device has a connection to every broker
    gc.set_threshold(100_000, 20, 20)  # every pass looks at all of the devices
    asyncio.run(Host(replies).serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
