"""Packages of other people that a benchmark compares with: loaded on use, with one thread, from a literal name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

#: Read by the libraries when they are loaded.
ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MPYC_MAXWORKERS": "0",  # no thread beside the one that runs
}


def load(module: str) -> Any:
    """Import a module by name; `Any`, for mypy need not know it. Raises `ImportError`, also where it is broken."""
    os.environ.update(ONE_THREAD)
    with _quiet_arguments():
        return importlib.import_module(module)


@contextmanager
def _quiet_arguments() -> Iterator[None]:
    # mpyc reads the command line of whoever imports it, and logs to standard output unless that says no.
    kept = sys.argv
    sys.argv = [kept[0] if kept else "", "--no-log"]
    try:
        yield
    finally:
        sys.argv = kept


def why_not(module: str) -> str | None:
    """None if a module can be imported, else why it cannot."""
    try:
        load(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            return "not installed"
        return f"installed, but without {error.name}"
    except ImportError as error:
        return f"installed, but does not import: {error}"
    return None


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, None if there is none of this name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
