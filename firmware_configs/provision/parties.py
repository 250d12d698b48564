"""What the operator does for parties: takes them in, renews their certificates, rotates their keys, shuts them out.

Every function changes an opened and unlocked `Office`; its `commit` makes that true in one step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from fedpruneshare.directory import KeysOfParty, party_keys
from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import Issued, Leaf, read_certificate
from firmware_configs.provision.bundles import Bundle
from firmware_configs.provision.office import BUNDLES, RENEWALS, Office
from firmware_configs.provision.register import DAY_S, Card, Record, Register
from firmware_configs.provision.rendering import (
    BROKER_CA,
    BROKER_CERTIFICATE,
    BROKER_KEY,
    CA,
    KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    settings_name,
    settings_text,
)

#: What `--install-prefix` may hold for the name of the party.
NAME_MARK: Final = "{name}"


@dataclass(frozen=True)
class Wishes:
    """How bundles are made. `install_prefix`: where they will lie, empty for the very place they are written to.

    `out`: folder they are written to, None for the office's own. `replace`: what is there already may go, keys, too.
    """

    out: Path | None = None
    install_prefix: str = ""
    as_tar: bool = False
    replace: bool = False
    broker_user: str = ""

    def path(self, office: Office, name: str) -> Path:
        """Where the bundle of a party goes."""
        folder = (self.out or office.folder / BUNDLES).absolute()
        return folder / (f"{name}.tar" if self.as_tar else name)

    def home(self, office: Office, name: str) -> str:
        """Where a party's files will lie on its own machine."""
        if self.install_prefix:
            return self.install_prefix.replace(NAME_MARK, name)
        return str(self.path(office, name).with_name(name))


# --------------------------------------------------------------------------- new parties


def take_in(office: Office, name: str, role: Role, wishes: Wishes) -> Record:
    """A party with keys made here: its record, and its bundle with everything. Raises `SettingsError`."""
    identity = Identity.generate(name, hybrid=office.settings.post_quantum)
    keys = (party_keys(identity.public()[0]),)
    prepare(office, name, role, wishes)
    client = office.authority.issue_client(name, role, _leaf(office))
    record = _new_record(office, name, role, keys, wishes)
    record = msgspec.structs.replace(record, cards=(office.keep(client),))
    private = {KEY: stored(identity), TLS_KEY: client.key}
    if role is not Role.DEVICE:
        server = issue_broker(office, name, role)
        record = msgspec.structs.replace(record, broker=(office.keep(server),))
        private |= {BROKER_KEY: server.key, BROKER_CERTIFICATE: server.certificate}
    office.register = office.register.with_party(name, record)
    add_bundle(office, name, wishes, private | {TLS_CERTIFICATE: client.certificate})
    return record


def prepare(office: Office, name: str, role: Role, wishes: Wishes) -> None:
    """See that a name is free and belongs to the role; with `replace` revoke who had it. Raises `SettingsError`."""
    check_name(office, name, role)
    path, known = wishes.path(office, name), office.register.parties.get(name)
    if known is None and path.exists() and not wishes.replace:
        raise SettingsError(f"{path} exists, expected a free place (--replace writes over it)")
    if known is None:
        return
    if not wishes.replace:
        state = "revoked" if known.revoked_at else f"taken by {_a(known.role)}"
        raise SettingsError(f"{name!r} is {state}, expected a new name (--replace makes new keys and revokes the old)")
    if known.role is not role:
        raise SettingsError(f"{name!r} is {_a(known.role)}, expected {_a(role)}: names are never shared between roles")
    office.register = office.register.without(name, office.now)


def check_name(office: Office, name: str, role: Role) -> None:
    """Raise `SettingsError` unless federation.toml leaves the name to this role."""
    settings = office.settings
    check_spelling(name)
    services = {settings.coordinator_id: Role.COORDINATOR, **dict.fromkeys(settings.aggregators, Role.AGGREGATOR)}
    if name not in services and role is not Role.DEVICE:
        known = ", ".join(one for one, meant in services.items() if meant is role)
        raise SettingsError(f"federation.toml names no {role} {name!r}, expected {known}: services are named there")
    if services.get(name, Role.DEVICE) is not role:
        raise SettingsError(
            f"{name!r} is {_a(services[name])} by federation.toml, expected a name for {_a(role)}: services are named"
            " there, devices are not"
        )


