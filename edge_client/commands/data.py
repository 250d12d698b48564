"""`fedpruneshare data`: full data sets for the built-in tasks."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.group()
def data() -> None:
    """Get and check the data sets of the built-in tasks."""


@data.command()
@click.argument("name", type=click.Choice(["hapt", "fashion-mnist", "mnist", "cifar10"]))
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Data folder [default: data].")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Folder, .tar, .tar.gz or .tar.zst of images (train/CLASS/*.png or .jpg, and test/…) to take them from.",
)
def get(name: str, folder: Path | None, source: Path | None) -> None:
    """Bring data set NAME to the data folder and check it.

    Without --to the folder is $FEDPRUNESHARE_DATA, or data/ under the current folder. Where the data cannot be had,
    the commands to get them by hand are listed, and the exit code is 1.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from edge_client.datasets import data_folder
    from edge_client.datasets.fetching_images import fetch

    started = time.perf_counter()
    columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        stages = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=max(total, 1))
            bars.update(stages[stage], completed=done if total else 1)

        fetched = fetch(name, data_folder(folder), report, source)
    told = f"read from {fetched.form} files, not as published" if fetched.form else "checked"
    click.echo(f"{name}: {fetched.place} ({fetched.way}, {told}, {time.perf_counter() - started:.1f} s)")
