"""`fedpruneshare aggregator run --config FILE.toml`."""

from __future__ import annotations

from pathlib import Path

import click

from aggregator.service import Aggregator
from aggregator.settings import AggregatorSettings
from fedpruneshare import logs
from fedpruneshare.at_work import at_work
from fedpruneshare.directory import Directory
from fedpruneshare.moving import Brokers, brokers_of, follow
from fedpruneshare.party import Party
from fedpruneshare.process import open_link, serve
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role


@click.group()
def aggregator() -> None:
    """Hold one share per device and answer with sums."""


@aggregator.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of this aggregator.")
def run(config: Path) -> int:
    """Run one aggregator until SIGTERM."""
    settings = load_settings(config, AggregatorSettings)
    with at_work(Path(settings.store)):
        return main(settings)


def main(settings: AggregatorSettings) -> int:
    """Run one aggregator; returns its exit code."""
    party = Party.load(settings.party, Role.AGGREGATOR)
    logs.rename("aggregator", party.ident)

    first = brokers_of(party.directory)

    def places(directory: Directory) -> Brokers:
        known = first | brokers_of(directory)
        return {who: known[who] for who in (party.ident, directory.coordinator_id)}

    def at(brokers: Brokers) -> Aggregator:
        own, control = (open_link(place, party.ident, settings.link) for place in brokers.values())
        return Aggregator(party, settings, own, control)

    return serve(lambda: follow(party, places, at), party, settings.link.tls)
