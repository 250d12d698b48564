"""The figures as CSV: report.csv (one row for each arm and seed), rounds.csv and devices.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from testbed.ledger.rounds import RunRound
from testbed.report.devices import DeviceTotal, dropped
from testbed.report.measures import source_of
from testbed.report.runs import ArmRun, Report, flat
from testbed.summary import Figures

REPORT_CSV, ROUNDS_CSV, DEVICES_CSV = "report.csv", "rounds.csv", "devices.csv"
#: A spreadsheet takes a text that begins so for a formula.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
Row = Mapping[str, Any]


def write_all(report: Report, out: Path) -> None:
    """Write the three files; one without any row is not written, and an old one of it is deleted."""
    for name, rows in (
        (REPORT_CSV, list(seed_rows(report))),
        (ROUNDS_CSV, list(round_rows(report))),
        (DEVICES_CSV, list(device_rows(report))),
    ):
        if rows:
            write_csv(out / name, rows)
        else:
            (out / name).unlink(missing_ok=True)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows under all the columns that any of them has, in the order in which they first appear."""
    every = list(rows)
    columns = list(dict.fromkeys(column for row in every for column in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(column) for column in columns])
        writer.writerows([_cell(row.get(column)) for column in columns] for row in every)


def _cell(value: Any) -> Any:
    """Numbers as they are; a text never as a formula; nothing for None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, (int, float)):
        return value
    text = "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _where(arm: ArmRun, seed: int) -> dict[str, Any]:
    return {"arm": arm.name, "seed": seed}


def seed_rows(report: Report) -> Iterator[Row]:
    """All figures of each arm's seed, then the conditions and settings it ran under."""
    for arm in report.arms:
        summary, scenario = arm.folder.summary, arm.folder.scenario
        shared = arm.figures.sharing
        about = {
            "scenario": summary.scenario,
            "task": summary.task,
            "data": scenario.task.data,
            "metric": summary.metric,
            "devices": summary.devices,
            "cohort": scenario.rounds.cohort,
            "rounds": scenario.rounds.count,
            "emulated": summary.emulated,
            "shares": shared.n if shared else None,
            "threshold": shared.k if shared else None,
            "privacy_threshold": shared.t if shared else None,
            "reveal": shared.reveal if shared else None,
        }
        ran_under = {f"conditions.{key}": value for key, value in flat(arm.folder.conditions).items()}
        for seed, figures in zip(arm.seeds, arm.figures.by_seed, strict=True):
            yield _where(arm, seed) | about | _figures(figures) | ran_under


def _figures(figures: Figures) -> dict[str, Any]:
    wire = figures.wire_bytes
    found = {
        name: getattr(figures, name)
        for name in figures.__struct_fields__
        if name not in ("sharing", "wire_bytes", "energy_j", "final_accuracy_sd")
    }
    found |= {"wire_up": wire.up, "wire_down": wire.down, "wire_source": wire.source}
    parts = (figures.energy_j or {}).items()
    found["energy_source"] = "; ".join(dict.fromkeys(part.source for _, part in parts)) or None
    for name, part in parts:
        source = source_of(part.source)
        found[f"joules.{source}.{name.removesuffix(f' ({source})')}"] = part.value
    return found


def round_rows(report: Report) -> Iterator[Row]:
    """One row for each arm, seed and round; round 0 is what was outside of any."""
    for arm in report.arms:
        for line in arm.rounds:
            yield _where(arm, line.seed) | _round(line)


_ROUND_FIELDS: Final = (
    "round", "phase", "reason", "accuracy", "loss", "density", "contributors", "aggregators", "verified", "rungs",
    "segments_open", "uploads", "uploaded_bytes", "uplink_bytes_so_far", "wire_up", "wire_down", "model_bytes",
    "started_at", "events", "left_out_devices", "wrong_aggregators", "verified_by",
)  # fmt: skip


def _round(line: RunRound) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(line, name) for name in _ROUND_FIELDS}
    row |= {f"up.{cause}": getattr(line.up, cause) for cause in ("shares", "resent", "control")}
    row |= {f"up.shares.{aggregator}": count for aggregator, count in line.shares_by.items()}
    row |= {f"down.{cause}": getattr(line.down, cause) for cause in ("model", "plan", "receipts", "other")}
    row |= {f"seconds.{step}": length_s for step, length_s in line.seconds.items()}
    row |= {f"devices.{status or 'unknown'}": count for status, count in line.devices.items()}
    for source, phases in line.energy_j.items():
        row |= {f"joules.{source}.{phase}": spent for phase, spent in phases.items()}
    return row


def device_rows(report: Report) -> Iterator[Row]:
    """One row for each arm and device, over its rounds and seeds."""
    for arm in report.arms:
        for one in arm.totals:
            yield {"arm": arm.name} | _device(one)


def _device(one: DeviceTotal) -> dict[str, Any]:
    row: dict[str, Any] = {
        "device": one.device,
        "group": one.group,
        "board": one.board,
        "link": one.link,
        "asked": one.asked,
        "uploaded": one.statuses["uploaded"],
        "declined": one.statuses["declined"],
        "dropped": dropped(one.statuses),
        "payload_up": one.up.payload,
        "wire_up": one.up.wire,
        "overhead_up_percent": one.up.overhead_percent,
        "payload_down": one.down.payload,
        "wire_down": one.down.wire,
        "overhead_down_percent": one.down.overhead_percent,
    }
    row |= {f"seconds.{phase}": round(sum(lengths), 4) for phase, lengths in one.seconds.items()}
    row |= {f"joules.{source}": spent for source, spent in one.joules.items()}
    row |= {f"joules.{source}.idle": spent for source, spent in one.idle_joules.items()}
    row |= {f"rung.{rung}": count for rung, count in sorted(one.rungs.items())}
    return row | {f"bound_by.{name}": count for name, count in sorted(one.constraints.items())}
