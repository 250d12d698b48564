"""The processes of a fault run: `python -m testbed.faults.roles KIND DEVICES FOLDER [TASK DATA_DIR SPLIT]`.

KIND `services`: aggregators and coordinator; `devices`: real devices; both are forked from one warm parent
(`testbed.zygote`), so that a killed one is back in a few hundredths of a second. `host`: all synthetic devices, in one
process. Each runs the product's own entry point. What is added to it, and only here: the recorder
(`testbed.faults.recording`), oracle words, and an observer of the crash points, which sends its own process a
signal at the point that the file `FOLDER/kill/NAME` names ("POINT NTH SIGNAL").
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from edge_client.settings import SplitKind
from fedpruneshare import cli, crash_points, logs
from fedpruneshare.cli import load_command
from testbed.faults import oracle
from testbed.faults.history import History
from testbed.faults.recording import Recorder
from testbed.zygote import Work, serve


class Executioner:
    """Ends or stops this process at a crash point, when the harness has asked for it."""

    def __init__(self, folder: Path, ident: str) -> None:
        self._order = folder / "kill" / ident
        self._history = History(folder / "history.jsonl", time.monotonic)
        self._ident = ident

    def __call__(self, point: str) -> None:
        """The observer of `fedpruneshare.crash_points`."""
        try:
            wanted, nth, how = self._order.read_text().split()
        except (OSError, ValueError):
            return
        if wanted != point:
            return
        if int(nth) > 1:
            write_order(self._order, point, int(nth) - 1, signal.Signals(int(how)))
            return
        self._order.unlink()
        self._history.note("fault", what=f"{signal.Signals(int(how)).name} of {self._ident} at {point}")
        os.kill(os.getpid(), int(how))


def write_order(order: Path, point: str, nth: int, how: signal.Signals) -> None:
    """Ask for a signal when a process reaches a point for the nth time from now on."""
    partial = order.with_suffix(".part")
    partial.write_text(f"{point} {nth} {int(how)}")
    partial.replace(order)


def _recorder(folder: Path, ident: str) -> Recorder:
    recorder = Recorder(History(folder / "history.jsonl", time.monotonic), ident)
    recorder.listen()
    crash_points.observe(Executioner(folder, ident))
    return recorder


def _services(folder: Path) -> Work:
    # What needs no thread of its own; a coordinator imports the rest, onnxruntime that is, after the fork.
    for module in ("aggregator.cli", "coordinator.planning", "coordinator.averaging", "coordinator.store", "onnx"):
        importlib.import_module(module)
    logs.configure("zygote", "")

    def service(name: str, settings: Path) -> int:
        role = "coordinator" if name == "coordinator" else "aggregator"
        load_command(role)
        recorder = _recorder(folder, name)
        if role == "aggregator":
            recorder.watch_shares()
        else:
            recorder.watch_freezes()
            recorder.watch_rounds()
        return cli.run([role, "run", "--config", str(settings)])

    return Work(service, lambda _seed, _bundle: None)


def _devices(folder: Path, devices: int) -> Work:
    from testbed.zygote import _devices_of

    task, data_dir, split = sys.argv[4:7]
    work = _devices_of(task, data_dir, msgspec.convert(split, SplitKind))

    def device(name: str, settings: Path) -> int:
        recorder = _recorder(folder, name)
        recorder.watch_uploads()
        recorder.watch_models(are_kept=True)
        oracle.in_real_device(int(name.removeprefix("device-")), devices)
        return work.device(name, settings)

    return Work(device, work.export)


def _host(folder: Path, devices: int) -> int:
    from testbed.synthetic import host

    recorder = Recorder(History(folder / "history.jsonl", time.monotonic))
    recorder.listen()
    recorder.watch_uploads()
    recorder.watch_models(are_kept=False)
    oracle.in_synthetic_devices(devices)
    return host.main()


def main(kind: str, devices: int, folder: Path) -> int:
    """Serve until the end of input; the exit code."""
    if kind == "host":
        return _host(folder, devices)
    return serve(lambda: _services(folder) if kind == "services" else _devices(folder, devices))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
