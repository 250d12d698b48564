"""The page of a report: headline, plots, rounds, figures, settings. Every text from outside is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from fedpruneshare.errors import SettingsError
from fedpruneshare.metrics import METRICS, Metric
from fedpruneshare.settings import load_settings
from testbed.ledger import RunRound, read_rounds
from testbed.report import plots
from testbed.scenario import Scenario
from testbed.summary import Figures, Sharing, Summary, read_summary

_STYLE: Final = Path(__file__).with_name("style.css")
REPORT: Final = "report.html"


@dataclass(frozen=True)
class RunFiles:
    """What a report is made from: the files of one run folder."""

    summary: Summary
    rounds: Sequence[RunRound]
    scenario: Scenario
    settings_text: str
    model_bytes: int | None


def write_report(folder: Path) -> Path:
    """Write report.html of a finished run's folder and return its path. Raises `SettingsError` for another folder."""
    if not (folder / "summary.json").is_file():
        raise SettingsError(f"{folder} holds no summary.json, expected the folder of a finished run")
    settings, model = folder / "settings.toml", folder / "model.onnx"
    run = RunFiles(
        summary=read_summary(folder / "summary.json"),
        rounds=read_rounds(folder / "rounds.jsonl"),
        scenario=load_settings(settings, Scenario),
        settings_text=settings.read_text("utf-8"),
        model_bytes=model.stat().st_size if model.is_file() else None,
    )
    path = folder / REPORT
    path.write_text(render_page(run), "utf-8")
    return path


def render_page(run: RunFiles) -> str:
    """The whole page."""
    scenario = run.summary.scenario
    parts = [
        _header(run), _tiles(run), _plots(run), _rounds_table(run), _found_out(run), _figures_table(run),
        _emulation(run),
    ]  # fmt: skip
    settings = f"<section><h2>Settings used</h2><pre>{escape(run.settings_text)}</pre></section>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(scenario)}: FedPruneShare run</title>"
        f"<style>{_STYLE.read_text('utf-8')}</style></head><body><main>\n"
        + "\n".join([*parts, settings])
        + "\n</main></body></html>\n"
    )


def _header(run: RunFiles) -> str:
    scenario = run.scenario
    text = f'<header><p class="kicker">FedPruneShare run</p><h1>{escape(run.summary.scenario)}</h1>'
    if scenario.description:
        text += f'<p class="lead">{escape(scenario.description)}</p>'
    if scenario.task.data == "fixture":
        text += (
            '<p class="notice"><strong>Sample data.</strong> This run used the small sample that ships with the '
            "project, not the full data set. Its accuracy says that the system works, not how well it learns.</p>"
        )
    shared = _shared(run)
    if shared and shared.reveal == "each":
        text += f'<p class="notice"><strong>Single updates are visible.</strong> {escape(privacy_note(shared))}</p>'
    return text + "</header>"


def _shared(run: RunFiles) -> Sharing | None:
    return next((arm.sharing for arm in run.summary.arms.values() if arm.sharing), None)


def _tiles(run: RunFiles) -> str:
    tiles = []
    metric = METRICS[run.summary.metric]
    for name, arm in run.summary.arms.items():
        prefix = f"{name}: " if len(run.summary.arms) > 1 else ""
        rounds = arm.rounds_applied + arm.rounds_failed
        spread = f" ± {metric.show(arm.final_accuracy_sd)}" if len(arm.by_seed) > 1 else ""
        tiles += [
            (
                f"{prefix}final {metric.name}",
                f"{metric.show(arm.final_accuracy)}{spread}",
                f"best {metric.show(arm.best_accuracy)}",
            ),
            (f"{prefix}weights kept", _percent(arm.density_final), _model_note(run.model_bytes)),
            (
                f"{prefix}uplink a device and round",
                size(arm.uplink_bytes_last_round_per_device),
                f"in the last round; mean {size(arm.uplink_bytes_per_device_round)}",
            ),
            (f"{prefix}uplink in all", size(arm.uplink_bytes), f"of it shares {size(arm.uplink_share_bytes)}"),
            (f"{prefix}rounds applied", f"{arm.rounds_applied} of {rounds}", _failures(arm)),
            (f"{prefix}wall time", f"{arm.wall_s:.0f} s", f"{run.summary.devices} devices"),
        ]
    cells = "".join(
        f'<div class="tile"><span class="label">{escape(label)}</span><span class="value">{escape(value)}</span>'
        f'<span class="note">{escape(note)}</span></div>'
        for label, value, note in tiles
    )
    return f'<section class="tiles">{cells}</section>'


