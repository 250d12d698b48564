"""The last step of an enrolment or a renewal, on the party's own machine: a bundle comes to the keys that are there.

Everything is verified before anything is written: certificate and key belong together, the authority issued it to this
party, the directory is signed by the root and names the party with a key that is here. Files are replaced one by one,
each in one step; called again after an interruption, it does the same again.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from fedpruneshare.directory import Directory, HexKey, parse_directory
from fedpruneshare.errors import PeerError, SettingsError
from fedpruneshare.keys import MAX_KEYS, Identity, KeyPair, PublicKeys
from fedpruneshare.settings import load_settings
from fedpruneshare.storage import refuse_open_file
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import belong_together, certificate_fault, read_certificate
from firmware_configs.provision.bundles import read_bundle, write_folder
from firmware_configs.provision.enrolment import NEXT_KEY
from firmware_configs.provision.parties import stored
from firmware_configs.provision.rendering import (
    BROKER_CA,
    BROKER_CERTIFICATE,
    BROKER_CONF,
    BROKER_CRL,
    BROKER_KEY,
    BROKER_LIST,
    CA,
    DIRECTORY,
    KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    settings_name,
)

_SETTINGS: Final = tuple(settings_name(role) for role in Role)
_KNOWN: Final = {
    *(KEY, TLS_KEY, TLS_CERTIFICATE, CA, DIRECTORY, *_SETTINGS),
    *(BROKER_KEY, BROKER_CERTIFICATE, BROKER_CA, BROKER_CRL, BROKER_LIST, BROKER_CONF),
}


class _Party(msgspec.Struct, frozen=True):
    """What a settings file says of the root."""

    root_key: HexKey


class _Settings(msgspec.Struct, frozen=True):
    """The one table of a settings file that all roles share."""

    party: _Party


def install(folder: Path, bundle: Path) -> tuple[str, str]:
    """Bring a bundle of `accept` or `renew` to the keys in `folder`; returns the party's name and the root's key.

    Settings that are there stay. Raises `SettingsError` or `PeerError`, and then nothing has changed.
    """
    files = read_bundle(bundle)
    settings_file = next((name for name in _SETTINGS if (folder / name).exists() or name in files), None)
    if settings_file is None or not files.keys() >= {DIRECTORY, TLS_CERTIFICATE, CA}:
        raise SettingsError(f"{bundle} lacks settings, directory or certificates, expected a bundle of `provision`")
    if strange := files.keys() - _KNOWN:
        raise SettingsError(f"{bundle} holds {', '.join(sorted(strange))}, expected a bundle of `provision`")
    root_key = _root_key(folder / settings_file, files.get(settings_file))
    directory = parse_directory(files[DIRECTORY], root_key, f"the directory in {bundle}")
    role = Role(settings_file.partition(".")[0])
    waiting = _answered(folder, role, directory)
    identity = _merged(folder, files.get(KEY), waiting)
    _check_keys(identity, role, directory)
    _check_certificates(folder, files, identity.ident, role)
    kept = {name: data for name, data in files.items() if name not in _SETTINGS or not (folder / name).exists()}
    write_folder(folder, kept | {KEY: stored(identity)}, is_synced=True)
    if waiting is not None or KEY in files:
        (folder / NEXT_KEY).unlink(missing_ok=True)
    return identity.ident, root_key


def _root_key(place: Path, offered: bytes | None) -> str:
    """The root key this machine trusts already, else the one that comes with the bundle."""
    try:
        if place.exists():
            known = place.read_bytes()
            key = _read_root_key(known)
            if offered is not None and _read_root_key(offered) != key:
                raise SettingsError(f"{place} trusts another root than the bundle's, expected the same federation")
            return key
        return _read_root_key(offered or b"")
    except OSError as error:
        raise SettingsError(f"{place}: {error.strerror}") from None


def _read_root_key(text: bytes) -> str:
    try:
        whole = tomllib.loads(text.decode())
    except (ValueError, RecursionError):
        raise SettingsError("the settings do not read, expected TOML") from None
    party = whole.get("party")
    key = party.get("root_key", "") if isinstance(party, dict) else ""
    return load_settings({"party": {"root_key": key}}, _Settings).party.root_key


def _answered(folder: Path, role: Role, directory: Directory) -> Path | None:
    """The keys that wait here for a rotation, if the directory knows the newest of them: else they go on waiting."""
    place = folder / NEXT_KEY
    if not place.exists():
        return None
    waiting = Identity.load(place)
    return place if _lists(directory, role, waiting.ident, waiting.public()[0]) else None


def _merged(folder: Path, offered: bytes | None, waiting: Path | None) -> Identity:
    """The keys after the installation: those here, those that waited here for a rotation, those the bundle brings."""
    place = folder / KEY
    if offered is None:
        return Identity.load(waiting or place)
    try:
        body = json.loads(offered)
        brought = Identity(body["id"], tuple(KeyPair.restored(key) for key in body["keys"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingsError("the key file in the bundle does not read") from None
    if not place.exists():
        return brought
    here = Identity.load(place)
    if here.ident != brought.ident:
        raise SettingsError(f"a bundle of {brought.ident!r} for the keys of {here.ident!r}, expected the same party")
    ids = {key.public.key_id for key in brought.keys}
    older = [key for key in here.keys if key.public.key_id not in ids]
    return Identity(here.ident, (*brought.keys, *older)[:MAX_KEYS])


def _check_keys(identity: Identity, role: Role, directory: Directory) -> None:
    if not any(_lists(directory, role, identity.ident, public) for public in identity.public()):
        raise SettingsError(
            f"directory version {directory.version} has no key of {role} {identity.ident!r} that is in this folder"
        )


def _lists(directory: Directory, role: Role, name: str, public: PublicKeys) -> bool:
    try:
        return directory.signing_key(role, name, public.key_id, directory.issued_at) == public.signing
    except PeerError:
        return False


def _check_certificates(folder: Path, files: dict[str, bytes], name: str, role: Role) -> None:
    for certificate, key in ((TLS_CERTIFICATE, TLS_KEY), (BROKER_CERTIFICATE, BROKER_KEY)):
        if certificate not in files:
            continue
        if key not in files:
            refuse_open_file(folder / key)
        private = files[key] if key in files else (folder / key).read_bytes()
        if not belong_together(files[certificate], private):
            raise SettingsError(f"certificate {certificate} is not of the key {key}, expected one of this machine's")
    fault = certificate_fault(read_certificate(files[TLS_CERTIFICATE]), read_certificate(files[CA]), name, role)
    if fault:
        raise SettingsError(f"certificate {TLS_CERTIFICATE}: {fault}")