def check_spelling(name: str, what: str = "name") -> None:
    """Raise `SettingsError` unless somebody, or a federation, may be called so."""
    if not name or len(name) > 32 or name.strip("abcdefghijklmnopqrstuvwxyz0123456789-") or name[0] == "-":
        raise SettingsError(f"{what} {name!r}, expected 1 to 32 of a-z, 0-9 and -, and no - in front")


def issue_broker(office: Office, name: str, role: Role, key: ec.EllipticCurvePublicKey | None = None) -> Issued:
    """A certificate for the broker of an aggregator or the coordinator."""
    settings = office.settings
    place = settings.coordinator if role is Role.COORDINATOR else settings.aggregators[name]
    return office.authority.issue_server(place.host, _leaf(office, key), broker=name)


def issue_party(office: Office, name: str, role: Role, key: ec.EllipticCurvePublicKey | None = None) -> Issued:
    """A client certificate for a party."""
    return office.authority.issue_client(name, role, _leaf(office, key))


def add_bundle(office: Office, name: str, wishes: Wishes, files: dict[str, bytes]) -> Bundle:
    """Have the bundle of a party written by the next commit: these files, settings, and the authority's certificate."""
    record, authority = office.register.parties[name], office.authority.certificate
    text = settings_text(office.settings, name, record, office.register.root_key, bool(wishes.install_prefix))
    shared = {CA: authority, settings_name(record.role): text}
    if record.role is not Role.DEVICE:
        shared[BROKER_CA] = authority
    bundle = Bundle(wishes.path(office, name), shared | files)
    office.add(bundle)
    return bundle


def stored(identity: Identity) -> bytes:
    """A key file's contents."""
    return json.dumps({"id": identity.ident, "keys": [key.stored() for key in identity.keys]}).encode()


def _new_record(office: Office, name: str, role: Role, keys: KeysOfParty, wishes: Wishes) -> Record:
    known = office.register.parties.get(name)
    part = known.part if known else sum(one.role is Role.DEVICE for one in office.register.parties.values())
    return Record(
        role,
        keys,
        cards=(),
        part=part if role is Role.DEVICE else 0,
        home=wishes.home(office, name),
        broker_user="" if role is Role.DEVICE else wishes.broker_user,
    )


def new_enrolled(office: Office, name: str, role: Role, keys: KeysOfParty, wishes: Wishes) -> Record:
    """The record of a party whose keys were made where it runs."""
    return msgspec.structs.replace(_new_record(office, name, role, keys, wishes), is_enrolled=True)


def _leaf(office: Office, key: ec.EllipticCurvePublicKey | None = None) -> Leaf:
    return Leaf(not_after=office.ends_at(), public_key=key)


def _a(role: Role) -> str:
    return {Role.DEVICE: "a device", Role.AGGREGATOR: "an aggregator", Role.COORDINATOR: "the coordinator"}[role]


# --------------------------------------------------------------------------- renewal and rotation


def renew(office: Office, name: str, wishes: Wishes, *, keys: bool = False) -> tuple[Path, list[str]]:
    """New certificates for a party, in a bundle below `renewals/`; with `keys` new signing and sealing keys, too.

    Where the private keys were made elsewhere, the new certificate is of the key that is there. Returns where the
    bundle will lie, and what was done.
    """
    record = office.register.party(name)
    if record.revoked_at:
        raise SettingsError(f"{name!r} is revoked, expected a party in good standing")
    if keys and record.is_enrolled and not _is_rotating(office, record):
        raise SettingsError(
            f"the keys of {name!r} were made where it runs: `provision enrol request --keys` there, then "
            "`provision enrol accept`"
        )
    path = (wishes.out or office.folder / RENEWALS).absolute() / (f"{name}.tar" if wishes.as_tar else name)
    if path.exists() and not wishes.replace:
        raise SettingsError(f"{path} exists, expected it carried to {name} and deleted (--replace renews again)")
    files, record = _certificates(office, name, record)
    done = [f"certificate until {_day(record.cards[0])}"]
    if keys:
        made, record, what = _rotated(office, name, record)
        files, done = files | made, [*done, what]
    office.register = office.register.with_party(name, record)
    office.add(Bundle(path, files | {CA: office.authority.certificate}))
    return path, done


