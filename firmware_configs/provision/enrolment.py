"""Enrolment: the keys are made where they stay, a request travels to the root, a bundle without keys travels back.

    device:    enrol request    keys, and a request that holds their public halves
    operator:  enrol accept     a record in the register, certificates, a bundle
    device:    enrol finish     certificate, directory and settings beside the keys

The request is signed with the key it asks for (or, in a rotation, with the key that is in force), and names federation,
party and role; each is answered once. What `accept` cannot know is whether the request comes from the right machine:
that is why both ends print the key's id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from fedpruneshare.directory import PartyKeys, party_keys
from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity, verify
from fedpruneshare.messages import Identifier
from fedpruneshare.storage import refuse_open_file
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import new_request, read_request
from firmware_configs.provision.bundles import write_folder
from firmware_configs.provision.office import Office
from firmware_configs.provision.parties import (
    Wishes,
    add_bundle,
    check_name,
    drop_old_key,
    issue_broker,
    issue_party,
    new_enrolled,
    prepare,
    stored,
    with_new_key,
)
from firmware_configs.provision.register import Record
from firmware_configs.provision.rendering import BROKER_CERTIFICATE, BROKER_KEY, KEY, TLS_CERTIFICATE, TLS_KEY

_DOMAIN: Final = b"fedpruneshare/enrol/1\0"
_MAX_BYTES: Final = 64 * 1024
#: The key file of a rotation until the directory knows the new key.
NEXT_KEY: Final = "key.next.json"
_Pem = Annotated[str, Meta(max_length=8192)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels to the root. `csr` is the client's, `broker_csr` a broker's; `signer` the id of the signing key."""

    federation: Identifier
    name: Identifier
    role: Role
    keys: PartyKeys
    csr: _Pem
    broker_csr: _Pem = ""
    signer: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] = ""


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: the request's exact bytes (as text) and their signature."""

    request: Annotated[str, Meta(max_length=_MAX_BYTES)]
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]


# --------------------------------------------------------------------------- on the device


@dataclass(frozen=True)
class Applicant:
    """Who asks: names as the operator gave them out. `hybrid`: the federation wants hybrid keys."""

    federation: str
    name: str
    role: Role
    hybrid: bool = False


