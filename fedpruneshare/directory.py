"""The directory: who is who, signed by an offline root (docs/protocol.md §7.1).

Public keys, brokers, the device roster, revocations and the floors of one federation stand in one versioned file. The
coordinator cannot change it, so it cannot hand out keys of its own for the aggregators, or invent devices.
File format: one JSON line holding the root's signature, then the signed JSON bytes exactly as they were signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final
from weakref import WeakValueDictionary

import msgspec
from msgspec import Meta

from fedpruneshare.errors import SettingsError, SignatureError
from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.link import BrokerAddress
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES, Identifier
from fedpruneshare.sealing import Identity, PublicKeys, verify
from fedpruneshare.storage import write_atomically
from fedpruneshare.topics import Role

_DOMAIN: Final = b"fedpruneshare/directory/1\0"
#: No directory file is larger: 4,096 devices with two hybrid keys each take 21 MiB, with one X25519 key 0.8 MiB.
MAX_DIRECTORY_BYTES: Final = 24 * 1024 * 1024
#: Round numbers of one epoch (docs/protocol.md §4.1): after the plan key was lost, the root begins another one.
ROUNDS_PER_EPOCH: Final = 2**32
HexKey = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
HexHybrid = Annotated[str, Meta(pattern="^([0-9a-f]{2432})?$")]
HexKeyId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
#: Seconds since 1970, until the year 6325; 0 for never.
Time = Annotated[int, Meta(ge=0, lt=2**37)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all entries."""


class PartyKeys(_Entry, frozen=True):
    """One public key, hex: Ed25519 `signing`, X25519 `sealing`, X-Wing `hybrid` or none; until when it counts."""

    signing: HexKey
    sealing: HexKey
    hybrid: HexHybrid = ""
    expires_at: Time = 0

    def raw(self) -> PublicKeys:
        """The keys as bytes."""
        return PublicKeys(*(bytes.fromhex(half) for half in (self.signing, self.sealing, self.hybrid)))


#: The keys of a party, newest first: two while it goes from one to the next.
KeysOfParty = Annotated[tuple[PartyKeys, ...], Meta(min_length=1, max_length=2)]


class DeviceEntry(_Entry, frozen=True):
    """A device on the roster."""

    keys: KeysOfParty


class Service(_Entry, frozen=True):
    """A party with a broker of its own. `tls`: it is reached by mutual TLS; `operator`: who runs it, for people."""

    keys: KeysOfParty
    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    tls: bool = False
    operator: Annotated[str, Meta(max_length=100)] = ""

    @property
    def address(self) -> BrokerAddress:
        """Where its broker listens."""
        return BrokerAddress(self.host, self.port, self.tls)


