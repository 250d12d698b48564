"""`fedpruneshare testbed compare`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console

from fedpruneshare import logs
from testbed.arms import ARMS
from testbed.scenario import load_scenario


def _arms(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in ARMS]
    if unknown or not chosen:
        raise click.BadParameter(f"{given!r}, expected some of {', '.join(ARMS)}, separated by commas")
    return chosen


@click.command()
@click.argument("scenario")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the results. One that was interrupted is taken up again.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the scenario: rounds.count=40"
)
@click.option("--task", help="Train this task instead: a name, a dotted module or a .py file.")
@click.option("--arms", callback=_arms, default=",".join(ARMS), show_default=True, help="Which arms to run.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Runs at once (default: one for every two cores).")
@click.option("--verbose", is_flag=True, help="Show the log of the comparison itself, too.")
def compare(
    *,
    scenario: str,
    out: Path,
    overrides: tuple[str, ...],
    task: str | None,
    arms: tuple[str, ...],
    jobs: int | None,
    verbose: bool,
) -> int:
    """Run a SCENARIO with and without pruning and sharing: same split, seeds, cohorts and links, several seeds."""
    from testbed.compare.runner import compare as run_arms
    from testbed.compare.runner import jobs_at_once
    from testbed.compare.words import conclusion, watching

    logs.configure("compare", "", "info" if verbose else "warning")
    name = str(Path(task).absolute()) if task and task.endswith(".py") else task
    chosen = load_scenario(
        scenario, [*overrides, *([f"task.name={msgspec.json.encode(name).decode()}"] if name else [])]
    )
    with watching(Console()) as watch:
        done = run_arms(chosen, out, arms, jobs or jobs_at_once(chosen), watch)
    for line in conclusion(done.summary):
        click.echo(line)
    if not done.succeeded:
        click.echo("FAILED: more rounds of a run failed than max_failed_rounds allows; the report says why", err=True)
    click.echo(f"report: {done.folder / 'report.html'}")
    return 0 if done.succeeded else 1
