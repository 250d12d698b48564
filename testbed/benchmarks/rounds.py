"""`bench rounds`: how long the rounds of a whole fleet take, and what they cost a device."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fedpruneshare import __version__
from fedpruneshare.storage import write_atomically
from testbed.benchmarks.crowd import Crowd
from testbed.ledger.rounds import RunRound, read_rounds
from testbed.run import Finished
from testbed.summary import ARM


class RoundFigures(msgspec.Struct, frozen=True):
    """One scenario. Seconds are of applied rounds; `phase_s` holds the median of each phase; bytes are MQTT payload.

    `final_accuracy` is of `metric`.
    """

    devices: int
    data: str
    rounds_applied: int
    rounds_failed: int
    round_s_median: float
    round_s_p95: float
    phase_s: dict[str, float]
    uplink_bytes_per_device_round: float
    uplink_bytes_last_round_per_device: float
    downlink_bytes_per_device_round: float
    metric: str
    final_accuracy: float
    density_final: float
    wall_s: float
    succeeded: bool


def measure_rounds(finished: Finished) -> RoundFigures:
    """The figures of a finished run."""
    rounds = [line for line in read_rounds(finished.folder / "rounds.jsonl") if line.phase != "OUTSIDE"]
    arm = finished.summary.arms[ARM]
    median_s, p95_s = spread([line.seconds["total"] for line in _applied(rounds)])
    reached = sum(sum(line.devices.values()) for line in rounds)
    return RoundFigures(
        devices=finished.summary.devices,
        data=finished.data,
        rounds_applied=arm.rounds_applied,
        rounds_failed=arm.rounds_failed,
        round_s_median=median_s,
        round_s_p95=p95_s,
        phase_s=_phases(_applied(rounds)),
        uplink_bytes_per_device_round=arm.uplink_bytes_per_device_round,
        uplink_bytes_last_round_per_device=arm.uplink_bytes_last_round_per_device,
        downlink_bytes_per_device_round=arm.downlink_bytes / reached if reached else 0.0,
        metric=finished.summary.metric,
        final_accuracy=arm.final_accuracy,
        density_final=arm.density_final,
        wall_s=arm.wall_s,
        succeeded=finished.succeeded,
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile (between neighbours, linearly); zeros where there is no value."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    return statistics.median(values), statistics.quantiles(values, n=20, method="inclusive")[-1]


def write_measurements(path: Path, measured: Mapping[str, RoundFigures]) -> None:
    """Write the figures of scenarios with the machine and version they are of."""
    _write(path, "rounds", {"scenarios": measured})


def write_crowds(path: Path, measured: Sequence[Crowd]) -> None:
    """Write the figures of synthetic fleets with the machine and version they are of."""
    _write(path, "crowds", {"crowds": measured})


def _write(path: Path, benchmark: str, figures: Mapping[str, Any]) -> None:
    machine = {"cpus": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()}
    body = {"schema": 1, "benchmark": benchmark, "version": __version__, "machine": machine, **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n")


def _applied(rounds: Sequence[RunRound]) -> list[RunRound]:
    return [line for line in rounds if line.phase == "APPLIED"]


def _phases(rounds: Sequence[RunRound]) -> dict[str, float]:
    names = dict.fromkeys(name for line in rounds for name in line.seconds if name != "total")
    return {name: spread([line.seconds[name] for line in rounds if name in line.seconds])[0] for name in names}
