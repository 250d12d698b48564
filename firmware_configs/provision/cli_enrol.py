"""`fedpruneshare provision enrol`: keys made where they stay, in three steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fedpruneshare.errors import SettingsError
from fedpruneshare.topics import Role
from firmware_configs.provision.bundles import write_private
from firmware_configs.provision.enrolment import Applicant, accept, make_request
from firmware_configs.provision.installing import install
from firmware_configs.provision.office import Office
from firmware_configs.provision.parties import Wishes, check_spelling
from firmware_configs.provision.words import (
    announce,
    folder_argument,
    passphrase_option,
    unlock,
    wishes_options,
)

_FILE = click.Path(path_type=Path)


@click.group()
def enrol() -> None:
    """Take parties in whose private keys never leave their own machine."""


@enrol.command()
@folder_argument
@click.option("--federation", required=True, help="Name of the federation.")
@click.option("--name", required=True, help="Name the operator gave out: a-z, 0-9, -.")
@click.option(
    "--role",
    type=click.Choice([one.value for one in Role]),
    default=Role.DEVICE.value,
    show_default=True,
    help="What it will be.",
)
@click.option("--keys", is_flag=True, help="Ask for new signing and sealing keys; the current ones vouch for them.")
@click.option("--hybrid", is_flag=True, help="Hybrid keys, which a post-quantum federation wants.")
@click.option("--replace", is_flag=True, help="Write over an earlier request.")
def request(*, folder: Path, federation: str, name: str, role: str, keys: bool, hybrid: bool, replace: bool) -> None:
    """On the device: make keys in FOLDER, and NAME.request to be carried to the operator."""
    check_spelling(name)
    check_spelling(federation, "federation")
    path = folder / f"{name}.request"
    if path.exists() and not replace:
        raise SettingsError(f"{path} exists, expected it carried to the operator (--replace asks again)")
    data, key_id = make_request(folder, Applicant(federation, name, Role(role), hybrid), new_keys=keys)
    write_private(path, data)
    click.echo(f"{path}: key {key_id}, which the operator should see, too")


@enrol.command(name="accept")
@folder_argument
@click.argument("requests", nargs=-1, required=True, type=_FILE)
@passphrase_option
@wishes_options
def accept_command(*, folder: Path, requests: Sequence[Path], passphrase_file: Path | None, **wishes: Any) -> None:
    """At the root: answer REQUESTS with bundles that hold no keys. All of them, or none."""
    wanted = Wishes(**wishes)
    with Office.open(folder) as office:
        unlock(office, passphrase_file)
        before, lines = office.register.version, []
        for path in requests:
            name, key_id = _accepted(office, path, wanted)
            lines.append(f"{name}: {wanted.path(office, name)} (key {key_id}: compare with what {name} printed)")
        announce(office, office.commit(), before, lines)


def _accepted(office: Office, path: Path, wanted: Wishes) -> tuple[str, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"request {path}: {error.strerror}, expected what `enrol request` wrote") from None
    try:
        return accept(office, data, wanted)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


@enrol.command()
@folder_argument
@click.argument("bundle", type=_FILE)
def finish(*, folder: Path, bundle: Path) -> None:
    """On the device: install BUNDLE, of an enrolment or a renewal, beside the keys in FOLDER."""
    name, root_key = install(folder, bundle)
    click.echo(f"{name}: installed in {folder}, public root key {root_key}: compare with what `init` printed")
