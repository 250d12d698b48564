"""The preflight of `fedpruneshare provision check`: what would keep a party from its work, found before it starts.

Files first (keys, certificate, directory, clock, a coordinator's task bundle), then brokers, by connections of this
party's own: the same link, the same certificate. What an access list allows is found out by messages: empty ones, which
every party ignores (docs/protocol.md §1.3). A broker lets one session of a party live at a time: while its service is
at work brokers are left alone.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from fedpruneshare.at_work import is_at_work
from fedpruneshare.directory import Directory, read_directory, utc
from fedpruneshare.errors import FedPruneShareError, PeerError, SettingsError
from fedpruneshare.expiry import SOON_S
from fedpruneshare.keys import Identity
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import LinkSettings, Party, PartySettings
from fedpruneshare.settings import load_settings
from fedpruneshare.storage import refuse_open_file
from fedpruneshare.topics import Role
from firmware_configs.provision.authority import belong_together, certificate_fault, read_certificate
from firmware_configs.provision.findings import FAILED, OK, WARNING, Finding
from firmware_configs.provision.probing import probe_brokers
from firmware_configs.provision.task_bundle import bundle_finding

_SET_CLOCK: Final = "set the clock (timedatectl; a board that keeps no time needs NTP before this service starts)"
_RENEW: Final = "`provision renew` at the root, then `provision enrol finish` here"


@dataclass(frozen=True)
class Examined:
    """What was read on the way, for the checks that come after."""

    files: PartySettings
    link: LinkSettings
    identity: Identity
    directory: Directory
    role: Role
    store: str
    bundle: object


def examine(config: Path, *, is_offline: bool = False, now: float | None = None) -> list[Finding]:
    """All findings on the party whose settings are in `config`, in order. `now`: seconds since 1970."""
    moment = time.time() if now is None else now
    findings: list[Finding] = []
    read = _read(config, findings)
    if read is None:
        return findings
    findings += _directory(read, moment)
    findings += _certificate(read, moment)
    is_let_in = all(finding.state != FAILED for finding in findings)
    if read.role is Role.COORDINATOR:
        findings.append(bundle_finding(read.bundle, read.store))
    if not is_offline and read.link.tls is not None:
        if not is_let_in:
            findings.append(Finding(WARNING, "brokers", "not tried", "mend what is above first"))
        elif read.store and is_at_work(Path(read.store)):
            found = "not tried: the service is at work, and would lose its connections"
            findings.append(
                Finding(WARNING, "brokers", found, "its log says how it gets on with them; or stop it first")
            )
        else:
            party = Party(read.identity, read.directory, read.role)
            findings += probe_brokers(party, read.link)
    return findings


# --------------------------------------------------------------------------- files


def _read(config: Path, findings: list[Finding]) -> Examined | None:
    """Settings, key file and directory; None, with a finding that says why, if one of them cannot be had."""
    fix = "mend it, or install the bundle again (`provision enrol finish`)"
    name = "settings"
    try:
        files, link, whole = _settings(config)
        findings.append(Finding(OK, name, str(config)))
        name = "keys"
        identity = Identity.load(Path(files.key_file))
        newest = identity.public()[0].key_id.hex()
        findings.append(Finding(OK, name, f"{files.key_file}: {identity.ident}, newest key {newest}"))
        name, fix = "directory", "copy the federation's newest directory.json here, and check party.root_key"
        directory = read_directory(Path(files.directory), files.root_key)
        role = _role(directory, identity.ident)
        directory = Party.load(files, role).directory  # the newest that reached this machine
    except FedPruneShareError as error:
        findings.append(Finding(FAILED, name, str(error), fix))
        return None
    return Examined(files, link, identity, directory, role, str(whole.get("store", "")), whole.get("bundle"))


def _settings(config: Path) -> tuple[PartySettings, LinkSettings, dict[str, Any]]:
    """The two tables that all roles' settings share, and all there is."""
    try:
        whole = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {config}: {error.strerror}, expected a readable TOML file") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"settings file {config}: {error}, expected TOML") from None
    party, link = whole.get("party"), whole.get("link", {})
    if not isinstance(party, dict) or not isinstance(link, dict):
        raise SettingsError(f"settings file {config}: no [party], expected the settings of a device or service")
    return load_settings(party, PartySettings), load_settings(link, LinkSettings), whole


