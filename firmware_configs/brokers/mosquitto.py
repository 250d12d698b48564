"""Mosquitto: the broker of every real deployment; tests and the testbed start it as a process of their own.

    settings = shipped_settings(folder, directory, "aggregator-1", BrokerTls(ca_file, certificate, key_file, crl_file))
    render_mosquitto(address, settings)     # mosquitto.conf
    settings.access_list                    # access.acl, beside it
    # SIGHUP makes it read access list, revocation list and its own certificate again; sessions live on

With `tls` everybody needs a certificate of the federation's authority, over TLS 1.3. The whole subject of the
certificate is the user name, `CN=pi-01,OU=device,O=lab`, and the client id: a device's certificate that names an
aggregator, or one of another federation, is a user whom the access list does not know, and nobody can throw another
out by taking its client id. What the list does not allow is forbidden.

What Mosquitto's access list cannot forbid, and who refuses it (docs/protocol.md §2.2):

- SUBSCRIBE is granted for any filter; what is forbidden is not delivered. Only a message proves access.
- A retained message on a channel of the control broker that is written un-retained (`heartbeat`, `decline`,
  `attendance`, `freeze` …): only its writer can leave it there, and readers refuse it (`fedpruneshare.party`). Brokers
  of aggregators carry no retained channel and refuse the flag.
- A will on a topic the party may write is published when its connection falls: a message that it could have sent.
- MQTT 3.1.1 clients (Mosquitto 2.0): PUBACK tells them success for what the list drops. The link speaks MQTT 5.
- A list it cannot read at a SIGHUP (gone, not whole, another user's) it does without, and says so in its log alone:
  without `access.acl` everybody with a certificate may do everything there, without `crl.pem` whoever was revoked gets
  in again. At a start it refuses to run. `provision check` finds the former.
- A session outlives the revocation of its certificate. With a new access list and SIGHUP it can do nothing any more;
  and aggregators refuse by the directory, message by message.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final, Protocol

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.topics import TABLE, AccessRule, Role, access_rules
from fedpruneshare.topics import Broker as BrokerOf
from firmware_configs.brokers import LOOPBACK, Broker, is_loopback
from firmware_configs.brokers.namespaces import is_private

#: The name of the coordinator's broker; an aggregator's broker goes by the aggregator's name.
CONTROL: Final = "control"
_TEMPLATE: Final = Path(__file__).with_name("mosquitto.conf.template")
_MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class BrokerTls:
    """Files of a broker that speaks mutual TLS 1.3, as the broker finds them; `crl_file` empty: nobody is revoked."""

    ca_file: Path
    certificate: Path
    key_file: Path
    crl_file: Path | None = None


@dataclass(frozen=True)
class MosquittoSettings:
    """What differs from one Mosquitto to the next. `access_list` is the text of its ACL file, None for no ACL.

    `folder`: where it finds and keeps its files, also on a machine other than this. `user`: whom it becomes when root
    starts it; empty for the user of this process. `connections`: so many at a time. `retained`: whether it keeps
    retained messages at all. `namespace`: the network namespace it runs in (`firmware_configs.brokers.namespaces`),
    empty for the launcher's. `is_open`: anonymous clients of a network that the operator trusts may come, too.
    """

    folder: Path
    allow_anonymous: bool = True
    access_list: str | None = None
    queued_mib: int = 512
    namespace: str = ""
    is_open: bool = False
    tls: BrokerTls | None = None
    user: str = ""
    connections: int = 8192
    retained: bool = True


def find_mosquitto() -> Path | None:
    """The mosquitto program on the search path or where Debian puts it; None if it is not installed."""
    found = shutil.which(
        "mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    return Path(found) if found else None


# --------------------------------------------------------------------------- who may what


def user_name(federation: str, role: Role, ident: str) -> str:
    """The user name of a party's certificate: its subject as RFC 2253 writes it. No part needs escaping."""
    return f"CN={ident},OU={role.value},O={federation}"


def render_access_list(rules: Iterable[AccessRule], users: Mapping[str, str] | None = None) -> str:
    """Mosquitto's ACL file of `fedpruneshare.topics.access_rules`: one block a user, nobody else may anything.

    `users`: the user name of each party, where that is not its own name.
    """
    blocks: dict[str, list[str]] = {}
    for rule in rules:
        user = users[rule.party] if users is not None else rule.party
        blocks.setdefault(user, [f"user {user}"]).append(f"topic {rule.action} {rule.topic_filter}")
    return "\n\n".join("\n".join(lines) for lines in blocks.values()) + "\n"


class Roster(Protocol):
    """Names of the parties of a federation; a `Directory` is one."""

    @property
    def federation(self) -> str:
        """The federation's name."""

    @property
    def coordinator_id(self) -> str:
        """The coordinator's name."""

    @property
    def aggregators(self) -> Collection[str]:
        """Names of the aggregators."""

    @property
    def devices(self) -> Collection[str]:
        """Names of the devices."""


def broker_parties(directory: Roster, broker: str) -> dict[str, Role]:
    """Who has business at a broker, by name: everybody at `control`; at an aggregator's the devices and itself.

    Raises `SettingsError` if there is no such broker.
    """
    devices = dict.fromkeys(directory.devices, Role.DEVICE)
    if broker == CONTROL:
        aggregators = dict.fromkeys(directory.aggregators, Role.AGGREGATOR)
        return {directory.coordinator_id: Role.COORDINATOR, **aggregators, **devices}
    if broker in directory.aggregators:
        return {broker: Role.AGGREGATOR, **devices}
    known = ", ".join((CONTROL, *directory.aggregators))
    raise SettingsError(f"no broker {broker!r}, expected one of {known}")