def _model_note(model_bytes: int | None) -> str:
    return "no model.onnx" if model_bytes is None else f"model.onnx {size(model_bytes)}"


def _failures(figures: Figures) -> str:
    shared = figures.sharing
    if shared and shared.reveal == "each":
        return f"any {shared.k} of {shared.n} rebuild each update"
    how = f"any {shared.k} of {shared.n} open a sum" if shared else "no sharing"
    return f"{how}; every sum checked" if figures.verified else f"{how}; not every sum checked"


def privacy_note(shared: Sharing) -> str:
    """Who could see a single device's update in a run."""
    if shared.reveal == "each":
        return (
            "The coordinator saw every single update in this run (reveal = each). "
            f"Up to t = {shared.t} of the {shared.n} aggregators together, the brokers and the network saw none."
        )
    return (
        f"Up to t = {shared.t} of the {shared.n} aggregators together, the brokers and the network learnt nothing of a "
        "single update; the coordinator saw only sums."
    )


def _found_out(run: RunFiles) -> str:
    """Devices and aggregators that were caught sending what fits nothing."""
    lines = [
        f"Round {line.round}: "
        + "; ".join(
            f"{what} {', '.join(names)}"
            for what, names in (
                ("left out", line.left_out_devices),
                ("answered otherwise than the rest:", line.wrong_aggregators),
            )
            if names
        )
        for line in run.rounds
        if line.left_out_devices or line.wrong_aggregators
    ]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section><h2>Found out</h2><ul>{items}</ul></section>"


def _plots(run: RunFiles) -> str:
    rounds, metric = run.rounds, run.summary.metric
    named = metric[0].upper() + metric[1:]
    figures = (
        (f"{named} by round", plots.accuracy_by_round(rounds, metric)),
        (f"{named} by uplink bytes", plots.accuracy_by_uplink(rounds, metric)),
        ("Density by round", plots.density_by_round(rounds)),
        ("Bytes by cause", plots.bytes_by_cause(rounds)),
    )
    cells = "".join(
        f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="{image}"></figure>'
        for title, image in figures
    )
    return f'<section class="plots">{cells}</section>'


def _rounds_table(run: RunFiles) -> str:
    seeds = len(run.summary.seeds) > 1
    metric = METRICS[run.summary.metric]
    head = ["round", "outcome", "devices", "by rung", "density", metric.name, "summed by", "checked", "uplink", "time"]
    shared = _shared(run)
    n = shared.n if shared else 0
    rows = [_round_row(line, seeds, n, metric) for line in run.rounds if line.phase != "OUTSIDE"]
    outside = [line for line in run.rounds if line.phase == "OUTSIDE"]
    sent, received = sum(line.up.total for line in outside), sum(line.down.total for line in outside)
    note = (
        f"Outside any round (such as a device's hello) the devices sent {size(sent)} and received {size(received)}; "
        "the totals above include that."
    )
    table = _table([*(["seed"] if seeds else []), *head], rows)
    return f'<section><h2>Rounds</h2><div class="wide">{table}</div><p class="small">{escape(note)}</p></section>'


def _round_row(line: RunRound, seeds: bool, n: int, metric: Metric) -> list[str]:
    endings = Counter(line.devices)
    missing = ", ".join(f"{count} {name or 'unknown'}" for name, count in endings.items() if name != "uploaded")
    outcome = f"{line.phase}: {line.reason}" if line.reason else line.phase
    row = [
        str(line.round),
        outcome,
        f"{line.contributors} summed" + (f" ({missing})" if missing else ""),
        " + ".join(str(count) for count in line.rungs),
        _percent(line.density),
        metric.show(line.accuracy),
        f"all {n}" if len(line.aggregators) == n else ", ".join(line.aggregators),
        "yes" if line.verified else "no",
        size(line.up.total),
        f"{line.seconds['total']:.1f} s" if "total" in line.seconds else "",
    ]
    return [str(line.seed), *row] if seeds else row