def _certificates(office: Office, name: str, record: Record) -> tuple[dict[str, bytes], Record]:
    known = _public_key(office, record.cards[0]) if record.is_enrolled else None
    client = issue_party(office, name, record.role, known)
    files = {TLS_CERTIFICATE: client.certificate}
    files |= {TLS_KEY: client.key} if client.key else {}
    record = msgspec.structs.replace(record, cards=(office.keep(client), *record.cards))
    if record.role is Role.DEVICE:
        return files, record
    known = _public_key(office, record.broker[0]) if record.is_enrolled else None
    server = issue_broker(office, name, record.role, known)
    files |= {BROKER_CERTIFICATE: server.certificate, BROKER_CA: office.authority.certificate}
    files |= {BROKER_KEY: server.key} if server.key else {}
    return files, msgspec.structs.replace(record, broker=(office.keep(server), *record.broker))


def _public_key(office: Office, card: Card) -> ec.EllipticCurvePublicKey:
    key = read_certificate(office.certificate(card)).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _rotated(office: Office, name: str, record: Record) -> tuple[dict[str, bytes], Record, str]:
    """A new key before the current one, which ends after the overlap; or, where two are in force, the old one gone."""
    if _is_rotating(office, record):
        register, record = drop_old_key(office.register, name, record)
        office.register = register
        return {}, record, f"key {record.key_ids()[0]} alone from now on"
    identity = Identity.generate(name, hybrid=office.settings.post_quantum)
    record = with_new_key(office, record, (party_keys(identity.public()[0]),))
    what = f"key {record.key_ids()[0]}; {record.key_ids()[1]} ends in {office.settings.overlap_days:g} days"
    return {KEY: stored(identity)}, record, what


def _is_rotating(office: Office, record: Record) -> bool:
    """Whether two keys are in force, the older one not for long."""
    return len(record.keys) == 2 and not 0 < record.keys[1].expires_at <= office.now


def with_new_key(office: Office, record: Record, keys: KeysOfParty) -> Record:
    """A record with a key in front of its newest, which then ends after the federation's overlap."""
    ends_at = int(office.now + office.settings.overlap_days * DAY_S)
    old = msgspec.structs.replace(record.keys[0], expires_at=ends_at)
    return msgspec.structs.replace(record, keys=(keys[0], old))


def drop_old_key(register: Register, name: str, record: Record) -> tuple[Register, Record]:
    """Only the newest key is left; the other is revoked by name, also before it would have ended."""
    old = record.key_ids()[1]
    revoked = msgspec.structs.replace(register, revoked_keys={**register.revoked_keys, old: name})
    return revoked, msgspec.structs.replace(record, keys=record.keys[:1])


def _day(card: Card) -> str:
    return f"{datetime.fromtimestamp(card.not_after, UTC):%Y-%m-%d}"


# --------------------------------------------------------------------------- revocation


def revoke(office: Office, name: str) -> None:
    """Shut a device out: roster, key ids, certificates. Raises `SettingsError` for a service that is still needed."""
    record = office.register.party(name)
    if record.revoked_at:
        raise SettingsError(f"{name!r} is revoked already")
    if record.role is not Role.DEVICE and name in (*office.settings.aggregators, office.settings.coordinator_id):
        raise SettingsError(
            f"{name!r} is {_a(record.role)} of federation.toml: name another there first, or have "
            f"`provision {record.role.value} --replace` give it new keys, which revokes the old"
        )
    office.register = office.register.without(name, office.now)
