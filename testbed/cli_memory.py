"""`fedpruneshare bench memory`."""

from __future__ import annotations

from pathlib import Path

import click

from fedpruneshare import logs
from testbed.benchmarks.pages import check_page, write_figures


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="File the figures go to.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Page whose table is replaced, between its markers.")
def memory(target: Path | None, markdown: Path | None) -> int:
    """Memory of a device process: training by net and width, and what sharing a large update adds."""
    from testbed.benchmarks import device_memory as bench

    logs.configure("bench", "", "warning")
    if markdown is not None:
        check_page(markdown, bench.PAGE_NAME)
    report = bench.measure_here(lambda step: click.echo(step, err=True))
    write_figures(report, target, markdown, bench.PAGE_NAME, bench.page(report))
    click.echo(bench.table(report))
    for line in bench.missed(report):
        click.echo(f"MISSED: {line}")
    return 1 if bench.missed(report) else 0
