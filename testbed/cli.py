"""`fedpruneshare testbed …` and `fedpruneshare bench`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click
import msgspec

from fedpruneshare import logs
from testbed.arms import ARMS
from testbed.cli_compare import compare
from testbed.cli_memory import memory
from testbed.cli_rounds import rounds
from testbed.cli_width import width
from testbed.report.markup import size
from testbed.run import FIXTURE_NOTICE, Finished, RunOptions, run_scenario
from testbed.scenario import load_scenario, scenario_keys, shipped_scenarios
from testbed.watching.progress import Progress

#: Values in the vectors of `bench sharing`.
SMALLEST_SIZE, LARGEST_SIZE = 1_000, 100_000_000

_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the scenario: rounds.count=40"
)


@click.group()
def testbed() -> None:
    """Run and compare whole fleets on this machine."""
    _end_in_order()


def _end_in_order() -> None:
    """Stop the fleet and throw its keys away when told to end, also by a terminal that closes (unless under nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # As Ctrl-C: the fleet is stopped on the way out.
    raise KeyboardInterrupt


@testbed.command("list")
def list_scenarios() -> None:
    """Show the scenarios that ship with the project."""
    names = shipped_scenarios()
    for name in names:
        click.echo(f"{name:{max(map(len, names))}} {load_scenario(name).description}")


@testbed.command("keys")
def list_keys() -> None:
    """Show every key of a scenario that --set takes, what it accepts and its default."""
    for key, accepted, default in scenario_keys():
        click.echo(f"{key} = {default}  # {accepted}")


@testbed.command()
@click.argument("scenario")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results; new or empty.")
@_set_option
@click.option("--task", help="Train this task instead: a name, a dotted module or a .py file.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Run this one seed instead of the scenario's.")
@click.option("--arm", type=click.Choice(list(ARMS)), help="Run the scenario as this arm of a comparison.")
@click.option("--replace", is_flag=True, help="Delete the old run that lies in the folder.")
@click.option("--keep-state", is_flag=True, help="Keep what the services stored, in OUT/state.")
@click.option("--verbose", is_flag=True, help="Show the log of the run itself, too.")
def run(
    *,
    scenario: str,
    out: Path,
    overrides: tuple[str, ...],
    task: str | None,
    seed: int | None,
    arm: str | None,
    replace: bool,
    keep_state: bool,
    verbose: bool,
) -> int:
    """Run a fleet of devices, aggregators and brokers by a SCENARIO (a shipped name or a TOML file)."""
    logs.configure("testbed", "", "info" if verbose else "warning")
    chosen = load_scenario(scenario, [*overrides, *_options_as_overrides(task, seed)])
    progress = Progress()
    try:
        finished = run_scenario(chosen, RunOptions(out, replace, keep_state, arm or ""), progress)
    finally:
        progress.end()
    _conclude(finished)
    return 0 if finished.succeeded else 1


def _options_as_overrides(task: str | None, seed: int | None) -> list[str]:
    overrides = []
    if task is not None:
        name = str(Path(task).absolute()) if task.endswith(".py") else task
        overrides.append(f"task.name={msgspec.json.encode(name).decode()}")
    if seed is not None:
        overrides.append(f"seeds=[{seed}]")
    return overrides


def _conclude(finished: Finished) -> None:
    for name, arm in finished.summary.arms.items():
        click.echo(
            f"{name}: final {finished.summary.metric} {arm.final_accuracy:.3f} at density {arm.density_final:.3f}, "
            f"{arm.rounds_applied} rounds applied, {arm.rounds_failed} failed, {arm.wall_s:.0f} s"
        )
        click.echo(
            f"uplink of all devices: {arm.uplink_bytes} bytes ({size(arm.uplink_bytes)}), "
            f"{size(arm.uplink_bytes_last_round_per_device)} a device in the last round"
        )
        if arm.sharing is None:
            click.echo("nothing was shared: aggregator and coordinator saw every single update (reveal = plain)")
        elif arm.sharing.reveal == "each":
            click.echo("the coordinator saw every single update (reveal = each)")
    if finished.data == "fixture":
        click.echo(FIXTURE_NOTICE)
    if not finished.succeeded:
        click.echo("FAILED: more rounds failed than max_failed_rounds allows; the report says why", err=True)
    click.echo(f"report: {finished.folder / 'report.html'}")


@click.group()
def bench() -> None:
    """Measure, and write the figures as JSON."""
    _end_in_order()


def _sizes(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(one.replace("_", "")) for one in given.split(",")) if given else ()
    except ValueError:
        raise click.BadParameter(f"{given!r}, expected numbers of values such as 100000,1000000") from None
    if any(not SMALLEST_SIZE <= size <= LARGEST_SIZE for size in sizes):
        raise click.BadParameter(f"{given!r}, expected {SMALLEST_SIZE} to {LARGEST_SIZE} values each")
    return sizes


@bench.command()
@click.option("--json", "target", type=click.Path(path_type=Path), required=True, help="File the figures go to.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Page whose tables are replaced, between its markers."
)
@click.option("--plot", type=click.Path(path_type=Path), help="File for a plot of the ratios, as SVG.")
@click.option("--quick", is_flag=True, help="Fewer pairs and values: seconds instead of minutes.")
@click.option(
    "--sizes", callback=_sizes, metavar="VALUES[,VALUES]…", help="Values in a vector (default: 100000,1000000)."
)
def sharing(target: Path, markdown: Path | None, plot: Path | None, quick: bool, sizes: tuple[int, ...]) -> int:
    """Secret sharing beside the packages a Python user would take instead (those that are installed)."""
    from testbed.benchmarks import sharing_report

    logs.configure("bench", "", "warning")
    sharing_report.check_targets(markdown, plot)
    report = sharing_report.measure_here(quick, sizes, lambda step: click.echo(step, err=True))
    sharing_report.write_all(report, target, markdown, plot)
    click.echo(sharing_report.conclusion(report))
    click.echo(f"figures: {target}")
    return 0


bench.add_command(rounds)
bench.add_command(width)
bench.add_command(memory)
testbed.add_command(compare)
