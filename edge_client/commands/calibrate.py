"""`fedpruneshare device calibrate`: measure this device, write `calibration.toml`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_client.adaptation.calibration import Calibration, load_calibration, save_calibration
from edge_client.board.profiles import find_board, load_board
from edge_client.settings import DeviceSettings
from fedpruneshare.at_work import is_at_work
from fedpruneshare.errors import SettingsError
from fedpruneshare.party import Party
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role

if TYPE_CHECKING:
    from edge_client.calibrating.bench import Outcome

#: What can be measured, in this order.
NAMES = ("steps", "sharing", "links", "power", "memory")
_WHY_NOT = (
    "expected it to be stopped: it would share the processor, and a broker that knows it by its certificate would end "
    "its connection; --force measures all the same"
)


def _names(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[str, ...]:
    names = tuple(name for name in given.split(",") if name)
    if strangers := sorted(set(names) - set(NAMES)):
        raise click.BadParameter(f"{strangers[0]!r}, expected some of {', '.join(NAMES)}")
    return names


def _widths(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[float, ...]:
    try:
        widths = tuple(sorted({1.0, *map(float, given.split(","))}, reverse=True))
    except ValueError:
        raise click.BadParameter(f"{given!r}, expected numbers such as 0.5,0.25") from None
    if not 0 < widths[-1] <= widths[0] <= 1:
        raise click.BadParameter(f"{given!r}, expected numbers above 0 and up to 1")
    return widths


@click.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of this device.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write [default: the one `run` reads].")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="For each part.")
@click.option("--skip", callback=_names, default="", metavar="PART[,PART]…", help=f"Not these of {', '.join(NAMES)}.")
@click.option("--widths", callback=_widths, default="1,0.5,0.25", show_default=True, help="Kept shares of channels.")
@click.option("--batch-size", type=click.IntRange(1, 65_536), default=32, show_default=True, help="Of a step.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Task bundle that names the channels to cut [default: that of the settings].",
)
@click.option("--force", is_flag=True, help="Measure beside the device that is at work.")
def calibrate(
    *,
    config: Path,
    out: Path | None,
    seconds: float,
    skip: tuple[str, ...],
    widths: tuple[float, ...],
    batch_size: int,
    bundle: Path | None,
    force: bool,
) -> int:
    """Measure step times, sharing, uplinks, power and memory of this device.

    A part that cannot be measured is named with its reason and left out of the file; one that is skipped keeps what
    the file said before. Exit code 1 if nothing at all could be measured.
    """
    from edge_client.calibrating import bench as calibrating  # brings torch, which the other commands do without

    settings = load_settings(config, DeviceSettings)
    if not force and is_at_work(Path(settings.store)):
        raise SettingsError(f"store {settings.store}: its device is at work, {_WHY_NOT}")
    target = out or Path(settings.calibration or Path(settings.store) / "calibration.toml")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # before half a minute of work
    party = Party.load(settings.party, Role.DEVICE)
    if bundle is None and settings.task.bundle:
        bundle = Path(settings.task.bundle)
    bench = calibrating.Bench(settings, party, seconds, batch_size, widths, bundle)
    board = load_board(settings.board) if settings.board else find_board(bench.root)
    wanted = [name for name in NAMES if name not in skip]
    with _display(wanted) as tells:
        outcome = calibrating.calibrate(bench, board.name, _before(target), tells)
    _say(outcome)
    if len(outcome.failed) == len(wanted):
        return 1
    save_calibration(target, outcome.calibration)
    click.echo(f"calibration: {target}")
    return 0


def _before(target: Path) -> Calibration | None:
    try:
        return load_calibration(target) if target.exists() else None
    except SettingsError:
        return None  # it is about to be replaced


def _say(outcome: Outcome) -> None:
    for name in NAMES:
        for note in outcome.notes.get(name, ()):
            click.echo(f"{name:8} {note}")
        if name in outcome.failed:
            click.echo(f"{name:8} left out: {outcome.failed[name]}", err=True)


@contextmanager
def _display(names: list[str]) -> Iterator[dict[str, Callable[[float], None]]]:
    """One bar on a terminal that can show it, a line for each part elsewhere."""
    if sys.stderr.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bars:
            made = {name: bars.add_task(f"{name:8}", total=1.0) for name in names}
            yield {name: partial(_advance, bars.update, task) for name, task in made.items()}
        return
    begun: set[str] = set()

    def begin(name: str, _part: float) -> None:
        if name not in begun:
            begun.add(name)
            click.echo(f"measuring {name}", err=True)

    yield {name: partial(begin, name) for name in names}


def _advance(update: Callable[..., None], task: int, part: float) -> None:
    update(task, completed=part)
