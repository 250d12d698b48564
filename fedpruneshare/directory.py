"""The directory: who is who, signed by an offline root (docs/protocol.md §7.1).

Public keys, brokers, the device roster and the floors of one federation stand in one versioned file. The coordinator
cannot change it, so it cannot hand out keys of its own for the aggregators or fill the roster with inventions.
File format: one JSON line holding the root's signature, then the signed JSON bytes exactly as they were signed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.errors import SettingsError, SignatureError
from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.link import BrokerAddress
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES, Identifier
from fedpruneshare.sealing import Identity, verify
from fedpruneshare.topics import Role

_DOMAIN: Final = b"fedpruneshare/directory/1\0"
_MAX_BYTES: Final = 4 * 1024 * 1024
HexKey = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all entries."""


class Party(_Entry, frozen=True):
    """Public keys of one party, hex: Ed25519 `signing`, X25519 `sealing`."""

    signing: HexKey
    sealing: HexKey


class Service(_Entry, frozen=True):
    """A party with a broker of its own."""

    signing: HexKey
    sealing: HexKey
    host: str
    port: Annotated[int, Meta(ge=1, le=65_535)]

    @property
    def address(self) -> BrokerAddress:
        """Where its broker listens."""
        return BrokerAddress(self.host, self.port)


class Directory(_Entry, frozen=True):
    """One version of the federation's directory. `version` strictly rises.

    `plain_updates`: whether plans may have updates travel unshared, to the one aggregator there is (§5.10). A
    coordinator alone cannot bring that about, and where it is allowed nothing else is.
    """

    federation: Identifier
    version: Annotated[int, Meta(ge=1)]
    coordinator_id: Identifier
    coordinator: Service
    aggregators: Annotated[dict[Identifier, Service], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    devices: Annotated[dict[Identifier, Party], Meta(max_length=MAX_DEVICES)]
    min_devices: Annotated[int, Meta(ge=LOWEST_FLOOR)]
    min_devices_segment: Annotated[int, Meta(ge=LOWEST_FLOOR)]
    plain_updates: bool = False

    def signing_key(self, role: Role, ident: str) -> bytes:
        """Raw Ed25519 key of a party in a role. Raises `SignatureError` if there is no such party."""
        return bytes.fromhex(self._party(role, ident).signing)

    def sealing_key(self, role: Role, ident: str) -> bytes:
        """Raw X25519 key of a party in a role. Raises `SignatureError` if there is no such party."""
        return bytes.fromhex(self._party(role, ident).sealing)

    def _party(self, role: Role, ident: str) -> Party | Service:
        rosters: dict[Role, Mapping[str, Party | Service]] = {
            Role.DEVICE: self.devices,
            Role.AGGREGATOR: self.aggregators,
            Role.COORDINATOR: {self.coordinator_id: self.coordinator},
        }
        if ident not in rosters[role]:
            raise SignatureError(f"{ident!r} is no {role} of federation {self.federation!r}, version {self.version}")
        return rosters[role][ident]


def write_directory(path: Path, directory: Directory, root: Identity) -> None:
    """Sign with the root key and write atomically."""
    body = msgspec.json.encode(directory)
    header = json.dumps({"signature": root.sign(_DOMAIN + body).hex()}).encode()
    partial = path.with_name(path.name + ".part")
    with open(partial, "wb") as file:
        file.write(header + b"\n" + body)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_directory(path: Path, root_key: str) -> Directory:
    """Read and verify a directory file.

    `root_key`: hex Ed25519 public key of the federation's root, from the party's own settings.
    Raises `SettingsError` if the file is missing or malformed, `SignatureError` if the root did not sign it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"directory {path}: {error.strerror}, expected the federation's signed directory") from None
    if len(data) > _MAX_BYTES:
        raise SettingsError(f"directory {path} is larger than {_MAX_BYTES} bytes")
    header, _, body = data.partition(b"\n")
    try:
        signature = bytes.fromhex(json.loads(header)["signature"])
        key = bytes.fromhex(root_key)
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"directory {path} has no signature line, expected the federation's directory") from None
    if not verify(key, _DOMAIN + body, signature):
        raise SignatureError(f"directory {path} is not signed by the root key {root_key[:16]}…")
    try:
        return msgspec.json.decode(body, type=Directory)
    except msgspec.DecodeError as error:
        raise SettingsError(f"directory {path}: {error}") from None
