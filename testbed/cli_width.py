"""`fedpruneshare bench width`."""

from __future__ import annotations

from pathlib import Path

import click

from fedpruneshare import logs
from testbed.benchmarks.pages import check_page, write_figures


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="File the figures go to.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Page whose table is replaced, between its markers.")
@click.option("--quick", is_flag=True, help="Fewer turns: seconds instead of a minute.")
def width(target: Path | None, markdown: Path | None, quick: bool) -> int:
    """Training and inference of models cut to three quarters, a half and a quarter of their channels."""
    from testbed.benchmarks import width as bench

    logs.configure("bench", "", "warning")
    if markdown is not None:
        check_page(markdown, bench.PAGE_NAME)
    report = bench.measure_here(quick, lambda net: click.echo(net, err=True))
    write_figures(report, target, markdown, bench.PAGE_NAME, bench.page(report))
    click.echo(bench.table(report))
    for line in bench.missed(report):
        click.echo(f"MISSED: {line}")
    return 0