def _role(directory: Directory, name: str) -> Role:
    """Names are unique across roles, so a name has one. Raises `SettingsError` for a stranger."""
    if name == directory.coordinator_id:
        return Role.COORDINATOR
    for role, parties in ((Role.AGGREGATOR, directory.aggregators), (Role.DEVICE, directory.devices)):
        if name in parties:
            return role
    state = "revoked" if name in directory.revoked.values() else "not in the directory"
    raise SettingsError(f"{name!r} is {state} (version {directory.version}), expected one of its parties")


def _directory(read: Examined, now: float) -> Iterator[Finding]:
    directory = read.directory
    what = f"{directory.federation}, version {directory.version}, this is {read.role} {read.identity.ident}"
    yield Finding(OK, "directory", what)
    if directory.issued_at > now:
        found = f"this machine's clock says {utc(now)}, the directory was signed at {utc(directory.issued_at)}"
        yield Finding(
            FAILED, "clock", found, "set the clock (timedatectl; a board without one needs NTP before it starts)"
        )
    ends = f"it ends at {utc(directory.expires_at)}, now it is {utc(now)}"
    fix = "`provision directory` at the root signs another"
    if 0 < directory.expires_at <= now:
        yield Finding(FAILED, "directory", ends, fix)
    elif 0 < directory.expires_at <= now + SOON_S:
        yield Finding(WARNING, "directory", ends, fix)
    own = {public.key_id for public in read.identity.public()}
    for public in own:
        try:
            directory.signing_key(read.role, read.identity.ident, public, now)
        except PeerError as error:
            yield Finding(WARNING, "keys", str(error), "fine in a rotation; the other key is in force")


def _certificate(read: Examined, now: float) -> Iterator[Finding]:
    tls = read.link.tls
    services = (read.directory.coordinator, *read.directory.aggregators.values())
    if tls is None:
        state = FAILED if any(service.tls for service in services) else WARNING
        yield Finding(state, "certificate", "no [link.tls]", "brokers of other machines want it: install the bundle")
        return
    try:
        refuse_open_file(Path(tls.key_file))
        certificate, authority = (read_certificate(_bytes(place)) for place in (tls.certificate, tls.ca_file))
        fault = certificate_fault(certificate, authority, read.identity.ident, read.role)
        if not fault and not belong_together(_bytes(tls.certificate), _bytes(tls.key_file)):
            fault = f"not of the key {tls.key_file}, expected one pair"
    except SettingsError as error:
        fault = str(error)
    if fault:
        yield Finding(FAILED, "certificate", f"{tls.certificate}: {fault}", _RENEW)
        return
    yield from _dates(tls, certificate, authority, now)


def _dates(
    tls: TlsSettings, certificate: x509.Certificate, authority: x509.Certificate, now: float
) -> Iterator[Finding]:
    moment = datetime.fromtimestamp(now, UTC)
    for place, one in ((tls.certificate, certificate), (tls.ca_file, authority)):
        start, end = one.not_valid_before_utc, one.not_valid_after_utc
        if moment < start:
            found = f"{place}: good from {start:%Y-%m-%d %H:%M} UTC, this machine's clock says {utc(now)}"
            yield Finding(FAILED, "clock", found, _SET_CLOCK)
        elif moment >= end:
            found = f"{place}: ended at {end:%Y-%m-%d %H:%M} UTC, this machine's clock says {utc(now)}"
            yield Finding(FAILED, "certificate", found, _RENEW)
        elif (end - moment).total_seconds() < SOON_S:
            yield Finding(WARNING, "certificate", f"{place}: ends at {end:%Y-%m-%d %H:%M} UTC", _RENEW)
        else:
            yield Finding(OK, "certificate", f"{place}: until {end:%Y-%m-%d}")


def _bytes(place: str) -> bytes:
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise SettingsError(f"{place}: {error.strerror}, expected a PEM file") from None
