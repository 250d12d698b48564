"""`bench memory`: the memory of a device process, by net and width, and what sharing adds (docs/operations.md).

Every figure is of a new process that imports what `fedpruneshare device run` imports and trains in one thread.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from edge_client.calibrating.footprint import Footprint, Order, measure_footprint
from edge_client.calibrating.trial import groups_of
from edge_client.running import workplace_of
from edge_client.settings import DeviceTask
from fedpruneshare import __version__
from fedpruneshare.errors import RunError
from testbed.benchmarks.packages import ONE_THREAD, installed_version
from testbed.benchmarks.sharing_figures import Machine
from testbed.benchmarks.sharing_report import machine

PAGE_NAME: Final = "memory"
WIDTHS: Final = (1.0, 0.5)
#: (n, k) of the sharings whose extra memory is measured.
SHARINGS: Final = ((3, 2), (5, 3))
VALUES: Final = 1_000_000
_LIBRARIES: Final = ("torch", "numpy")
_DEVICES: Final = 6
_TIMEOUT_S: Final = 120

#: Net -> a built-in task, or the source of one with 500 examples.
_MADE_UP: Final = """
import numpy as np
from edge_client.tasks.{build} as build_model
from edge_client.datasets import Dataset

def load_train(device, devices, rng):
    inputs = rng.standard_normal((500, 3, 32, 32)).astype(np.float32)
    return Dataset(inputs, rng.integers(0, 10, len(inputs)))

def load_test():
    return load_train(0, 1, np.random.default_rng(0))
"""
TASKS: Final = {
    "LeNet-5": "fashion-mnist",
    "HAPT 1-D CNN": "hapt",
    "CNN4": _MADE_UP.format(build="benchmark_models import cnn4"),
    "ResNet-8, GroupNorm": _MADE_UP.format(build="cifar10 import ResNet8"),
}

#: MiB that may not be exceeded: LeNet-5's peak, and what sharing `VALUES` values adds.
LARGEST_LENET_MIB, LARGEST_SHARING_MIB = 270.0, 16.0


class NetMemory(msgspec.Struct, frozen=True):
    """One net at one width, in MiB."""

    net: str
    width: float
    memory: Footprint


class SharingMemory(msgspec.Struct, frozen=True):
    """What sharing `values` words among n aggregators adds, the words themselves included."""

    n: int
    k: int
    values: int
    extra_mib: float


class MemoryReport(msgspec.Struct, frozen=True):
    """All figures, and where and when they were measured."""

    version: str
    date: str
    machine: Machine
    versions: dict[str, str]
    nets: list[NetMemory]
    sharings: list[SharingMemory]


def measure_here(note: Callable[[str], None]) -> MemoryReport:
    """All nets at all widths, and all sharings. `note` hears what is next."""
    nets = []
    for net in TASKS:
        note(net)
        nets += measure_net(net)
    note(f"sharing {VALUES:,} values")
    versions = {name: one for name in _LIBRARIES if (one := installed_version(name)) is not None}
    return MemoryReport(
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions={"python": platform.python_version()} | versions,
        nets=nets,
        sharings=[SharingMemory(n, k, VALUES, sharing_mib(n, k, VALUES)) for n, k in SHARINGS],
    )


def measure_net(net: str, widths: tuple[float, ...] = WIDTHS) -> list[NetMemory]:
    """One of `TASKS` at each width. Raises `TaskError`."""
    with tempfile.TemporaryDirectory(prefix="fedpruneshare-bench-") as folder:
        name = TASKS[net]
        if "\n" in name:
            path = Path(folder) / "made_up.py"
            path.write_text(name)
            name = str(path)
        task = DeviceTask(name, 0, _DEVICES, data_dir=folder)  # no data there: the fixtures
        groups = groups_of(workplace_of(task, 1))
        return [NetMemory(net, width, measure_footprint(Order(task, groups, width))) for width in widths]


def sharing_mib(n: int, k: int, values: int) -> float:
    """MiB that sharing so many values added to a new process. Raises `RunError`."""
    command = [sys.executable, "-m", "testbed.benchmarks.sharing_memory", str(n), str(k), str(values)]
    ran = subprocess.run(
        command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if ran.returncode:
        raise RunError(f"measuring memory ended with {ran.returncode}: {ran.stderr[-400:]}")
    return float(ran.stdout)


# --------------------------------------------------------------------------- judge and write


def missed(report: MemoryReport) -> list[str]:
    """A line for every demand that the figures do not meet."""
    lines = [
        f"{one.net} at width {one.width:g} takes {one.memory.peak_mib:.1f} MiB, allowed {LARGEST_LENET_MIB:.0f}"
        for one in report.nets
        if one.net == "LeNet-5" and one.memory.peak_mib > LARGEST_LENET_MIB
    ]
    return lines + [
        f"sharing {one.values:,} values ({one.k} of {one.n}) adds {one.extra_mib:.1f} MiB, allowed"
        f" {LARGEST_SHARING_MIB:.0f}"
        for one in report.sharings
        if one.extra_mib > LARGEST_SHARING_MIB
    ]


def table(report: MemoryReport) -> str:
    """The figures as Markdown."""
    lines = [
        "| net | width | process with data and model | training adds | peak |",
        "|---|---|---|---|---|",
    ]
    for one in report.nets:
        found = one.memory
        cells = (f"{found.base_mib:.0f} MiB", f"{found.step_mib:.1f} MiB", f"{found.peak_mib:.0f} MiB")
        lines.append(f"| {one.net} | {one.width:g} | {' | '.join(cells)} |")
    for share in report.sharings:
        lines.append(f"| sharing {share.values:,} values, {share.k} of {share.n} | | | {share.extra_mib:.1f} MiB | |")
    return "\n".join(lines)


def page(report: MemoryReport) -> str:
    """What stands in docs/operations.md."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    where = f"{report.machine.cpu}, {report.machine.architecture}"
    return f"FedPruneShare {report.version} on {report.date}. {where}; {versions}.\n\n{table(report)}\n"
