"""What the commands of `provision` share: their options, the passphrase, and what they say at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from fedpruneshare.directory import Directory
from fedpruneshare.errors import SettingsError
from fedpruneshare.storage import refuse_open_file
from firmware_configs.provision.office import BUNDLES, UPDATES, Office
from firmware_configs.provision.register import missing_services

PASSPHRASE_VARIABLE: Final = "FPS_PASSPHRASE_FILE"
Command = Callable[..., Any]

_FILE = click.Path(path_type=Path)

folder_argument = click.argument("folder", type=_FILE)
passphrase_option = click.option(
    "--passphrase-file", type=_FILE, envvar=PASSPHRASE_VARIABLE, help=f"Instead of a prompt ({PASSPHRASE_VARIABLE})."
)


def wishes_options(command: Command) -> Command:
    """The options that make `Wishes`."""
    for option in reversed(
        (
            click.option("--out", type=_FILE, help="Folder to write to instead of the root's own."),
            click.option("--install-prefix", default="", help="Where the bundle will lie; {name} is the party's."),
            click.option("--tar", "as_tar", is_flag=True, help="A tar file instead of a folder."),
            click.option("--replace", is_flag=True, help="Make anew what is there; old keys are revoked."),
            click.option("--broker-user", default="", help="Whom the broker runs as, if not who starts it."),
        )
    ):
        command = option(command)
    return command


def read_passphrase(path: Path | None, *, confirm: bool = False) -> str:
    """The passphrase from a file that is its owner's only, or from a prompt. Raises `SettingsError`."""
    if path is None:
        return str(click.prompt("Passphrase of the root", hide_input=True, confirmation_prompt=confirm, err=True))
    refuse_open_file(path, "passphrase file")
    try:
        return path.read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"passphrase file {path}: expected one line of text") from None


def unlock(office: Office, passphrase_file: Path | None) -> None:
    """Unlock the office, and say where its clock seems to have gone back. Raises `SettingsError`."""
    office.unlock(read_passphrase(passphrase_file))
    if fault := office.clock_fault():
        click.echo(f"warning: {fault}", err=True)


def announce(office: Office, directory: Directory | None, before: int, lines: Sequence[str] = ()) -> None:
    """Say what was done (`lines`), which directory is in force and, if newer than `before`, what is to be carried.

    After the commit: until then nothing was done.
    """
    for line in lines:
        click.echo(line)
    if directory is None:
        missing = ", ".join(missing_services(office.settings, office.register))
        click.echo(f"no directory yet: it will be signed once there are bundles for {missing}")
        return
    if directory.version == before:
        click.echo(f"directory version {before} stays in force")
        return
    click.echo(f"directory version {directory.version}, SHA-256 {office.digest()}")
    click.echo("copy to each host what is new, then kill -HUP its broker and its service:")
    for name in (directory.coordinator_id, *directory.aggregators):
        click.echo(f"  cp -r {office.folder / UPDATES / name}/. {office.register.parties[name].home}/")
    click.echo(f"bundles that still lie in {office.folder / BUNDLES} have it already;")
    click.echo("devices that are connected get the directory from the coordinator")
