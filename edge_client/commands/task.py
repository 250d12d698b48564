"""`fedpruneshare task`: what a coordinator needs to know of a task, made once on a machine that has torch."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def task() -> None:
    """Check and export tasks: a model and its data."""


@task.command()
@click.argument("name", metavar="TASK")
@click.option("--out", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Bundle to write.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the initial weights.")
@click.option(
    "--start-from", type=click.Path(dir_okay=False, path_type=Path), help="model.onnx to start from instead of a seed."
)
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Data folder [default: data].")
def export(name: str, path: Path, seed: int, start_from: Path | None, data_dir: Path | None) -> None:
    """Write the bundle of TASK: a built-in name, a dotted module or a .py file (whose code is run)."""
    from edge_client.exporting import export_bundle
    from edge_client.tasks import load_task

    bundle = export_bundle(load_task(name, data_dir), path, seed, start_from)
    table = bundle.manifest.table
    click.echo(f"task         {bundle.manifest.task} ({bundle.manifest.data_source} data)")
    click.echo(f"parameters   {table.weight_count} prunable, {table.vector_count} others")
    kind = f"{bundle.manifest.classes} classes" if bundle.manifest.has_classes else "values"
    click.echo(f"test set     {bundle.manifest.test_count} examples, {kind}, metric {bundle.manifest.metric}")
    cut = sum(group.channels for group in bundle.manifest.channel_groups)
    click.echo(f"widths       {f'{cut} channels may be cut' if cut else 'none: the model cannot be cut'}")
    if bundle.manifest.uncut_reason:
        click.echo(f"             {bundle.manifest.uncut_reason}")
    click.echo(f"bundle       {path} ({path.stat().st_size} bytes)")
    click.echo(f"sha256       {bundle.digest.hex()}")