def broker_access_list(directory: Roster, broker: str) -> str:
    """The access list of one broker for certificates as users: `control`, or the name of the aggregator it belongs to.

    A new version of the directory, with other devices, needs a new list.
    """
    parties = broker_parties(directory, broker)
    users = {ident: user_name(directory.federation, role, ident) for ident, role in parties.items()}
    return render_access_list(access_rules(directory.federation, _kind(broker), parties), users)


def shipped_settings(folder: Path, directory: Roster, broker: str, tls: BrokerTls) -> MosquittoSettings:
    """A broker of a federation as it ships: mutual TLS 1.3, its access list, and limits for who is in the directory."""
    return MosquittoSettings(
        folder,
        allow_anonymous=False,
        access_list=broker_access_list(directory, broker),
        tls=tls,
        # Twice: a party that comes back may be there before its old connection has been missed.
        connections=2 * len(broker_parties(directory, broker)) + 64,
        retained=any(channel.retained for channel in TABLE if channel.broker is _kind(broker)),
    )


def _kind(broker: str) -> BrokerOf:
    return BrokerOf.CONTROL if broker == CONTROL else BrokerOf.OWN


# --------------------------------------------------------------------------- configuration


def render_mosquitto(address: BrokerAddress, settings: MosquittoSettings) -> str:
    """The text of `mosquitto.conf`.

    Raises `SettingsError` for clients without TLS where others may reach it, and for TLS without an access list.
    """
    _check(address, settings)
    folder = settings.folder.absolute()
    values = {
        "host": address.host,
        "port": address.port,
        # Started by root it would become `mosquitto`, who cannot write the folder.
        "user": settings.user or pwd.getpwuid(os.geteuid()).pw_name,
        "security": "\n".join(_security(settings, folder)),
        "persistence": "\n".join(_persistence(settings, folder)),
        "connections": settings.connections,
        "retained": "true" if settings.retained else "false",
        "queued_bytes": settings.queued_mib * _MIB,
        # What one reader may have waiting, and as much again for everything else.
        "memory_bytes": 2 * max(settings.queued_mib, 256) * _MIB,
        "folder": folder,
    }
    return Template(_TEMPLATE.read_text()).substitute(values)


def _check(address: BrokerAddress, settings: MosquittoSettings) -> None:
    if settings.tls is not None:
        if settings.allow_anonymous or not (settings.access_list or "").strip():
            raise SettingsError("a broker with TLS needs an access list and takes nobody without a certificate")
        return
    is_safe = is_loopback(address.host) or is_private(settings.namespace) or settings.is_open
    if not is_safe:
        who = "anonymous clients" if settings.allow_anonymous else "clients without TLS"
        raise SettingsError(f"{who} at {address.host}, expected that on a loopback address only")


def _security(settings: MosquittoSettings, folder: Path) -> list[str]:
    lines = [f"allow_anonymous {'true' if settings.allow_anonymous else 'false'}"]
    if settings.access_list is not None:
        lines.append(f"acl_file {folder / 'access.acl'}")
    tls = settings.tls
    if tls is None:
        return lines
    lines += [f"cafile {tls.ca_file}", f"certfile {tls.certificate}", f"keyfile {tls.key_file}"]
    if tls.crl_file is not None:
        lines.append(f"crlfile {tls.crl_file}")
    return [
        *lines,
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_subject_as_username true",
        "use_username_as_clientid true",
    ]


def _persistence(settings: MosquittoSettings, folder: Path) -> list[str]:
    """What a broker keeps over its end, a crash included.

    As it ships, the coordinator's broker has what is retained on disk after at most 20 changes; the coordinator repeats
    the rest as soon as it is back. An aggregator's broker keeps nothing: its channels are not retained and sessions are
    clean, so a share without a receipt is sent again in any case. Saving it all the same after every change wrote
    2.7 GB in two rounds of 500 devices and made later ones take 2.5 times as long, for shares nobody would be given.
    """
    if settings.tls is not None and not settings.retained:
        return ["persistence false"]
    lines = ["persistence true", f"persistence_location {folder}/", "persistent_client_expiration 7d"]
    if settings.tls is not None:
        return [*lines, "autosave_on_changes true", "autosave_interval 20"]
    return [*lines, "autosave_interval 30"]


def mosquitto_broker(settings: MosquittoSettings, *, host: str = LOOPBACK, port: int | None = None) -> Broker:
    """A Mosquitto broker, not started yet; configuration, access list, data and log go to its folder.

    Raises `SettingsError` if the program is not installed or others could come without TLS.
    """
    program = find_mosquitto()
    if program is None:
        raise SettingsError("mosquitto: not found in PATH or /usr/sbin, expected it installed (Debian: mosquitto)")
    render_mosquitto(BrokerAddress(host, port or 1), settings)

    def render(address: BrokerAddress) -> list[str]:
        folder = settings.folder.absolute()
        (folder / "mosquitto.conf").write_text(render_mosquitto(address, settings))
        if settings.access_list is not None:
            (folder / "access.acl").write_text(settings.access_list)
        return ["program", str(program), "-c", str(folder / "mosquitto.conf")]

    broker = Broker("mosquitto", settings.folder, render, host, port, settings.namespace)
    broker.speaks_tls = settings.tls is not None
    return broker


__all__ = [
    "CONTROL",
    "BrokerTls",
    "MosquittoSettings",
    "Roster",
    "broker_access_list",
    "broker_parties",
    "find_mosquitto",
    "mosquitto_broker",
    "render_access_list",
    "render_mosquitto",
    "shipped_settings",
    "user_name",
]
