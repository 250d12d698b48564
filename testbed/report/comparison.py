"""Arms beside each other: the headline table, the ratio of each to each other one, and every figure of the summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fedpruneshare.metrics import Metric
from testbed.report import measures
from testbed.report.bars import PHASE_COLOURS
from testbed.report.markup import (
    Cell,
    exact_bytes,
    folded,
    percent,
    ratio,
    section,
    signed,
    size,
    small,
    table,
    tiles,
    with_spread,
)
from testbed.report.markup import joules as joules_of
from testbed.report.measures import COSTS, Measure, have_same_source, joules_lines, ratio_of
from testbed.report.runs import ArmRun, Report
from testbed.summary import Figures, Sharing

_IDLE_APART: Final = "idling is told apart, for it lasts as long as this machine takes"


def comparison(report: Report) -> str:
    """The headline table of several arms, and below it the ratio of each arm to each other one."""
    if len(report.arms) < 2:
        return ""
    shown = [one for one in COSTS if any(_has(one, arm) for arm in report.arms)]
    base = report.baseline
    head = ["arm", f"final {report.metric.name}", *(one.title for one in shown)]
    rows = [_comparison_row(report, arm, shown) for arm in report.arms]
    note = f"Below each figure: its difference from, or ratio to, that of {base.name}."
    counts = {len(arm.seeds) for arm in report.arms}
    if max(counts) > 1:
        note += f" Mean ± standard deviation over the seeds ({', '.join(map(str, sorted(counts)))})."
    note += (
        f" Final {report.metric.name}: mean of the last five evaluations. Uplink and downlink: MQTT payload of all "
        "devices, everything counted: all shares, control, re-sends; one seed's run. Time is that of this machine."
    )
    named = dict.fromkeys(measures.source_text(source) for arm in report.arms for source in measures.sources(arm))
    note += f" Joules: {' and '.join(named)}; {_IDLE_APART}." if named else ""
    if any(map(measures.lacks_joules, report.arms)):
        note += " Some rounds of some devices have no joules (the figures below say how many): the sums are too low."
    return section(
        "comparison", "The arms compared", table(head, rows), small(note), folded("Every ratio", ratios(report))
    )


def _has(measure: Measure, arm: ArmRun) -> bool:
    return bool(measures.sources(arm)) if measure is measures.JOULES else measure.of(arm) is not None


def _comparison_row(report: Report, arm: ArmRun, shown: Sequence[Measure]) -> list[Cell]:
    base, metric = report.baseline, report.metric
    row: list[Cell] = [arm.name, (quality_text(arm, metric), "" if arm is base else difference(arm, base, metric))]
    for one in shown:
        found = ratio_of(one, arm, base)
        first, *rest = joules_lines(arm) if one is measures.JOULES else (one.text(arm),)
        row.append((first, "" if arm is base else ratio(*found) if found else "–", *rest))
    return row


def quality_text(arm: ArmRun, metric: Metric) -> str:
    """The final metric, mean ± standard deviation over the seeds."""
    found = arm.figures
    text = metric.show(found.final_accuracy, 2)
    if len(found.by_seed) == 1:
        return text
    return f"{text.removesuffix(' %')} ± {metric.show(found.final_accuracy_sd, 2)}"


def difference(arm: ArmRun, base: ArmRun, metric: Metric) -> str:
    """How much more than another arm's the final metric is: in points of a share."""
    more = arm.figures.final_accuracy - base.figures.final_accuracy
    return f"{signed(100 * more)} points" if metric.is_share else f"{more:+.4g}".replace("-", "−")


def ratios(report: Report) -> str:
    """For each measure a square: the arm of the row in terms of the arm of the column."""
    names = [arm.name for arm in report.arms]
    squares = [_square(f"final {report.metric.name}, difference", names, _differences(report))]
    for one in COSTS:
        if any(_has(one, arm) for arm in report.arms):
            cells = [[_ratio_text(one, row, column) for column in report.arms] for row in report.arms]
            squares.append(_square(one.title, names, cells))
    hint = small("A cell says what the arm of its row has, in terms of the arm of its column.")
    if any(not have_same_source(one, report.baseline) for one in report.arms if measures.sources(one)):
        hint += small("Joules of different sources, modelled or measured, are never divided by each other.")
    return hint + f'<div class="squares">{"".join(squares)}</div>'


def _differences(report: Report) -> list[list[str]]:
    return [
        ["" if row is column else difference(row, column, report.metric) for column in report.arms]
        for row in report.arms
    ]


def _ratio_text(measure: Measure, row: ArmRun, column: ArmRun) -> str:
    found = ratio_of(measure, row, column)
    return "" if row is column else ratio(*found) if found else "–"


def _square(title: str, names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [[name, *row] for name, row in zip(names, cells, strict=True)]
    return f"<div>{table([title, *names], rows)}</div>"


# --------------------------------------------------------------------------- all figures


def _sharing(shared: Sharing) -> str:
    kept = f"any {shared.t} together learn" if shared.t > 1 else "any 1 learns"
    return f"any {shared.k} of {shared.n} open, {kept} nothing"


_SEEN: Final = {"sum": "sums only", "each": "every single update"}
_SCORES: Final[tuple[tuple[str, Callable[[Figures], float]], ...]] = (
    ("final {} (mean of the last five evaluations)", lambda f: f.final_accuracy),
    ("last {}", lambda f: f.last_accuracy),
    ("best {}", lambda f: f.best_accuracy),
)
_FIGURES: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("rounds applied / failed", lambda f: f"{f.rounds_applied} / {f.rounds_failed}"),
    ("every applied sum checked", lambda f: ("yes" if f.verified else "no") if f.sharing else "–"),
    ("final density", lambda f: percent(f.density_final, 2)),
    ("sharing", lambda f: _sharing(f.sharing) if f.sharing else "none"),
    ("what the coordinator sees", lambda f: _SEEN[f.sharing.reveal] if f.sharing else "every single update"),
    ("uplink, all devices", lambda f: exact_bytes(f.uplink_bytes)),
    ("of it shares or plain updates, sent first", lambda f: exact_bytes(f.uplink_share_bytes)),
    ("downlink, all devices", lambda f: exact_bytes(f.downlink_bytes)),
    ("uplink for each completed upload", lambda f: exact_bytes(f.uplink_bytes_per_device_round)),
    ("the same in the last applied round", lambda f: exact_bytes(f.uplink_bytes_last_round_per_device)),
    ("bytes at the interface, up", lambda f: _wire_text(f, f.wire_bytes.up)),
    ("bytes at the interface, down", lambda f: _wire_text(f, f.wire_bytes.down)),
    ("wall time", lambda f: f"{f.wall_s:.1f} s"),
)


