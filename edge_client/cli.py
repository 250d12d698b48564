"""`fedpruneshare device run --config FILE.toml`."""

from __future__ import annotations

from pathlib import Path

import click

from edge_client.running import main
from edge_client.settings import DeviceSettings
from fedpruneshare.settings import load_settings


@click.group()
def device() -> None:
    """Take part in rounds as a device: train, prune, share, upload."""


@device.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of this device.")
def run(config: Path) -> int:
    """Run one device until SIGTERM."""
    return main(load_settings(config, DeviceSettings))
