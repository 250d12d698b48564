"""`fedpruneshare device energy`: an external meter's record, laid beside a device's ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from edge_client.energy.attributing import attribute, read_rounds
from edge_client.energy.parts import Phase, PhaseEnergy, ledger_energy
from edge_client.energy.trace import PowerTrace
from fedpruneshare.errors import MeterError


@click.command()
@click.option("--csv", "record", type=click.Path(path_type=Path), required=True, help="The meter's: time_s, watts.")
@click.option("--ledger", type=click.Path(path_type=Path), required=True, help="The device's ledger.jsonl.")
@click.option(
    "--shift", "shift_s", type=float, default=0.0, show_default=True,
    help="Seconds to add to the meter's time to get the device's (seconds since 1970).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each round.")
def energy(*, record: Path, ledger: Path, shift_s: float, as_json: bool) -> int:
    """Joules of each phase and round from an external meter. Exit code 1 if a round has no figure.

    Round 0 is what lies between rounds.
    """
    trace, rounds = PowerTrace.read(record), read_rounds(ledger)
    if not rounds:
        raise MeterError(f"{ledger}: no round has its phases, expected rounds of a device that takes part")
    is_whole = True
    for one in rounds:
        found = attribute(trace, one.spans, shift_s)
        is_whole &= one.number == 0 or all(part.joules is not None for part in found.values())
        if as_json:
            click.echo(json.dumps({"round": one.number, "energy": ledger_energy(found)}))
        else:
            click.echo("\n".join(_lines(one.number, found)))
    if not as_json:
        click.echo(f"{trace.source.sensor}: {trace.source.covers}; {trace.source.resolution}")
    return 0 if is_whole else 1


def _lines(number: int, found: Mapping[Phase, PhaseEnergy]) -> list[str]:
    """One phase a line, and what all of them took; or the one reason why there is no figure."""
    known = [part.joules for part in found.values() if part.joules is not None]
    if len(known) < len(found):
        return [f"round {number}: {next(part.reason for part in found.values() if part.reason)}"]
    total_s = sum(part.seconds for part in found.values())
    return [f"round {number}: {sum(known):.3f} J in {total_s:.2f} s"] + [
        f"  {phase:<8} {part.joules:10.3f} J ± {part.uncertainty_j:.3f} J  {part.seconds:9.3f} s"
        for phase, part in found.items()
    ]
