"""The process every device of a fleet is forked from: `python -m testbed.zygote TASK DATA_DIR SPLIT`.

Importing torch takes a second and 200 MiB; a device forked from here after that, one training step and `gc.freeze()`
is ready in milliseconds and shares those pages. Three conditions, kept here: one thread (`set_num_threads(1)` in the
warm-up), no thread at all before a fork, and fresh random generators in every child.

Commands come as JSON lines on standard input, replies and news go as JSON lines to the first standard output:

    {"do": "start", "name": …, "settings": FILE, "log": FILE, "place": {…}}   -> {"started": name, "pid": …}
    {"do": "signal", "name": …, "signal": …}                    -> {"signalled": name, "pid": pid or null}
    {"do": "export", "seed": …, "bundle": FILE}                 -> {"exported": "" or the reason it failed}
    a device ended                                              -> {"ended": name, "code": …}

The first line is {"ready": pid}, or {"error": reason} if the task cannot be used. At the end of input it kills
what still runs and ends; if it is killed, the kernel kills its devices (`testbed.orphans`).
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import structlog
from numpy import random as numpy_global

from edge_client.settings import SplitKind
from fedpruneshare import logs
from fedpruneshare.errors import FedPruneShareError, SettingsError
from fedpruneshare.process import OpenLink, open_link
from testbed.links.shaped_link import Shaping, shaped
from testbed.orphans import die_with
from testbed.places import Place


@dataclass(frozen=True)
class Work:
    """What children do. `device` takes name and settings file and returns an exit code; `export` takes seed and bundle.

    `export` raises an error of this project where the bundle cannot be made.
    """

    device: Callable[[str, Path], int]
    export: Callable[[int, Path], None]


class Zygote:
    """Forks devices on command and says when they end. `replies` is the descriptor it speaks to."""

    def __init__(self, work: Work, replies: int) -> None:
        self._work, self._replies = work, replies
        self._pids: dict[str, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        """Until the end of input."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        self._reply({"ready": os.getpid()})
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            pending = b""
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                    self._reap()
                if 0 in ready:
                    data = os.read(0, 65536)
                    if not data:
                        break
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
        self._kill_all()

    def _obey(self, command: dict[str, Any]) -> None:
        name = command.get("name", "")
        if command["do"] == "start":
            place = Place.from_json(command["place"])

            def work() -> int:
                place.enter()
                return self._work.device(name, Path(command["settings"]))

            pid = self._fork(work, Path(command["log"]))
            self._pids[name] = pid
            self._reply({"started": name, "pid": pid})
        elif command["do"] == "signal":
            pid_or_none = self._pids.get(name)  # not reaped yet, so the pid cannot be another process's
            if pid_or_none is not None:
                os.kill(pid_or_none, int(command["signal"]))
            self._reply({"signalled": name, "pid": pid_or_none})
        elif command["do"] == "export":
            self._reply({"exported": self._export(int(command["seed"]), Path(command["bundle"]))})
        else:
            raise RuntimeError(f"no such command: {command['do']!r}")

    def _reap(self) -> None:
        for name, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[name]
                self._reply({"ended": name, "code": os.waitstatus_to_exitcode(status)})

    def _kill_all(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)

    def _reply(self, message: dict[str, Any]) -> None:
        os.write(self._replies, json.dumps(message).encode() + b"\n")

    def _fork(self, work: Callable[[], int], log: Path) -> int:
        """Run `work` in a child whose output goes to `log`; returns the child's pid."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            die_with(parent)
            self._become_child(log)
            code = work()
        except BaseException:
            traceback.print_exc()
            code = 1
        _leave(code)

    def _become_child(self, log: Path) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for descriptor in (self._wake_read, self._wake_write, self._replies):
            os.close(descriptor)
        _redirect(log)
        # Only a user's task may draw from numpy's global generator; no two devices may then draw the same numbers.
        # Python reseeds its own after a fork, and training seeds torch's for each round.
        numpy_global.seed()

    def _export(self, seed: int, bundle: Path) -> str:
        """Write the bundle in a child, so that the exporter's memory and threads never reach a device."""
        reason = bundle.with_name(bundle.name + ".reason")
        reason.unlink(missing_ok=True)

        def work() -> int:
            try:
                self._work.export(seed, bundle)
            except FedPruneShareError as error:
                reason.write_text(str(error), "utf-8")
            return 0

        _, status = os.waitpid(self._fork(work, bundle.with_name("export.log")), 0)
        if reason.exists():
            return reason.read_text("utf-8")
        code = os.waitstatus_to_exitcode(status)
        return "" if code == 0 else f"the exporter ended with code {code}"


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(null)
    os.close(file)


def _leave(code: int) -> NoReturn:
    """End a forked child without the parent's exit handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _threads() -> int:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def serve(prepare: Callable[[], Work]) -> int:
    """Prepare in this process, then fork on command until the end of input; the exit code.

    Raises `RuntimeError` if the preparation left a thread behind.
    """
    # Whatever a user's task prints goes to the log; the first standard output is for replies alone.
    replies = os.dup(1)
    os.set_inheritable(replies, False)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work = prepare()
    except FedPruneShareError as error:
        os.write(replies, json.dumps({"error": str(error)}).encode() + b"\n")
        return 2
    if _threads() != 1:
        raise RuntimeError(f"{_threads()} threads after the warm-up, expected 1: a fork would copy only one of them")
    gc.collect()
    gc.freeze()
    Zygote(work, replies).serve()
    return 0


def _devices_of(task: str, data_dir: str, split: SplitKind) -> Work:
    """Warm up for a task and how its data are dealt; real devices and the real exporter."""
    logs.configure("zygote", "")
    from edge_client.exporting import export_bundle
    from edge_client.running import main, warm_up
    from edge_client.settings import DeviceSettings
    from edge_client.tasks import load_task
    from fedpruneshare.settings import load_settings

    warm_up(task, data_dir, split)

    def device(name: str, settings: Path) -> int:
        logs.configure("device", name)
        try:
            return main(load_settings(settings, DeviceSettings), _opener(settings.with_suffix(".link.json")))
        except FedPruneShareError as error:
            structlog.get_logger().error("ended", reason=str(error))
            return 2 if isinstance(error, SettingsError) else 1

    def export(seed: int, bundle: Path) -> None:
        export_bundle(load_task(task, Path(data_dir)), bundle, seed)

    return Work(device, export)


def _opener(shaping_file: Path) -> OpenLink:
    """What makes a device's links: slowed down where the run has written how (`testbed.links.shaped_link`)."""
    shaping = Shaping.read(shaping_file)
    return open_link if shaping is None else shaped(open_link, shaping, time.monotonic)


if __name__ == "__main__":
    sys.exit(serve(lambda: _devices_of(sys.argv[1], sys.argv[2], msgspec.convert(sys.argv[3], SplitKind))))
