"""`bench width`: what a narrower model saves in training and in inference, one thread, all widths in turn."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.benchmark_models import BATCH_SIZE, NETS, STEPS, Prepared, prepare
from fedpruneshare import __version__
from testbed.benchmarks.packages import installed_version
from testbed.benchmarks.sharing_figures import Machine
from testbed.benchmarks.sharing_report import machine
from testbed.benchmarks.timing import Clock, Work, rate

WIDTHS: Final = (0.25, 0.5, 0.75, 1.0)
PAGE_NAME: Final = "width"
_SEED: Final = 5
_TURNS, _QUICK_TURNS = 15, 3
_LIBRARIES: Final = ("torch", "onnxruntime", "numpy", "torch-pruning")

#: (net, width) -> how many times as quick as the full model training and inference must be, at batches of 32.
DEMANDS: Final = {("CNN4", 0.5): (1.8, 2.0)}


class Timing(msgspec.Struct, frozen=True):
    """Median milliseconds of CPU time, and the median over the turns of the full model's time by this one's."""

    ms: float
    speedup: float


class WidthFigures(msgspec.Struct, frozen=True):
    """One net at one width: a training step and a run of onnxruntime at batch 32, and a run for a single input."""

    net: str
    width: float
    parameters: int
    train: Timing
    infer: Timing
    infer_one: Timing


class WidthReport(msgspec.Struct, frozen=True):
    """All figures, and where and when they were measured."""

    version: str
    date: str
    turns: int
    machine: Machine
    versions: dict[str, str]
    figures: list[WidthFigures]


@dataclass(frozen=True)
class _Contestant:
    prepared: Prepared
    works: tuple[Work, Work, Work]


# --------------------------------------------------------------------------- measure


def measure_here(is_quick: bool, note: Callable[[str], None]) -> WidthReport:
    """All nets on this machine's CPU time. `note` hears which net is next."""
    turns = _QUICK_TURNS if is_quick else _TURNS
    figures = []
    for name in NETS:
        note(name)
        figures += measure_net(name, prepare(name, WIDTHS, _SEED), turns, time.process_time)
    versions = {name: one for name in _LIBRARIES if (one := installed_version(name)) is not None}
    return WidthReport(
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        turns=turns,
        machine=machine(),
        versions={"python": platform.python_version()} | versions,
        figures=figures,
    )


def measure_net(name: str, prepared: list[Prepared], turns: int, clock: Clock) -> list[WidthFigures]:
    """Time all widths of a net in turn, the full one last; every turn gives each of them one rate."""
    contestants = [_Contestant(one, _works(one)) for one in prepared]
    for one in contestants:
        for work in one.works:
            work.run()
    seconds = np.array(
        [[[1 / rate(work, clock) for work in one.works] for one in contestants] for _ in range(turns)]
    )  # [turns, widths, works]
    speedups = seconds[:, -1:, :] / seconds  # [turns, widths, works]
    return [
        WidthFigures(
            name,
            one.prepared.width,
            one.prepared.parameters,
            *(_timing(seconds[:, place, work], speedups[:, place, work]) for work in range(3)),
        )
        for place, one in enumerate(contestants)
    ]


def _timing(seconds: NDArray[np.float64], speedups: NDArray[np.float64]) -> Timing:
    return Timing(1e3 * float(np.median(seconds)), float(np.median(speedups)))


def _works(one: Prepared) -> tuple[Work, Work, Work]:
    session = _session(one.onnx)
    (given,) = session.get_inputs()
    rng = np.random.default_rng(_SEED)
    batches = [rng.standard_normal((count, *given.shape[1:])).astype(np.float32) for count in (BATCH_SIZE, 1)]
    return (
        Work(one.train, STEPS),
        Work(lambda: session.run(None, {given.name: batches[0]}), 1),
        Work(lambda: session.run(None, {given.name: batches[1]}), 1),
    )


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# --------------------------------------------------------------------------- judge and write


def missed(report: WidthReport) -> list[str]:
    """A line for every demand that the figures do not meet."""
    lines = []
    for one in report.figures:
        for what, timing, least in zip(("trains", "infers"), (one.train, one.infer), _demands(one), strict=True):
            if timing.speedup < least:
                lines.append(f"{one.net} at width {one.width} {what} {timing.speedup:.2f} x as fast, demanded {least}")
    return lines


def _demands(one: WidthFigures) -> tuple[float, float]:
    return DEMANDS.get((one.net, one.width), (0.0, 0.0))


def table(report: WidthReport) -> str:
    """The figures as a Markdown table, the full model of each net first."""
    lines = [
        "| net | width | parameters | training step, batch 32 | onnxruntime, batch 32 | onnxruntime, one input |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one.net for one in report.figures):
        for one in reversed([figures for figures in report.figures if figures.net == name]):
            timings = [_cell(timing, one.width) for timing in (one.train, one.infer, one.infer_one)]
            lines.append(f"| {name} | {one.width:g} | {one.parameters:,} | {' | '.join(timings)} |")
    return "\n".join(lines)


def _cell(timing: Timing, width: float) -> str:
    return f"{timing.ms:.3g} ms" + (f", {timing.speedup:.2f} ×" if width < 1 else "")


def page(report: WidthReport) -> str:
    """What stands in docs/benchmarks.md."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    where = f"{report.machine.cpu}, {report.machine.cores} cores, {report.machine.architecture}"
    heading = (
        f"FedPruneShare {report.version}, {report.turns} turns on {report.date}. {where}; {versions}. One thread; CPU"
        " time of the process, median of the turns; × is how many times as fast as width 1."
    )
    return f"{heading}\n\n{table(report)}\n"
