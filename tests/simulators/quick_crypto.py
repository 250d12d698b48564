"""Stand-ins for signatures and seals that cost microseconds, so that thousands of schedules can be simulated.

They keep what the rules depend on (a signature is of one key and exact bytes, a seal opens for one key, context and
suite, lengths are the real ones) and nothing else: anybody could forge them. One schedule in a hundred uses real ones.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedpruneshare import keys, storage
from fedpruneshare.errors import SealError
from fedpruneshare.keys import Identity, KeyPair, PublicKeys
from fedpruneshare.wire_types import Suite

PACKAGES = ("fedpruneshare", "aggregator", "coordinator", "edge_client", "testbed", "simulators")


@contextmanager
def replaced(function: Callable[..., Any], stand_in: Callable[..., Any]) -> Iterator[None]:
    """Put a stand-in wherever a module of the project has a function by name, for as long as it lasts."""
    places = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").partition(".")[0] in PACKAGES
        for name, value in list(vars(module).items())
        if value is function
    ]
    for module, name in places:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, function)


def _mac(key: bytes, *parts: bytes, size: int) -> bytes:
    digest = hashlib.blake2b(key=key[:64], digest_size=size)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _sign(self: KeyPair, data: bytes) -> bytes:
    return _mac(self.public.signing, data, size=64)


def _verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    return _mac(public_key, data, size=64) == signature


def _tag(key: PublicKeys, plaintext: bytes, context: bytes, suite: Suite) -> bytes:
    return _mac(key.hybrid[:64] if suite.is_hybrid else key.sealing, suite.encode(), context, plaintext, size=16)


def _seal(to: PublicKeys, plaintext: bytes, context: bytes, suite: Suite) -> bytes:
    return bytes(suite.enc_bytes) + bytes(plaintext) + _tag(to, plaintext, context, suite)


def _unseal(self: KeyPair, sealed: bytes, context: bytes, suite: Suite) -> bytes:
    plaintext = bytes(sealed[suite.enc_bytes : -16])
    if len(sealed) <= suite.seal_bytes or sealed[-16:] != _tag(self.public, plaintext, context, suite):
        raise SealError(f"sealed payload of {len(sealed)} bytes does not open")
    return plaintext


@contextmanager
def quick_crypto() -> Iterator[None]:
    """Every signature and seal in this process is a stand-in."""
    with (
        patch.object(KeyPair, "sign", _sign),
        patch.object(KeyPair, "unseal", _unseal),
        replaced(keys.verify, _verify),
        replaced(keys.seal, _seal),
    ):
        yield


_pool: dict[str, list[Identity]] = {}


def identity(name: str, number: int) -> Identity:
    """The `number`th identity of a party that was ever made in this process: keys are expensive."""
    made = _pool.setdefault(name, [])
    while len(made) <= number:
        made.append(Identity.generate(name) if not made else made[-1].rotated())
    return made[number]


class KeptDatabase:
    """An SQLite database in memory that outlives the connections to it; `cut` is what SIGKILL leaves of one."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA foreign_keys=ON")

    def connect(self, schema: str) -> Connection:
        """A new connection; what an earlier one had not committed is rolled back."""
        if self._db.in_transaction:
            self._db.rollback()
        self._db.executescript(schema)
        return Connection(self._db)


class Connection:
    """What `open_database` gives, as far as the stores use it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db: sqlite3.Connection | None = db
        self.execute, self.executemany = db.execute, db.executemany

    @property
    def in_transaction(self) -> bool:
        return self._db is not None and self._db.in_transaction

    def close(self) -> None:
        self._db = None
        self.execute = self.executemany = _closed  # type: ignore[assignment]


def _closed(*_: Any) -> Any:
    raise sqlite3.ProgrammingError("the process has ended")


@contextmanager
def databases_in_memory(kept: dict[Path, KeptDatabase], opened: Callable[[Connection], None]) -> Iterator[None]:
    """Stores open databases of `kept`, by path; `opened` is told of each connection."""

    def open_database(path: Path, schema: str) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = kept.setdefault(path, KeptDatabase()).connect(schema)
        opened(connection)
        return connection

    with replaced(storage.open_database, open_database):
        yield
