"""The preflight of a coordinator's task bundle: there, whole, and the one that its store was begun with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import ModelFileError
from firmware_configs.provision.findings import FAILED, OK, Finding

_WHAT: Final = "task bundle"


def bundle_finding(place: object, store: str) -> Finding:
    """What `bundle` of the coordinator's settings names; `store`: the folder of its rounds, which belong to one bundle.

    Nothing is written, not even beside the store's database.
    """
    if not isinstance(place, str) or not place:
        return Finding(FAILED, _WHAT, "no `bundle` in the settings", "install the bundle of `provision coordinator`")
    try:
        bundle = Bundle.open(Path(place))
    except ModelFileError as error:
        return Finding(FAILED, _WHAT, str(error), f"`fedpruneshare task export TASK --out {place}`")
    known, found = _begun_with(Path(store)) if store else b"", bundle.digest
    if known and known != found:
        differing = f"{place}: SHA-256 {found.hex()[:16]}…, and store {store} was begun with {known.hex()[:16]}…"
        return Finding(FAILED, _WHAT, differing, "put that one back, or give this one a store of its own")
    task = f"{bundle.manifest.task} ({bundle.manifest.data_source} data)"
    return Finding(OK, _WHAT, f"{place}: {task}, SHA-256 {found.hex()[:16]}…")


def _begun_with(store: Path) -> bytes:
    """Digest of the bundle that a store belongs to; empty where there is none yet, or it cannot be told.

    Read as a file that nobody changes: a reader of its log would leave files beside it, of this user.
    """
    place = (store / "rounds.sqlite").absolute().as_uri() + "?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(place, uri=True)) as database:
            row = database.execute("SELECT bundle FROM run").fetchone()
    except sqlite3.Error:
        return b""
    return bytes(row[0]) if row is not None and isinstance(row[0], bytes) else b""
