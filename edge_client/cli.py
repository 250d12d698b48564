"""`fedpruneshare device run --config FILE.toml` and `fedpruneshare device power`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import msgspec

from edge_client.energy.meters import find_meter
from edge_client.energy.recorder import EnergyRecorder
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
@click.option(
    "--seconds", type=click.FloatRange(0.1, 86_400), default=5.0, show_default=True, help="How long to measure."
)
@click.option(
    "--every", type=click.FloatRange(0.001, 60), default=0.1, show_default=True, help="Seconds between samples."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True), default=Path("/"), help="Read a recorded tree of files."
)
def power(seconds: float, every: float, as_json: bool, root: Path) -> int:
    """Measure what this board takes now, with the sensor it has: watts, joules and their source."""
    recorder = EnergyRecorder(find_meter(root), time.monotonic)
    with recorder.sampling(every):
        time.sleep(seconds)
    if recorder.failure:
        raise MeterError(recorder.failure)
    taken = recorder.phases["idle"]
    watts = taken.joules / taken.seconds
    if as_json:
        figures = {"watts": watts, "joules": taken.joules, "seconds": taken.seconds, "readings": taken.readings}
        click.echo(json.dumps({**figures, "source": msgspec.to_builtins(recorder.source)}))
    else:
        source = recorder.source
        click.echo(f"{watts:.3f} W, {taken.joules:.2f} J in {taken.seconds:.1f} s ({taken.readings} readings)")
        click.echo(f"{source.sensor}: {source.covers}; {source.resolution}")
    return 0
