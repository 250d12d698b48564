"""report.html: headline, comparison, plots, tables, conditions, settings. Every text from outside is escaped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Final

from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import write_atomically
from testbed.report import comparison, conditions, csv_files, tables
from testbed.report.bars import bars
from testbed.report.curves import curves
from testbed.report.decisions import decisions
from testbed.report.drawing import Drawing
from testbed.report.markup import folded, section
from testbed.report.runs import Report, compared, one_report, read_folder, weighty_differences
from testbed.report.timelines import timelines

_STYLE: Final = Path(__file__).with_name("style.css")
REPORT: Final = "report.html"
PLOTS: Final = "plots"
#: Everything a report writes into a run folder.
REPORT_FILES: Final = (REPORT, csv_files.REPORT_CSV, csv_files.ROUNDS_CSV, csv_files.DEVICES_CSV, PLOTS)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a finished run, or of a comparison of arms, into its folder (or `out`); returns the page.

    Raises `SettingsError` where the folder holds no finished run.
    """
    return _write(one_report(read_folder(folder)), folder if out is None else _made(out))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of several finished runs beside each other into `out`; returns the page.

    Raises `SettingsError` where a folder holds no finished run, tasks or metrics differ, or `out` is a run's folder.
    """
    report = compared([read_folder(folder) for folder in folders])
    return _write(report, _made(out))


def _made(out: Path) -> Path:
    if (out / "summary.json").exists():
        raise SettingsError(f"--out {out} is the folder of a run, expected a new one or that of an older comparison")
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file, expected a folder")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in REPORT_FILES) if out.is_dir() else []
    if foreign:
        raise SettingsError(f"--out {out} holds {foreign[0]!r}, which no report wrote; expected a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write(report: Report, out: Path) -> Path:
    drawings = draw(report)
    page = out / REPORT
    csv_files.write_all(report, out)
    plots = out / PLOTS
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir()
    for drawing in drawings:
        (plots / f"{drawing.name}.svg").write_bytes(drawing.svg)
        (plots / f"{drawing.name}.png").write_bytes(drawing.png)
    write_atomically(page, render_page(report, drawings).encode())  # last: where it is, all the rest is
    return page


def draw(report: Report) -> list[Drawing]:
    """Every plot the runs have data for."""
    return list(chain(curves(report), bars(report), decisions(report), timelines(report)))


def render_page(report: Report, drawings: Sequence[Drawing]) -> str:
    """The whole page."""
    parts = [
        _header(report),
        comparison.first_sight(report),
        comparison.comparison(report),
        conditions.compared_settings(report),
        _plots(drawings),
        tables.groups(report),
        tables.wire(report),
        conditions.metered(report),
        tables.found_out(report),
        tables.events(report),
        comparison.figures(report),
        tables.rounds(report),
        conditions.emulation(report),
        _settings(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}: FedPruneShare</title>"
        f"<style>{_STYLE.read_text('utf-8')}</style></head><body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _header(report: Report) -> str:
    kind = "comparison" if len(report.arms) > 1 else "run"
    text = f'<header><p class="kicker">FedPruneShare {kind}</p><h1>{escape(report.title)}</h1>'
    for description in dict.fromkeys(folder.scenario.description for folder in report.folders):
        text += f'<p class="lead">{escape(description)}</p>' if description else ""
    text += f'<p class="facts">{escape(_facts(report))}</p>'
    return text + "".join(_notice(title, why) for title, why in _notices(report)) + "</header>"


def _facts(report: Report) -> str:
    """What ran, in one line."""
    summary, scenario = report.folders[0].summary, report.folders[0].scenario
    if report.is_comparison:
        return f"{len(report.folders)} runs, {len(report.arms)} arms · task {summary.task}"
    seeds = ", ".join(map(str, summary.seeds))
    facts = [
        f"task {summary.task}",
        f"{summary.devices} devices, {scenario.rounds.cohort} a round",
        f"{scenario.rounds.count} rounds",
        f"seed{'s' if len(summary.seeds) > 1 else ''} {seeds}",
        *(["emulated fleet"] if summary.emulated else []),
    ]
    return " · ".join(facts)


def _notice(title: str, why: str) -> str:
    return f'<p class="notice"><strong>{escape(title)}</strong> {escape(why)}</p>'


def _notices(report: Report) -> list[tuple[str, str]]:
    """What a reader must know before any figure."""
    found = []
    if any(folder.scenario.task.data == "fixture" for folder in report.folders):
        why = (
            "This run used the small sample that ships with the project, not the full data set. Its accuracy says that "
            "the system works, not how well it learns."
        )
        found.append(("Sample data.", why))
    if any(folder.scenario.fleet.engine == "synthetic" for folder in report.folders):
        found.append(("Synthetic devices.", "They train nothing and upload random values: the accuracy means nothing."))
    revealed = [arm for arm in report.arms if arm.figures.sharing and arm.figures.sharing.reveal == "each"]
    if revealed:
        found.append(("Single updates are visible.", conditions.privacy_note(revealed[0].figures.sharing)))
    if report.is_comparison and (weighty := weighty_differences(report)):
        found.append(("Not like with like.", " ".join(weighty)))
    return found


def _plots(drawings: Sequence[Drawing]) -> str:
    return f'<section class="plots" id="plots">{"".join(map(_figure, drawings))}</section>'


def _figure(drawing: Drawing) -> str:
    note = f"<p>{escape(drawing.note)}</p>" if drawing.note else ""
    image = f'<img alt="{escape(drawing.title)}" src="{drawing.data_uri}">'
    # A wide plot shrunk to a phone cannot be read: it scrolls in its box.
    box = f'<div class="wide" tabindex="0">{image}</div>' if drawing.is_wide else image
    return (
        f"<figure{' class=broad' if drawing.is_wide else ''}><figcaption>{escape(drawing.title)}{note}</figcaption>"
        f"{box}</figure>"
    )


def _settings(report: Report) -> str:
    parts = [
        folded(
            str(folder.path.name) if report.is_comparison else "settings.toml",
            f"<pre tabindex=0>{escape(folder.settings_text)}</pre>",
        )
        for folder in report.folders
    ]
    return section("settings", "Settings used", *parts)
