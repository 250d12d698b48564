"""The devices of a fleet, as processes forked from one warmed-up parent (`testbed.zygote`)."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edge_client.settings import SplitKind
from fedpruneshare.errors import RunError, TaskError
from testbed.orphans import bound_command
from testbed.places import HERE, Place
from testbed.processes import environment, tail

_WARM_UP_TIMEOUT_S: Final = 180.0
_EXPORT_TIMEOUT_S: Final = 180.0
_REPLY_TIMEOUT_S: Final = 60.0


class DeviceProcesses:
    """Starts, signals and watches devices by name. Not for use from several threads."""

    def __init__(self, logs: Path, zygote: Sequence[str] = (sys.executable, "-m", "testbed.zygote")) -> None:
        self._logs = logs
        self._zygote = zygote
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[dict[str, Any]] = []
        self._partial = b""
        self._pids: dict[str, int] = {}
        self._codes: dict[str, int] = {}

    def launch(self, task: str, data_dir: Path, split: SplitKind = "") -> None:
        """Start the zygote without waiting for its warm-up (`wait_ready` does), which tries the split on the task."""
        with open(self._logs / "zygote.log", "ab") as log:
            self._process = subprocess.Popen(
                bound_command([*self._zygote, task, str(data_dir), split]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(os.environ),
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once devices can be started. Raises `TaskError` if the task cannot be used, else `RunError`."""
        line = self._reply(("ready", "error"), _WARM_UP_TIMEOUT_S)
        if "error" in line:
            raise TaskError(str(line["error"]))

    def export(self, seed: int, bundle: Path) -> None:
        """Write the task's bundle with initial weights from `seed`. Raises `TaskError` with the reason."""
        self._send({"do": "export", "seed": seed, "bundle": str(bundle)})
        reason = self._reply(("exported",), _EXPORT_TIMEOUT_S)["exported"]
        if reason:
            raise TaskError(str(reason))

    def start(self, name: str, settings: Path, place: Place = HERE) -> int:
        """Fork a device, which enters its place first, and return its pid. Raises `RunError` where it runs already."""
        if self.is_running(name):
            raise RunError(f"{name} runs already, expected it to have ended before it is started again")
        self._codes.pop(name, None)
        log = str(self._logs / f"{name}.log")
        self._send({"do": "start", "name": name, "settings": str(settings), "log": log, "place": place.to_json()})
        self._pids[name] = int(self._reply(("started",), _REPLY_TIMEOUT_S)["pid"])
        return self._pids[name]

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return name in self._pids and self.exit_code(name) is None

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        self._pump(0.0)
        return self._codes.get(name)

    def ended(self) -> dict[str, int]:
        """Exit code of every device that has ended and was not started again."""
        self._pump(0.0)
        return dict(self._codes)

    def kill(self, name: str) -> None:
        """SIGKILL, as a loss of power would; returns when the process is gone."""
        self._signal(name, signal.SIGKILL)
        self._wait_ended([name], _REPLY_TIMEOUT_S)

    def stop(self, grace_s: float) -> None:
        """SIGTERM to all, SIGKILL after `grace_s` to whoever is left, then the zygote ends. Never raises."""
        process = self._process
        if process is None:
            return
        try:
            running = [name for name in self._pids if self.is_running(name)]
            for name in running:
                self._signal(name, signal.SIGTERM)
            self._wait_ended(running, grace_s)
        except (RunError, OSError, ValueError):
            pass  # the zygote is gone or a device hangs: both end below, with the zygote
        try:
            process.communicate(timeout=grace_s)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            process.kill()
            process.wait()
        self._process = None

    def _signal(self, name: str, number: signal.Signals) -> None:
        # Sent by the zygote, the device's parent: until it has reaped the device, the pid is nobody else's.
        self._send({"do": "signal", "name": name, "signal": int(number)})
        self._reply(("signalled",), _REPLY_TIMEOUT_S)

    def _wait_ended(self, names: Sequence[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while waiting := [name for name in names if name not in self._codes]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RunError(f"{', '.join(waiting)} still running after {timeout_s:g} s, expected an end")
            if not self._pump(left_s):
                return  # with the zygote its devices ended

    def _send(self, command: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the zygote has not been launched")
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def _reply(self, kinds: tuple[str, ...], timeout_s: float) -> dict[str, Any]:
        """The next line that holds one of `kinds`. Lines about ended devices are noted on the way."""
        deadline = time.monotonic() + timeout_s
        while True:
            for index, line in enumerate(self._lines):
                if any(kind in line for kind in kinds):
                    return self._lines.pop(index)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RunError(f"the parent of the devices did not answer in {timeout_s:g} s: see zygote.log")
            if not self._pump(left_s):
                raise self._gone()

    def _pump(self, timeout_s: float) -> bool:
        """Read what the zygote says within `timeout_s`; False at its end."""
        if self._process is None or self._process.stdout is None:
            return False
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return True
        data = os.read(descriptor, 65536)
        if not data:
            for name in self._pids:
                self._codes.setdefault(name, -signal.SIGKILL)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in map(json.loads, lines):
            if "ended" in line:
                self._codes[line["ended"]] = int(line["code"])
            else:
                self._lines.append(line)
        return bool(data)

    def _gone(self) -> RunError:
        return RunError(f"the parent of the devices has ended:\n{tail(self._logs / 'zygote.log')}")
