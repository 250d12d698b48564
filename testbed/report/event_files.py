"""TensorBoard event files of finished runs: one folder for each arm and seed, scalars by round."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from fedpruneshare.errors import SettingsError
from testbed.ledger.rounds import RunRound
from testbed.report.runs import ArmRun, compared, one_report, read_folder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def write_event_files(folders: Sequence[Path], out: Path) -> int:
    """Write OUT/ARM/seed-S for each arm and seed and return how many. Raises `SettingsError` where OUT holds anything.

    Steps are rounds; the time of a point is the wall clock when its round began, where that is known.
    """
    from tensorboardX import SummaryWriter

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--tensorboard {out} is not empty, expected a new or empty folder")
    found = [read_folder(folder) for folder in folders]
    report = one_report(found[0]) if len(found) == 1 else compared(found)
    count = 0
    for arm in report.arms:
        for seed in arm.seeds:
            with SummaryWriter(str(out / _as_path(arm.name) / f"seed-{seed}")) as writer:
                _write(writer, arm, seed)
            count += 1
    return count


def _as_path(name: str) -> Path:
    """A name as a path below a folder: nothing in it leads out again."""
    parts = [re.sub(r"[^\w.+-]", "_", part) for part in name.split("/")]
    return Path(*(part for part in parts if part.strip(".")))


def _write(writer: SummaryWriter, arm: ArmRun, seed: int) -> None:
    lines = arm.seed_rounds(seed)
    spent = list(accumulate(sum(sum(phases.values()) for phases in line.energy_j.values()) for line in lines))
    for line, joules in zip(lines, spent, strict=True):
        for tag, value in _scalars(line, arm.folder.summary.metric):
            writer.add_scalar(tag, value, line.round, walltime=line.started_at or None)
        # Joules so far have one meaning only where all are of one source.
        if len(line.energy_j) == 1:
            writer.add_scalar("joules/so_far", joules, line.round, walltime=line.started_at or None)


def _scalars(line: RunRound, metric: str) -> Iterator[tuple[str, float]]:
    known = {
        metric: line.accuracy,
        "loss": line.loss,
        "density": line.density,
        "bytes/up": line.up.total,
        "bytes/up_so_far": line.uplink_bytes_so_far,
        "bytes/down": line.down.total,
        "bytes/wire_up": line.wire_up,
        "bytes/wire_down": line.wire_down,
        "applied": line.phase == "APPLIED",
        "contributors": line.contributors,
    }
    yield from ((tag, float(value)) for tag, value in known.items() if value is not None)
    yield from ((f"bytes/shares/{name}", float(count)) for name, count in line.shares_by.items())
    yield from ((f"seconds/{step}", length_s) for step, length_s in line.seconds.items())
    yield from ((f"devices/{status or 'unknown'}", float(count)) for status, count in line.devices.items())
    for source, phases in line.energy_j.items():
        yield from ((f"joules/{source}/{phase}", spent) for phase, spent in phases.items())
