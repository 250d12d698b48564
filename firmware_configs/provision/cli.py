"""`fedpruneshare provision`: the offline root of a federation, bundles for its parties, and the preflight."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fedpruneshare.errors import SettingsError
from fedpruneshare.process import leave_no_core
from fedpruneshare.storage import write_atomically
from fedpruneshare.topics import Role
from firmware_configs.provision import vault
from firmware_configs.provision.check import examine
from firmware_configs.provision.cli_enrol import enrol
from firmware_configs.provision.findings import FAILED
from firmware_configs.provision.office import CURRENT, Office
from firmware_configs.provision.parties import Wishes, renew, revoke, take_in
from firmware_configs.provision.register import DEFAULT_COHORT, FederationSettings, Place, Profile, missing_services
from firmware_configs.provision.words import (
    announce,
    folder_argument,
    passphrase_option,
    read_passphrase,
    unlock,
    wishes_options,
)


class _OneLine(click.Group):
    """What the disk does not take or give ends a command in one line, as other mistakes do."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, with errors by name. Raises `SettingsError`."""
        leave_no_core()
        try:
            return super().invoke(ctx)
        except OSError as error:
            found = f"{error.filename or 'the disk'}: {error.strerror or error}"
            raise SettingsError(f"{found}, expected a place with room that this user can read and write") from None


@click.group(cls=_OneLine)
def provision() -> None:
    """Make keys and certificates: the offline root, one bundle a party, renewal, revocation."""


provision.add_command(enrol)


# --------------------------------------------------------------------------- beginning


@provision.command()
@folder_argument
@passphrase_option
@click.option("--federation", required=True, help="Name of the federation: a-z, 0-9, -.")
@click.option("--aggregators", required=True, help="Their brokers: a=host:port,b=host:port,…")
@click.option("--coordinator", required=True, help="Its broker: host:port, or name=host:port.")
@click.option(
    "--profile",
    type=click.Choice([one.value for one in Profile]),
    help="small 2 of 3, standard 3 of 5, careful 4 of 5.",
)
@click.option("--threshold", type=int, help="How many aggregators open a sum, for other numbers than the profiles'.")
@click.option("--min-devices", type=int, default=8, show_default=True, help="No sum of fewer devices is opened.")
@click.option("--min-devices-segment", type=int, default=3, show_default=True, help="The same for a rung.")
@click.option("--task", default="hapt", show_default=True, help="What devices train.")
@click.option("--task-parts", type=int, default=10, show_default=True, help="Into how many parts its data are dealt.")
@click.option("--rounds", type=int, default=20, show_default=True, help="How many rounds the coordinator begins with.")
@click.option("--certificate-days", type=float, default=90, show_default=True, help="How long certificates last.")
@click.option("--post-quantum", is_flag=True, help="Hybrid keys, and shares sealed with nothing else.")
def init(
    *,
    folder: Path,
    passphrase_file: Path | None,
    aggregators: str,
    coordinator: str,
    profile: str | None,
    threshold: int | None,
    **settings: Any,
) -> None:
    """Begin a federation in FOLDER: root keys, certificate authority, settings."""
    named = [_place(text, f"--aggregators {text}") for text in aggregators.split(",")]
    places = dict(named)
    if twice := [name for name, times in Counter(name for name, _ in named).items() if times > 1]:
        raise SettingsError(
            f"--aggregators names {', '.join(twice)} more than once, expected a name of its own for each"
        )
    name, place = _place(coordinator if "=" in coordinator else f"coordinator={coordinator}", "--coordinator")
    whole = FederationSettings(
        aggregators=places,
        coordinator=place,
        coordinator_id=name,
        threshold=_threshold(profile, threshold, len(places)),
        cohort=max(DEFAULT_COHORT, settings["min_devices"]),
        **settings,
    )
    passphrase = read_passphrase(passphrase_file, confirm=True)
    with Office.create(folder, whole, passphrase) as office:
        click.echo(f"federation {whole.federation} in {folder}, public root key {office.register.root_key}")
        click.echo(
            f"keep {folder / vault.ROOT_FILE} and its passphrase off every host of the federation, and back them up"
        )


def _place(text: str, where: str) -> tuple[str, Place]:
    name, _, address = text.strip().partition("=")
    host, _, port = address.rpartition(":")
    if not name or not host or not port.isdecimal():
        raise SettingsError(f"{where}: found {text!r}, expected name=host:port")
    return name, Place(host.strip("[]"), int(port))


def _threshold(profile: str | None, threshold: int | None, count: int) -> int:
    if threshold is not None:
        return threshold
    fitting = [one for one in Profile if one.aggregators == count]
    chosen = Profile(profile) if profile else next(iter(fitting), None)
    if chosen is None or chosen not in fitting:
        known = ", ".join(f"{one} ({one.threshold} of {one.aggregators})" for one in Profile)
        raise SettingsError(f"{count} aggregators and profile {profile or 'none'}, expected {known}, or --threshold")
    return chosen.threshold


@contextmanager
def _at_work(folder: Path, passphrase_file: Path | None) -> Iterator[Office]:
    """The office, unlocked."""
    with Office.open(folder) as office:
        unlock(office, passphrase_file)
        yield office


# --------------------------------------------------------------------------- bundles