def make_request(folder: Path, who: Applicant, *, new_keys: bool = False) -> tuple[bytes, str]:
    """Make what is missing of a party's keys in `folder`, and the request for a certificate: (file, key id).

    Keys that are there are kept, so asking again is asking for the same, or for a renewal. With `new_keys` the request
    is for a new signing and sealing key, which the current one vouches for; it lies beside until `enrol finish`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity, vouching = _own_keys(folder, who, new_keys)
    csr = _own_csr(folder, TLS_KEY, who)
    broker = _own_csr(folder, BROKER_KEY, who) if who.role is not Role.DEVICE else b""
    public = identity.public()[0]
    request = Request(
        who.federation,
        who.name,
        who.role,
        party_keys(public),
        csr.decode(),
        broker.decode(),
        vouching.public()[0].key_id.hex(),
    )
    body = msgspec.json.encode(request)
    signed = _Signed(body.decode(), vouching.sign(_DOMAIN + body).hex())
    return msgspec.json.encode(signed), public.key_id.hex()


def _own_keys(folder: Path, who: Applicant, new_keys: bool) -> tuple[Identity, Identity]:
    """(the identity to ask for, the one that signs the request)."""
    place = folder / KEY
    if not place.exists():
        if new_keys:
            raise SettingsError(f"{place} is missing, expected the current keys, which vouch for the new ones")
        identity = Identity.generate(who.name, hybrid=who.hybrid)
        write_folder(folder, {KEY: stored(identity)}, is_synced=True)
        return identity, identity
    identity = Identity.load(place)
    if identity.ident != who.name:
        raise SettingsError(f"{place} holds the keys of {identity.ident!r}, expected those of {who.name!r}")
    if not new_keys:
        return identity, identity
    following = folder / NEXT_KEY
    if not following.exists():
        write_folder(folder, {NEXT_KEY: stored(identity.rotated(hybrid=who.hybrid))}, is_synced=True)
    return Identity.load(following), identity


def _own_csr(folder: Path, key_name: str, who: Applicant) -> bytes:
    place = folder / key_name
    request, key = new_request(who.name, who.role, who.federation, _known_key(place))
    if not place.exists():
        write_folder(folder, {key_name: key}, is_synced=True)
    return request


def _known_key(place: Path) -> bytes:
    if not place.exists():
        return b""
    refuse_open_file(place)
    return place.read_bytes()


# --------------------------------------------------------------------------- at the root


def accept(office: Office, data: bytes, wishes: Wishes) -> tuple[str, str]:
    """Answer one request with a bundle: (name, key id). Raises `SettingsError` for what must not be answered."""
    signed, request = _read(data)
    settings, register = office.settings, office.register
    if request.federation != settings.federation:
        raise SettingsError(f"a request to federation {request.federation!r}, expected {settings.federation!r}")
    check_name(office, request.name, request.role)
    _check_signature(signed, request, register.parties.get(request.name))
    key_id = request.keys.raw().key_id.hex()
    if key_id in register.revoked_keys:
        raise SettingsError(f"key {key_id} of {request.name!r} is revoked, expected new keys")
    digest = hashlib.sha256(signed.request.encode()).hexdigest()
    if digest in register.requests:
        raise SettingsError(f"this request of {request.name!r} was answered before, expected a new one")
    if settings.post_quantum and not request.keys.hybrid:
        raise SettingsError(f"key {key_id} has no hybrid half, which this federation wants: ask with --hybrid")
    requested = {TLS_CERTIFICATE: _csr_key(request, request.csr)}
    if request.role is not Role.DEVICE:
        requested[BROKER_CERTIFICATE] = _csr_key(request, request.broker_csr)
    record = _admit(office, request, wishes)
    _answer(office, request, record, requested, wishes)
    office.register = msgspec.structs.replace(office.register, requests=(*office.register.requests, digest))
    return request.name, key_id


def _read(data: bytes) -> tuple[_Signed, Request]:
    try:
        signed = msgspec.json.decode(data[:_MAX_BYTES], type=_Signed)
        return signed, msgspec.json.decode(signed.request, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"request: {error}, expected what `provision enrol request` writes") from None


def _check_signature(signed: _Signed, request: Request, known: Record | None) -> None:
    """By the key that is asked for, or by the one the register has for that name. Raises `SettingsError`."""
    own = request.keys.raw()
    keys = {own.key_id.hex(): own.signing}
    if known is not None and not known.revoked_at:
        keys[known.key_ids()[0]] = known.keys[0].raw().signing
    key = keys.get(request.signer)
    body = _DOMAIN + signed.request.encode()
    if key is None or not verify(key, body, bytes.fromhex(signed.signature)):
        raise SettingsError(
            f"the request of {request.name!r} is not signed by its key {own.key_id.hex()}, nor by the one in force"
        )


def _csr_key(request: Request, csr: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request that is the same party's."""
    name, role, federation, key = read_request(csr.encode())
    if (name, role, federation) != (request.name, request.role, request.federation):
        raise SettingsError(
            f"a certificate request of {role} {name!r} of {federation!r} inside the request of {request.role} "
            f"{request.name!r} of {request.federation!r}, expected the same party"
        )
    return key


def _admit(office: Office, request: Request, wishes: Wishes) -> Record:
    """The record the request leads to: a new party's, the same keys again, or a new key before the one in force."""
    known = office.register.parties.get(request.name)
    wanted = request.keys.raw().key_id.hex()
    if known is not None and not known.revoked_at and known.role is request.role and not wishes.replace:
        if wanted == known.key_ids()[0]:
            return msgspec.structs.replace(known, is_enrolled=True)
        if request.signer == known.key_ids()[0]:
            if len(known.keys) == 2:
                office.register, known = drop_old_key(office.register, request.name, known)
            fresh = with_new_key(office, known, (_unlimited(request.keys),))
            return msgspec.structs.replace(fresh, is_enrolled=True)
    prepare(office, request.name, request.role, wishes)
    return new_enrolled(office, request.name, request.role, (_unlimited(request.keys),), wishes)


def _unlimited(keys: PartyKeys) -> PartyKeys:
    """A party does not say how long its key counts."""
    return msgspec.structs.replace(keys, expires_at=0)


def _answer(
    office: Office,
    request: Request,
    record: Record,
    requested: dict[str, ec.EllipticCurvePublicKey],
    wishes: Wishes,
) -> None:
    path = wishes.path(office, request.name)
    if path.exists() and not wishes.replace:
        raise SettingsError(f"{path} exists, expected the last answer carried to {request.name} and deleted")
    client = issue_party(office, request.name, request.role, requested[TLS_CERTIFICATE])
    files = {TLS_CERTIFICATE: client.certificate}
    record = msgspec.structs.replace(record, cards=(office.keep(client), *record.cards))
    if BROKER_CERTIFICATE in requested:
        server = issue_broker(office, request.name, request.role, requested[BROKER_CERTIFICATE])
        files[BROKER_CERTIFICATE] = server.certificate
        record = msgspec.structs.replace(record, broker=(office.keep(server), *record.broker))
    office.register = office.register.with_party(request.name, record)
    add_bundle(office, request.name, wishes, files)
