"""`fedpruneshare device doctor`: every check as a table, as lines or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_client.doctor.findings import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Settings of this device: checks its federation, too.")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True), default=Path("/"), help="Read a copy of a board's files."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Log in at brokers that end the connection of the device at work for it.")
def doctor(*, config: Path | None, root: Path, as_json: bool, force: bool) -> int:
    """Check this device: board, software, federation. Exit code 1 if a check failed."""
    from edge_client.doctor.examination import as_lines, as_record, examine, verdict

    visit, findings = examine(root, config, force)
    if as_json:
        click.echo(json.dumps(as_record(visit, findings), indent=2))
    elif not (sys.stdout.isatty() and _print_table(findings)):
        click.echo("\n".join(as_lines(findings)))
    return 1 if verdict(findings) == "failed" else 0


def _print_table(findings: Sequence[Finding]) -> bool:
    """Print a table; False where rich is not installed (it comes with the testbed)."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return False
    table = Table("check", "result", "found", "why it matters", "fix", show_lines=True)
    for finding in findings:
        is_wrong = finding.result in ("warning", "failed")
        table.add_row(
            Text(finding.name),
            Text(finding.result, style=_COLOURS[finding.result]),
            Text(finding.found),
            Text(finding.why if is_wrong else "", style="dim"),
            Text(finding.fix),
        )
    Console().print(table)
    return True
