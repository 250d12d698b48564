"""The tables of a report: devices by group, wire bytes, what was found out, events, rounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fedpruneshare.metrics import Metric
from testbed.ledger.rounds import RunRound
from testbed.report.csv_files import DEVICES_CSV, ROUNDS_CSV
from testbed.report.decisions import CONSTRAINTS
from testbed.report.devices import DeviceTotal, Traffic, by_kind, dropped
from testbed.report.markup import folded, items, percent, seconds, section, size, small, table
from testbed.report.markup import joules as joules_of
from testbed.report.runs import ArmRun, Report

_NONE: Final = "–"

# --------------------------------------------------------------------------- devices


def groups(report: Report) -> str:
    """What devices alike did: how their rounds ended, the rungs they took and why, what it cost each."""
    head = [
        "arm", "group", "board", "link", "devices", "asked", "uploaded", "declined", "dropped", "rungs taken",
        "bound by", "receive", "train", "send", "up", "down", "joules",
    ]  # fmt: skip
    rows = []
    for arm in report.arms:
        kinds = by_kind(arm.totals)
        rows += [_group_row(arm, kind, totals) for kind, totals in kinds.items()]
    if not rows:
        return ""
    kept = [index for index in range(len(head)) if any(row[index] != _NONE for row in rows)]
    kept = kept[1:] if len(report.arms) == 1 else kept
    note = (
        "Times are medians over the rounds of all devices of the group; bytes (MQTT payload) and joules of work are "
        "of one device in one seed's run, mean over the group. Dropped: neither uploaded nor declined."
    )
    body = table(_only(kept, head), [_only(kept, row) for row in rows], file=DEVICES_CSV)
    return section("groups", "Devices by group, board and link", body, small(note))


def _only(kept: Sequence[int], row: Sequence[str]) -> list[str]:
    return [row[index] for index in kept]


def _group_row(arm: ArmRun, kind: tuple[int, str, str], totals: Sequence[DeviceTotal]) -> list[str]:
    statuses = sum((one.statuses for one in totals), Counter[str]())
    asked, runs = sum(one.asked for one in totals), len(totals) * len(arm.seeds)
    rungs = sum((one.rungs for one in totals), Counter[int]())
    bound = sum((one.constraints for one in totals), Counter[str]())
    return [
        arm.name,
        str(kind[0]),
        kind[1] or _NONE,
        kind[2] or _NONE,
        str(len(totals)),
        str(asked),
        _part(statuses["uploaded"], asked),
        _part(statuses["declined"], asked),
        _part(dropped(statuses), asked),
        ", ".join(f"{_part(count, rungs.total())} rung {rung}" for rung, count in sorted(rungs.items())) or _NONE,
        ", ".join(f"{_part(count, bound.total())} {_constraint(name)}" for name, count in bound.most_common()) or _NONE,
        *(_median(totals, phase) for phase in ("receive", "train", "send")),
        size(sum(one.up.payload for one in totals) / runs),
        size(sum(one.down.payload for one in totals) / runs),
        _joules(totals, runs),
    ]


def _constraint(name: str) -> str:
    return CONSTRAINTS[name][0] if name in CONSTRAINTS else name


def _part(count: int, whole: int) -> str:
    return f"{100 * count / whole:.0f} %" if whole else _NONE


def _median(totals: Sequence[DeviceTotal], phase: str) -> str:
    found = [length for one in totals for length in one.seconds.get(phase, ())]
    return seconds(statistics.median(found)) if found else _NONE


def _joules(totals: Sequence[DeviceTotal], runs: int) -> str:
    sums = Counter[str]()
    for one in totals:
        for source, joules in one.joules.items():
            sums[source] += joules  # type: ignore[assignment]
    return " and ".join(f"{joules_of(joules / runs)} ({source})" for source, joules in sums.items()) or _NONE


def wire(report: Report) -> str:
    """Payload against interface bytes, device by device, and what devices on metered links paid for."""
    rows = [
        [arm.name, one.device, one.link or _NONE, *_traffic(one.up), *_traffic(one.down)]
        for arm in report.arms
        for one in arm.totals
        if one.up.wire is not None or one.down.wire is not None
    ]
    if not rows:
        return ""
    head = [
        "arm", "device", "link", "payload up", "interface up", "overhead", "payload down", "interface down", "overhead",
    ]  # fmt: skip
    note = (
        "Payload: MQTT payload as the device counted it. Interface: every byte its network interface carried, with the "
        "headers of MQTT, TCP and IP, acknowledgements and whatever was sent again. Totals over rounds and seeds."
    )
    made = table(*_without_one_arm(report, head, rows), file=DEVICES_CSV)
    body = folded(f"Payload and interface bytes of {len(rows)} devices", made, len(rows) <= 60)
    return section("wire", "Wire truth", _wire_of_arms(report), body, small(note))


def _wire_of_arms(report: Report) -> str:
    rows = []
    for arm in report.arms:
        totals = [one for one in arm.totals if one.up.wire is not None and one.down.wire is not None]
        if totals:
            up, down = _sum([one.up for one in totals]), _sum([one.down for one in totals])
            by_device = [_range(one.up for one in totals), _range(one.down for one in totals)]
            rows.append([arm.name, *_traffic(up), by_device[0], *_traffic(down), by_device[1]])
    head = [
        "arm", "payload up", "interface up", "overhead", "by device", "payload down", "interface down", "overhead",
        "by device",
    ]  # fmt: skip
    return table(*_without_one_arm(report, head, rows))


def _without_one_arm(
    report: Report, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """A table whose first column is the arm, without it where there is only one: on a phone it takes a third."""
    return (head, rows) if len(report.arms) > 1 else (head[1:], [row[1:] for row in rows])


def _sum(parts: Sequence[Traffic]) -> Traffic:
    return Traffic(sum(one.payload for one in parts), sum(one.wire or 0 for one in parts))


def _range(traffic: Iterable[Traffic]) -> str:
    values = [over for one in traffic if (over := one.overhead_percent) is not None]
    return f"{min(values):.1f} to {max(values):.1f} %" if values else _NONE


def _traffic(traffic: Traffic) -> list[str]:
    over = traffic.overhead_percent
    wire = "not counted" if traffic.wire is None else size(traffic.wire)
    return [size(traffic.payload), wire, _NONE if over is None else f"{over:.1f} %"]


# --------------------------------------------------------------------------- rounds and what happened in them


def found_out(report: Report) -> str:
    """Devices and aggregators that were caught sending what fits nothing."""
    lines = [
        f"{_where(report, arm, line)}: "
        + "; ".join(
            f"{what} {', '.join(names)}"
            for what, names in (
                ("left out", line.left_out_devices),
                ("answered otherwise than the rest:", line.wrong_aggregators),
            )
            if names
        )
        for arm in report.arms
        for line in arm.rounds
        if line.left_out_devices or line.wrong_aggregators
    ]
    return section("found-out", "Found out", items(lines)) if lines else ""


def _where(report: Report, arm: ArmRun, line: RunRound) -> str:
    parts = [arm.name] if len(report.arms) > 1 else []
    parts += [f"seed {line.seed}"] if len(arm.seeds) > 1 else []
    text = ", ".join([*parts, f"round {line.round}"])
    return text[0].upper() + text[1:] if not parts else text


def events(report: Report) -> str:
    """What the testbed did to the fleet, and rounds that failed, in their order."""
    rows = []
    for arm in report.arms:
        for line in arm.rounds:
            at = [arm.name, str(line.seed), str(line.round)]
            rows += [[*at, event] for event in line.events]
            rows += [[*at, f"FAILED: {line.reason}"]] if line.phase == "FAILED" else []
    if not rows:
        return ""
    body = table(*_without_one_arm(report, ["arm", "seed", "round", "event"], rows), file=ROUNDS_CSV)
    return section("events", "Events", folded(f"{len(rows)} events and failed rounds", body, len(rows) <= 40))


def rounds(report: Report) -> str:
    """Every round of every arm, folded where there are many."""
    parts = []
    for arm in report.arms:
        lines = [line for line in arm.rounds if line.phase != "OUTSIDE"]
        body = _rounds_of(arm, lines, report.metric)
        parts.append(folded(f"{arm.name}: {len(lines)} rounds", body) if len(report.arms) > 1 else body)
    return section("rounds", "Rounds", *parts)


def _rounds_of(arm: ArmRun, lines: Sequence[RunRound], metric: Metric) -> str:
    several = len(arm.seeds) > 1
    head = ["round", "outcome", "devices", "by rung", "density", metric.name, "summed by", "checked", "uplink", "time"]
    n = arm.figures.sharing.n if arm.figures.sharing else 0
    body = table(
        [*(["seed"] if several else []), *head], [_round_row(one, several, n, metric) for one in lines], file=ROUNDS_CSV
    )
    outside = [line for line in arm.rounds if line.phase == "OUTSIDE"]
    sent, received = sum(line.up.total for line in outside), sum(line.down.total for line in outside)
    note = (
        f"Outside any round (such as a device's hello) the devices sent {size(sent)} and received {size(received)}; "
        "the totals include that."
    )
    return body + small(note)


def _round_row(line: RunRound, several: bool, n: int, metric: Metric) -> list[str]:
    endings = Counter(line.devices)
    missing = ", ".join(f"{count} {name or 'unknown'}" for name, count in endings.items() if name != "uploaded")
    row = [
        str(line.round),
        f"{line.phase}: {line.reason}" if line.reason else line.phase,
        f"{line.contributors} summed" + (f" ({missing})" if missing else ""),
        " + ".join(str(count) for count in line.rungs),
        percent(line.density),
        metric.show(line.accuracy),
        f"all {n}" if n and len(line.aggregators) == n else ", ".join(line.aggregators),
        (line.verified_by.replace("+", ", ") or "yes") if line.verified else "no",
        size(line.up.total),
        f"{line.seconds['total']:.1f} s" if "total" in line.seconds else "",
    ]
    return [str(line.seed), *row] if several else row
