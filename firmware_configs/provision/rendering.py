"""The files of a bundle: which there are for each role, and what stands in them.

Settings are rendered as text: this package knows the language of the roles' settings, not the roles.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from string import Template
from typing import Final

from fedpruneshare.directory import Directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.topics import Role
from firmware_configs.brokers import is_loopback
from firmware_configs.brokers.mosquitto import CONTROL, BrokerTls, render_mosquitto, shipped_settings
from firmware_configs.provision.register import FederationSettings, Place, Record

#: Names inside every bundle.
KEY, TLS_KEY, TLS_CERTIFICATE, CA = "key.json", "tls.key", "tls.pem", "ca.pem"
DIRECTORY, STORE = "directory.json", "store"
#: The broker of an aggregator or the coordinator, in a folder of its own.
BROKER: Final = "broker"
BROKER_KEY, BROKER_CERTIFICATE, BROKER_CA = f"{BROKER}/server.key", f"{BROKER}/server.pem", f"{BROKER}/ca.pem"
BROKER_CRL, BROKER_LIST, BROKER_CONF = f"{BROKER}/crl.pem", f"{BROKER}/access.acl", f"{BROKER}/mosquitto.conf"
TASK_BUNDLE: Final = "task.bundle"
#: What a broker binds whose host is a name or another machine's address, unless `listen` says so.
EVERYWHERE: Final = "0.0.0.0"
#: The same where the host is an IPv6 address, which nobody reaches at the one above.
EVERYWHERE_6: Final = "::"

_FOLDER: Final = Path(__file__).parent


def settings_name(role: Role) -> str:
    """The settings file of a role inside its bundle."""
    return f"{role.value}.toml"


def settings_text(settings: FederationSettings, name: str, record: Record, root_key: str, is_installed: bool) -> bytes:
    """The settings file of a party, TOML. Paths are relative to it, or below its `home` where it `is_installed`."""

    def place(inside: str) -> str:
        return _text(str(PurePosixPath(record.home) / inside) if is_installed else inside)

    values = {
        "name": name,
        "federation": settings.federation,
        "store": place(STORE),
        "key_file": place(KEY),
        "directory": place(DIRECTORY),
        "root_key": _text(root_key),
        "task": _text(settings.task),
        "part": record.part % settings.task_parts,
        "parts": settings.task_parts,
        "data": place("data"),
        "bundle": place(TASK_BUNDLE),
        "rounds": settings.rounds,
        "cohort": settings.cohort,
        "min_devices": settings.min_devices,
        "min_devices_segment": settings.min_devices_segment,
        "threshold": settings.threshold,
        "privacy_threshold": settings.threshold - 1,
        "ca_file": place(CA),
        "certificate": place(TLS_CERTIFICATE),
        "tls_key": place(TLS_KEY),
    }
    template = (_FOLDER / f"{record.role.value}.toml.template").read_text("utf-8")
    return Template(template).substitute(values).encode()


def public_files(
    settings: FederationSettings, name: str, record: Record, directory: Directory, signed: bytes, crl: bytes
) -> dict[str, bytes]:
    """What a party needs anew when the directory changes: `directory` (as `signed`), and its broker's lists."""
    files = {DIRECTORY: signed}
    if record.role is Role.DEVICE:
        return files
    place = settings.coordinator if record.role is Role.COORDINATOR else settings.aggregators[name]
    folder = Path(record.home) / BROKER
    tls = BrokerTls(folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "crl.pem")
    broker = CONTROL if record.role is Role.COORDINATOR else name
    shipped = replace(shipped_settings(folder, directory, broker, tls), user=record.broker_user)
    conf = render_mosquitto(BrokerAddress(_listens_at(place), place.port, tls=True), shipped)
    return files | {
        BROKER_CRL: crl,
        BROKER_LIST: (shipped.access_list or "").encode(),
        BROKER_CONF: conf.encode(),
    }


def _listens_at(place: Place) -> str:
    """What a broker binds: what its settings say, else its loopback address, else everything there is of its kind."""
    if place.listen or is_loopback(place.host):
        return place.listen or place.host
    return EVERYWHERE_6 if ":" in place.host else EVERYWHERE


def _text(value: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which no path here holds.
    return json.dumps(value, ensure_ascii=False)