class Directory(_Entry, frozen=True, weakref=True):
    """One version of the federation's directory. `version` strictly rises.

    `issued_at`, `expires_at`: no party believes a clock that is before the one or serves plans after the other.
    `round_epoch`: its rounds are numbered from epoch·2^32 + 1. `revoked`: key ids that count no more, and whose they
    were. `plain_updates`: whether plans may have updates travel unshared, to the one aggregator there is (§5.10). A
    coordinator alone cannot bring that about, and where it is allowed nothing else is. `post_quantum`: whether every
    seal must be hybrid. `privacy_threshold`: the lowest t of any plan, or a coordinator could have devices deal so that
    fewer aggregators than it colludes with read their updates.
    """

    federation: Identifier
    version: Annotated[int, Meta(ge=1, lt=2**48)]
    coordinator_id: Identifier
    coordinator: Service
    aggregators: Annotated[dict[Identifier, Service], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    devices: Annotated[dict[Identifier, DeviceEntry], Meta(max_length=MAX_DEVICES)]
    min_devices: Annotated[int, Meta(ge=LOWEST_FLOOR)]
    min_devices_segment: Annotated[int, Meta(ge=LOWEST_FLOOR)]
    plain_updates: bool = False
    issued_at: Time = 0
    expires_at: Time = 0
    round_epoch: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    revoked: dict[HexKeyId, Identifier] = {}
    post_quantum: bool = False
    privacy_threshold: Annotated[int, Meta(ge=1, lt=MAX_AGGREGATORS)] = 1

    def signing_key(self, role: Role, ident: str, key_id: bytes, now: float) -> bytes:
        """Raw Ed25519 key of a party in a role, by its id. `now`: seconds since 1970.

        Raises `SignatureError` if there is no such party, or the key is revoked, not one of its keys, or expired.
        """
        name = key_id.hex()
        if name in self.revoked:
            raise SignatureError(f"key {name} of {self.revoked[name]!r} is revoked, in version {self.version}")
        keys = self._keys(role, ident)
        for key in keys:
            raw = key.raw()
            if raw.key_id == key_id:
                _check_current(key, ident, now)
                return raw.signing
        known = ", ".join(key.raw().key_id.hex() for key in keys)
        raise SignatureError(f"key {name} is none of {ident!r}, expected {known}, in version {self.version}")

    def sealing_keys(self, role: Role, ident: str, now: float) -> PublicKeys:
        """The newest key of a party that is neither expired nor revoked. Raises `SignatureError` if it has none."""
        keys = self._keys(role, ident)
        for key in keys:
            raw = key.raw()
            if raw.key_id.hex() not in self.revoked and not 0 < key.expires_at <= now:
                return raw
        _check_current(keys[0], ident, now)
        raise SignatureError(f"every key of {ident!r} is revoked, in version {self.version}")

    def is_revoked(self, role: Role, ident: str) -> bool:
        """Whether a party has no key any more that counts, expiry aside; a name that is not listed has none."""
        keys = self._parties(role).get(ident)
        return keys is None or all(key.raw().key_id.hex() in self.revoked for key in keys.keys)

    def _keys(self, role: Role, ident: str) -> tuple[PartyKeys, ...]:
        party = self._parties(role).get(ident)
        if party is None:
            raise SignatureError(f"{ident!r} is no {role} of federation {self.federation!r}, version {self.version}")
        return party.keys

    def _parties(self, role: Role) -> Mapping[str, DeviceEntry | Service]:
        if role is Role.DEVICE:
            return self.devices
        return self.aggregators if role is Role.AGGREGATOR else {self.coordinator_id: self.coordinator}


def _check_current(key: PartyKeys, ident: str, now: float) -> None:
    if 0 < key.expires_at <= now:
        raise SignatureError(
            f"key {key.raw().key_id.hex()} of {ident!r} expired at {utc(key.expires_at)}, now it is {utc(now)}"
        )


def utc(seconds: float) -> str:
    """A time for messages."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def party_keys(public: PublicKeys, expires_at: int = 0) -> PartyKeys:
    """Raw public keys as the directory holds them."""
    return PartyKeys(public.signing.hex(), public.sealing.hex(), public.hybrid.hex(), expires_at)


def sign_directory(directory: Directory, root: Identity) -> bytes:
    """The directory file, signed with the root key."""
    body = msgspec.json.encode(directory)
    header = json.dumps({"signature": root.sign(_DOMAIN + body).hex()}).encode()
    return header + b"\n" + body


def write_directory(path: Path, directory: Directory, root: Identity) -> None:
    """Sign with the root key and write atomically."""
    write_atomically(path, sign_directory(directory, root))


def read_directory(path: Path, root_key: str) -> Directory:
    """Read and verify a directory file.

    `root_key`: hex Ed25519 public key of the federation's root, from the party's own settings.
    Raises `SettingsError` if the file is missing or malformed, `SignatureError` if the root did not sign it.
    """
    return parse_directory(read_directory_file(path), root_key, f"directory {path}")


def read_directory_file(path: Path) -> bytes:
    """The bytes of a directory file, not looked at yet. Raises `SettingsError` if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_DIRECTORY_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"directory {path}: {error.strerror}, expected the federation's signed directory") from None


def parse_directory(data: bytes, root_key: str, what: str = "directory") -> Directory:
    """As `read_directory`, for the bytes of such a file; `what` is how errors call it.

    Who has the same file of the same root shares what was read of it: a process may hold thousands of parties.
    """
    if len(data) > MAX_DIRECTORY_BYTES:
        raise SettingsError(f"{what} is larger than {MAX_DIRECTORY_BYTES} bytes")
    name = root_key, hashlib.sha256(data).digest()
    known = _in_use.get(name)
    if known is None:
        known = _in_use[name] = _parse(data, root_key, what)
    return known


#: Every directory that somebody in this process holds, by root key and SHA-256 of its file.
_in_use: WeakValueDictionary[tuple[str, bytes], Directory] = WeakValueDictionary()


def _parse(data: bytes, root_key: str, what: str) -> Directory:
    header, _, body = data.partition(b"\n")
    try:
        signature = bytes.fromhex(json.loads(header[:1024])["signature"])
        key = bytes.fromhex(root_key)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SettingsError(f"{what} has no signature line, expected the federation's directory") from None
    if not verify(key, _DOMAIN + body, signature):
        raise SignatureError(f"{what} is not signed by the root key {root_key[:16]}…")
    try:
        return msgspec.json.decode(body, type=Directory)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{what}: {error}") from None
