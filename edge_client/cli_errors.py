"""How the operator's commands of this package end: a message and a code, never a traceback (docs/protocol.md §10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from fedpruneshare.errors import FedPruneShareError, SettingsError


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn this project's errors into exit code 2 (the operator can fix it) or 1 (anything else)."""
    try:
        yield
    except FedPruneShareError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(2 if isinstance(error, SettingsError) else 1) from error
