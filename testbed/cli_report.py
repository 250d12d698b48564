"""`fedpruneshare report`: the page of a finished run again, or several finished runs beside each other."""

from __future__ import annotations

from pathlib import Path

import click

from fedpruneshare import logs
from testbed.report.page import write_comparison, write_report

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR…", type=_FOLDER)
@click.option(
    "--out",
    type=_FOLDER,
    help="Folder the report goes to. Default: of one run, its own folder; of several, `comparison`.",
)
@click.option("--tensorboard", type=_FOLDER, help="Also write TensorBoard event files into this new or empty folder.")
def report(folders: tuple[Path, ...], out: Path | None, tensorboard: Path | None) -> None:
    """Make the report of a finished run again, or compare several finished runs (two or more DIR)."""
    logs.configure("report", "", "warning")
    is_one = len(folders) == 1
    page = write_report(folders[0], out) if is_one else write_comparison(folders, out or Path("comparison"))
    click.echo(f"report: {page}")
    if tensorboard is not None:
        from testbed.report.event_files import write_event_files

        count = write_event_files(folders, tensorboard)
        click.echo(f"event files of {count} runs: {tensorboard}")
