"""`fedpruneshare bench rounds`: whole scenarios, or crowds of synthetic devices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from fedpruneshare import logs
from fedpruneshare.messages import MAX_DEVICES
from testbed.benchmarks.crowd import Crowd, CrowdSettings, growth, measure_crowd, table
from testbed.benchmarks.rounds import RoundFigures, measure_rounds, write_crowds, write_measurements
from testbed.run import RunOptions, run_scenario
from testbed.scenario import BrokerKind, load_scenario
from testbed.watching.progress import Progress

_FEWEST = 3


def _counts(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[int, ...]:
    try:
        counts = tuple(int(one.replace("_", "")) for one in given.split(",")) if given else ()
    except ValueError:
        raise click.BadParameter(f"{given!r}, expected numbers of devices such as 100,1000") from None
    if any(not _FEWEST <= count <= MAX_DEVICES for count in counts):
        raise click.BadParameter(f"{given!r}, expected {_FEWEST} to {MAX_DEVICES} devices each")
    return counts


def _sharing(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[int, int]:
    try:
        k, n = (int(part) for part in given.split(","))
    except ValueError:
        raise click.BadParameter(f"{given!r}, expected k,n such as 2,3") from None
    if not 2 <= k <= n < 2 * k:
        raise click.BadParameter(f"{given!r}, expected k,n with 2 <= k <= n < 2k")
    return k, n


@click.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]…")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File the figures go to.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the scenarios.")
@click.option(
    "--devices", callback=_counts, metavar="N[,N]…", help="Instead: fleets of so many synthetic devices, one by one."
)
@click.option("--values", type=click.IntRange(100, 10_000_000), default=10_000, help="Weights of their model (10,000).")
@click.option("--rounds", "count", type=click.IntRange(2, 100), default=3, help="Rounds measured, after the first (3).")
@click.option("--sharing", callback=_sharing, default="2,3", metavar="K,N", help="Any K of N aggregators open (2,3).")
@click.option("--broker", type=click.Choice(["embedded", "mosquitto"]), default="embedded", help="Their brokers.")
def rounds(
    *,
    scenarios: tuple[str, ...],
    target: Path | None,
    overrides: tuple[str, ...],
    devices: tuple[int, ...],
    values: int,
    count: int,
    sharing: tuple[int, int],
    broker: BrokerKind,
) -> int:
    """What rounds cost: of whole SCENARIOs (default: the demo), or by the number of devices."""
    logs.configure("bench", "", "warning")
    if not devices:
        if target is None:
            raise click.UsageError("scenarios are measured for a file, expected --json PATH")
        return _scenarios(scenarios or ("demo",), overrides, target)
    if scenarios or overrides:
        raise click.UsageError("--devices makes its own scenario, expected it without SCENARIO and --set")
    k, n = sharing
    return _crowds(devices, CrowdSettings(values, count, n, k, broker), target)


def _scenarios(names: tuple[str, ...], overrides: tuple[str, ...], target: Path) -> int:
    chosen = [load_scenario(name, overrides) for name in names]
    progress = Progress()
    measured: dict[str, RoundFigures] = {}
    with tempfile.TemporaryDirectory(prefix="fedpruneshare-bench-") as folder:
        for number, scenario in enumerate(chosen):
            try:
                finished = run_scenario(scenario, RunOptions(Path(folder) / str(number)), progress)
            finally:
                progress.end()
            measured[scenario.name] = measure_rounds(finished)
    write_measurements(target, measured)
    click.echo(f"figures: {target}")
    return 0 if all(figures.succeeded for figures in measured.values()) else 1


def _crowds(devices: tuple[int, ...], settings: CrowdSettings, target: Path | None) -> int:
    measured: list[Crowd] = []
    for count in devices:
        with tempfile.TemporaryDirectory(prefix="fedpruneshare-bench-") as folder:
            measured.append(measure_crowd(count, settings, Path(folder), lambda line: click.echo(line, err=True)))
        if target is not None:
            write_crowds(target, measured)  # what took minutes is kept if a later size fails
    click.echo(table(measured))
    if len(measured) > 1:
        click.echo(growth(measured))
    if target is not None:
        click.echo(f"figures: {target}")
    return 1 if any(one.rounds_failed for one in measured) else 0