@provision.command()
@folder_argument
@click.argument("names", nargs=-1, required=True)
@passphrase_option
@wishes_options
def aggregator(*, folder: Path, names: Sequence[str], passphrase_file: Path | None, **wishes: Any) -> None:
    """Make bundles for aggregators NAMES, brokers included."""
    _services(folder, names, Role.AGGREGATOR, passphrase_file, Wishes(**wishes))


@provision.command()
@folder_argument
@passphrase_option
@wishes_options
def coordinator(*, folder: Path, passphrase_file: Path | None, **wishes: Any) -> None:
    """Make the bundle of the coordinator, its broker included."""
    _services(folder, (), Role.COORDINATOR, passphrase_file, Wishes(**wishes))


def _services(folder: Path, names: Sequence[str], role: Role, passphrase_file: Path | None, wishes: Wishes) -> None:
    with _at_work(folder, passphrase_file) as office:
        before = office.register.version
        chosen = names or (office.settings.coordinator_id,)
        for name in chosen:
            take_in(office, name, role, wishes)
        lines = [f"{name}: {wishes.path(office, name)}" for name in chosen]
        announce(office, office.commit(), before, lines)


@provision.command()
@folder_argument
@click.argument("names", nargs=-1)
@click.option("--count", type=click.IntRange(1, 4096), help="How many devices, named by --prefix and a number.")
@click.option("--prefix", default="device-", show_default=True, help="What their names begin with.")
@passphrase_option
@wishes_options
def device(
    *, folder: Path, names: Sequence[str], count: int | None, prefix: str, passphrase_file: Path | None, **wishes: Any
) -> None:
    """Make bundles for devices NAMES, or for --count of them."""
    if bool(names) == bool(count):
        raise SettingsError("device: expected either names or --count")
    width = max(2, len(str(count)))
    chosen = names or [f"{prefix}{number:0{width}d}" for number in range(1, (count or 0) + 1)]
    wanted = Wishes(**wishes)
    with _at_work(folder, passphrase_file) as office:
        before = office.register.version
        with click.progressbar(length=2 * len(chosen), label=f"{len(chosen)} devices", file=sys.stderr) as bar:
            for name in chosen:
                take_in(office, name, Role.DEVICE, wanted)
                bar.update(1)
            directory = office.commit(on_bundle=lambda: bar.update(1))
        ids = {name: office.register.parties[name].key_ids()[0] for name in chosen}
        lines = [f"{name}: {wanted.path(office, name)} (key {key_id})" for name, key_id in ids.items()]
        announce(office, directory, before, lines)


# --------------------------------------------------------------------------- in the course of time


@provision.command(name="renew")
@folder_argument
@click.argument("names", nargs=-1)
@click.option("--all", "everybody", is_flag=True, help="Everybody in good standing.")
@click.option("--keys", is_flag=True, help="New signing and sealing keys, too; called again, the old ones end.")
@passphrase_option
@wishes_options
def renew_command(
    *, folder: Path, names: Sequence[str], everybody: bool, keys: bool, passphrase_file: Path | None, **wishes: Any
) -> None:
    """Make new certificates for NAMES; `provision enrol finish` installs what this makes."""
    if bool(names) == everybody:
        raise SettingsError("renew: expected either names or --all")
    wanted = Wishes(**wishes)
    with _at_work(folder, passphrase_file) as office:
        before = office.register.version
        parties = office.register.parties
        lines = []
        for name in names or [name for name, record in parties.items() if not record.revoked_at]:
            path, done = renew(office, name, wanted, keys=keys)
            lines.append(f"{name}: {path}, {', '.join(done)}")
        announce(office, office.commit(), before, lines)


@provision.command(name="revoke")
@folder_argument
@click.argument("names", nargs=-1, required=True)
@passphrase_option
def revoke_command(*, folder: Path, names: Sequence[str], passphrase_file: Path | None) -> None:
    """Shut devices NAMES out: roster, keys, certificates, and a new directory."""
    with _at_work(folder, passphrase_file) as office:
        before = office.register.version
        for name in names:
            revoke(office, name)
        parties = office.register.parties
        lines = [f"{name}: revoked, with keys {', '.join(parties[name].key_ids())}" for name in names]
        announce(office, office.commit(), before, lines)


@provision.command()
@folder_argument
@passphrase_option
@click.option("--new-epoch", is_flag=True, help="Round numbers start afresh, after the coordinator's key was lost.")
@click.option("--copy-to", type=click.Path(path_type=Path), multiple=True, help="Also write the directory there.")
def directory(*, folder: Path, passphrase_file: Path | None, new_epoch: bool, copy_to: Sequence[Path]) -> None:
    """Sign the directory anew, after federation.toml was edited or before it expires."""
    with _at_work(folder, passphrase_file) as office:
        before = office.register.version
        if missing := missing_services(office.settings, office.register):
            raise SettingsError(f"no directory yet: {', '.join(missing)} without keys, expected a bundle for each")
        if new_epoch:
            office.begin_epoch()
        signed = office.commit(sign=True)
        for place in copy_to:
            write_atomically(place, (folder / CURRENT).read_bytes())
        announce(office, signed, before)


@provision.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="Settings of a device or service.")
@click.option("--offline", is_flag=True, help="Look at files only, not at brokers.")
def check(*, config: Path, offline: bool) -> int:
    """Preflight: certificates, clock, directory, brokers and access lists, by real connections. Exit code 1 if not."""
    findings = examine(config, is_offline=offline)
    for finding in findings:
        click.echo(str(finding))
    return int(any(finding.state == FAILED for finding in findings))