def _figures_table(run: RunFiles) -> str:
    arms = run.summary.arms
    columns: list[tuple[str, Figures]] = []
    for name, arm in arms.items():
        columns.append((name, arm))
        if len(arm.by_seed) > 1:
            seeds = zip(run.summary.seeds, arm.by_seed, strict=True)
            columns += [(f"{name}, seed {seed}", figures) for seed, figures in seeds]
    metric = METRICS[run.summary.metric]
    scored = [
        [label.format(metric.name), *(metric.show(score(figures), 2) for _, figures in columns)]
        for label, score in _SCORES
    ]
    rows = scored + [[label, *(value(figures) for _, figures in columns)] for label, value in _FIGURES]
    table = _table(["", *(name for name, _ in columns)], rows)
    return f'<section><h2>Figures</h2><div class="wide">{table}</div></section>'


_SEEN: Final = {"sum": "sums only", "each": "every single update"}
_SCORES: Final[tuple[tuple[str, Callable[[Figures], float]], ...]] = (
    ("final {} (mean of the last five evaluations)", lambda f: f.final_accuracy),
    ("last {}", lambda f: f.last_accuracy),
    ("best {}", lambda f: f.best_accuracy),
)
_FIGURES: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("rounds applied / failed", lambda f: f"{f.rounds_applied} / {f.rounds_failed}"),
    ("every applied sum checked with a spare share", lambda f: "yes" if f.verified else "no"),
    ("final density", lambda f: _percent(f.density_final, 2)),
    ("sharing", lambda f: f"n = {f.sharing.n}, k = {f.sharing.k}, t = {f.sharing.t}" if f.sharing else "none"),
    ("what the coordinator sees", lambda f: _SEEN[f.sharing.reveal] if f.sharing else "every single update"),
    ("uplink, all devices", lambda f: _bytes(f.uplink_bytes)),
    ("of it shares, first transmission", lambda f: _bytes(f.uplink_share_bytes)),
    ("downlink, all devices", lambda f: _bytes(f.downlink_bytes)),
    ("uplink for each completed upload", lambda f: _bytes(f.uplink_bytes_per_device_round)),
    ("the same in the last applied round", lambda f: _bytes(f.uplink_bytes_last_round_per_device)),
    ("wall time", lambda f: f"{f.wall_s:.1f} s"),
)


def _emulation(run: RunFiles) -> str:
    summary, scenario = run.summary, run.scenario
    shared = _shared(run)
    parties = f"{shared.n} aggregators with a broker each, " if shared else ""
    data = {"full": "The full data set was used.", "fixture": "The sample that ships with the project was used."}
    points = [
        f"{summary.devices} devices, {parties}one coordinator: each a process of its own on one machine, "
        f"talking over real {scenario.brokers.kind} brokers on the loopback interface. "
        "Keys, signatures, sealing and sharing are those of a deployment; keys were made for this run and thrown away.",
        "The network is not shaped: there is no loss, delay or limit of rate but what the machine itself gives.",
        "Bytes are counted MQTT payload bytes; headers of MQTT, TCP and IP come on top.",
        *([privacy_note(shared)] if shared else []),
        "Energy was not measured.",
        f"Task: {summary.task}. {data.get(scenario.task.data, '')}",
    ]
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return f"<section><h2>What is emulated, what is real</h2><ul>{items}</ul></section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{_row_class(row)}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _row_class(row: Sequence[str]) -> str:
    return ' class="failed"' if any(cell.startswith("FAILED") for cell in row[:3]) else ""


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _bytes(count: float) -> str:
    return f"{size(count)} ({count:,.0f} bytes)".replace(",", "\u202f")


def size(count: float) -> str:
    """Bytes for a reader: 999 B, 12.3 kB, 4.56 MB (decimal)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    raise AssertionError("unreachable")
