"""`fedpruneshare device run --config FILE.toml` and `fedpruneshare device power`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from edge_client.commands.calibrate import calibrate
from edge_client.commands.doctor import doctor
from edge_client.commands.energy import energy
from edge_client.commands.predict import predict
from edge_client.energy.meters import Source, find_meter
from edge_client.energy.recorder import Energy, EnergyRecorder
from edge_client.energy.trace import PowerTrace
from edge_client.settings import DeviceSettings
from fedpruneshare.errors import MeterError
from fedpruneshare.settings import load_settings


@click.group()
def device() -> None:
    """Take part in rounds as a device: train, prune, share, upload."""


@device.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of this device.")
def run(config: Path) -> int:
    """Run one device until SIGTERM."""
    from edge_client.running import main  # brings torch, which the other commands do without

    return main(load_settings(config, DeviceSettings))


@device.command()
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=5.0, show_default=True, help="How long.")
@click.option("--every", type=click.FloatRange(0.001, 60), default=0.1, show_default=True, help="Between samples.")
@click.option("--csv", "record", type=click.Path(path_type=Path), help="Read an external meter's record instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True), default=Path("/"), help="Read a copy of a board's files."
)
def power(*, seconds: float, every: float, record: Path | None, as_json: bool, root: Path) -> None:
    """Measure what this board takes now, with the sensor it has: watts, joules and their source."""
    taken, source = _recorded(record) if record else _measured(root, seconds, every)
    watts = taken.joules / taken.seconds
    if as_json:
        click.echo(json.dumps({"watts": watts, **asdict(taken), "source": asdict(source)}))
        return
    click.echo(f"{watts:.3f} W, {taken.joules:.2f} J in {taken.seconds:.1f} s ({taken.readings} readings)")
    click.echo(f"{source.sensor}: {source.covers}; {source.resolution}")


def _measured(root: Path, seconds: float, every_s: float) -> tuple[Energy, Source]:
    recorder = EnergyRecorder(find_meter(root), time.monotonic)
    with recorder.sampling(every_s):
        time.sleep(seconds)
    if recorder.failure:
        raise MeterError(recorder.failure)
    return recorder.taken, recorder.source


def _recorded(path: Path) -> tuple[Energy, Source]:
    trace = PowerTrace.read(path)
    start_s, end_s = trace.seconds[0], trace.seconds[-1]
    return Energy(trace.joules(start_s, end_s), end_s - start_s, len(trace.seconds)), trace.source


device.add_command(calibrate)
device.add_command(doctor)
device.add_command(energy)
device.add_command(predict)