def _wire_text(figures: Figures, count: int) -> str:
    return exact_bytes(count) if figures.wire_bytes.source == "interface" else "not counted"


def figures(report: Report) -> str:
    """Every figure of the summary: of each arm, totals over its seeds, and folded away of each seed."""
    arms = [(arm.name, arm.figures) for arm in report.arms]
    seeds = [
        (f"{arm.name}, seed {seed}", found)
        for arm in report.arms
        if len(arm.seeds) > 1
        for seed, found in zip(arm.seeds, arm.figures.by_seed, strict=True)
    ]
    note = "Bytes, seconds, joules and rounds of an arm are totals over its seeds." if seeds else ""
    by_seed = folded("Seed by seed", _columns(report.metric, seeds)) if seeds else ""
    return section("figures", "Figures", _columns(report.metric, arms), small(note), by_seed)


def _columns(metric: Metric, columns: Sequence[tuple[str, Figures]]) -> str:
    rows = [
        [label.format(metric.name), *(metric.show(score(figures), 2) for _, figures in columns)]
        for label, score in _SCORES
    ]
    rows += [[label, *(value(figures) for _, figures in columns)] for label, value in _FIGURES]
    components = dict.fromkeys(name for _, figures in columns for name in figures.energy_j or {})
    for component in sorted(components, key=_place_of_phase):
        rows.append([f"joules, {component}", *(_component(figures, component) for _, figures in columns)])
    return table(["", *(name for name, _ in columns)], rows)


def _place_of_phase(component: str) -> int:
    """Where a component of joules stands: by the order of a device's round, and what is unknown last."""
    phases = list(PHASE_COLOURS)
    phase = component.partition(" ")[0]
    return phases.index(phase) if phase in phases else len(phases)


def _component(figures: Figures, name: str) -> str:
    found = (figures.energy_j or {}).get(name)
    return f"{joules_of(found.value)} ({found.source})" if found else "–"


# --------------------------------------------------------------------------- what is to be seen first


def first_sight(report: Report) -> str:
    """The figures of one arm; of several, what the arm the comparison is about has in terms of the others."""
    return tiles(_of_one(report) if len(report.arms) == 1 else _against(report))


def _of_one(report: Report) -> list[tuple[str, str, str]]:
    arm, metric = report.arms[0], report.metric
    found = arm.figures
    rounds = found.rounds_applied + found.rounds_failed
    spread = f" ± {metric.show(found.final_accuracy_sd)}" if len(found.by_seed) > 1 else ""
    model_bytes = report.folders[0].model_bytes
    made = [
        (
            f"final {metric.name}",
            f"{metric.show(found.final_accuracy)}{spread}",
            f"best {metric.show(found.best_accuracy)}",
        ),
        (
            "weights kept",
            percent(found.density_final),
            "no model.onnx" if model_bytes is None else f"model.onnx {size(model_bytes)}",
        ),
        (
            "uplink a device and round",
            size(found.uplink_bytes_last_round_per_device),
            f"in the last round; mean {size(found.uplink_bytes_per_device_round)}",
        ),
        ("uplink in all", size(found.uplink_bytes), f"of it shares {size(found.uplink_share_bytes)}"),
        ("rounds applied", f"{found.rounds_applied} of {rounds}", _checks(found)),
        ("wall time", f"{found.wall_s:.0f} s", f"{report.folders[0].summary.devices} devices"),
    ]
    for source, spent in measures.joules_by_source(found).items():
        idled = f"{measures.source_text(source)}; idle {joules_of(measures.idle_by_source(found)[source])} more"
        made.insert(4, ("energy of work, all devices", joules_of(spent), idled))
    return made


def _checks(figures: Figures) -> str:
    shared = figures.sharing
    if shared and shared.reveal == "each":
        return f"any {shared.k} of {shared.n} rebuild each update"
    if shared is None:
        return "no sharing"
    how = f"any {shared.k} of {shared.n} open a sum"
    return f"{how}; every sum checked" if figures.verified else f"{how}; not every sum checked"


def _against(report: Report) -> list[tuple[str, str, str]]:
    subject, base, metric = report.subject, report.baseline, report.metric
    made = [
        (
            f"final {metric.name} of {subject.name}",
            quality_text(subject, metric),
            f"{difference(subject, base, metric)} against {base.name}",
        )
    ]
    for one in COSTS:
        found = ratio_of(one, subject, base)
        if found is not None and found[1] > 0:
            source = f", {measures.source_text(measures.sources(subject)[0])}" if one is measures.JOULES else ""
            mine, theirs = (with_spread(value, None, one.units) for value in found)
            note = f"of {base.name}: {mine} for {theirs}{source}"
            made.append((one.title, ratio(*found), note))
    return made
