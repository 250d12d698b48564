"""`fedpruneshare coordinator run --config FILE.toml`."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.service import Coordinator
from coordinator.settings import CoordinatorSettings
from coordinator.supports import check_widths
from coordinator.workbench import Workbench
from fedpruneshare import logs
from fedpruneshare.at_work import at_work
from fedpruneshare.moving import Brokers, control_broker, follow
from fedpruneshare.party import Party
from fedpruneshare.process import open_link, serve
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role


@click.group()
def coordinator() -> None:
    """Plan rounds, open sums, publish the next model."""


@coordinator.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of the coordinator.")
def run(config: Path) -> int:
    """Run all rounds of the settings, resuming from the store. Exit code 1 if too many rounds failed."""
    settings = load_settings(config, CoordinatorSettings)
    with at_work(Path(settings.store)):
        return main(settings)


def main(settings: CoordinatorSettings) -> int:
    """Run one coordinator to the end of its rounds; returns its exit code."""
    party = Party.load(settings.party, Role.COORDINATOR)
    logs.rename("coordinator", party.ident)
    bench = Workbench.open(Path(settings.bundle), Path(settings.store), settings.coding)
    check_widths(settings, bench.facts.groups, bench.bundle.manifest.uncut_reason)

    def at(brokers: Brokers) -> Coordinator:
        (place,) = brokers.values()
        return Coordinator(party, settings, open_link(place, party.ident, settings.link), bench)

    return serve(lambda: follow(party, control_broker, at), party, settings.link.tls)
