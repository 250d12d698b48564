"""Mosquitto: the broker of every real deployment, started here by tests and the testbed as a process of its own."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.topics import AccessRule
from firmware_configs.brokers import LOOPBACK, Broker, is_loopback
from firmware_configs.brokers.namespaces import is_private

_TEMPLATE: Final = Path(__file__).with_name("mosquitto.conf.template")


@dataclass(frozen=True)
class MosquittoSettings:
    """What differs from one Mosquitto to the next. `access_list` is the text of its ACL file, None for no ACL.

    `namespace`: the network namespace it runs in (`firmware_configs.brokers.namespaces`), empty for the launcher's.
    `is_open`: anonymous clients of a network that the operator trusts may come, too.
    """

    folder: Path
    allow_anonymous: bool = True
    access_list: str | None = None
    queued_mib: int = 512
    namespace: str = ""
    is_open: bool = False


def find_mosquitto() -> Path | None:
    """The mosquitto program on the search path or where Debian puts it; None if it is not installed."""
    found = shutil.which(
        "mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    return Path(found) if found else None


def render_access_list(rules: Iterable[AccessRule]) -> str:
    """Mosquitto's ACL file of `fedpruneshare.topics.access_rules`: one block a user, nobody else may anything."""
    blocks: dict[str, list[str]] = {}
    for rule in rules:
        blocks.setdefault(rule.party, [f"user {rule.party}"]).append(f"topic {rule.action} {rule.topic_filter}")
    return "\n\n".join("\n".join(lines) for lines in blocks.values()) + "\n"


def render_mosquitto(address: BrokerAddress, settings: MosquittoSettings) -> str:
    """The text of `mosquitto.conf`. Raises `SettingsError` for anonymous clients where others may reach it."""
    is_safe = is_loopback(address.host) or is_private(settings.namespace) or settings.is_open
    if settings.allow_anonymous and not is_safe:
        raise SettingsError(f"anonymous clients at {address.host}, expected that on a loopback address only")
    folder = settings.folder.absolute()
    values = {
        "host": address.host,
        "port": address.port,
        # Started by root it would become `mosquitto`, who cannot write the folder.
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "anonymous": "true" if settings.allow_anonymous else "false",
        "access_list": "" if settings.access_list is None else f"acl_file {folder / 'access.acl'}",
        "queued_bytes": settings.queued_mib * 1024 * 1024,
        "folder": folder,
    }
    return Template(_TEMPLATE.read_text()).substitute(values)


def mosquitto_broker(settings: MosquittoSettings, *, host: str = LOOPBACK, port: int | None = None) -> Broker:
    """A Mosquitto broker, not started yet; configuration, access list, data and log go to its folder.

    Raises `SettingsError` if the program is not installed or anonymous clients could come from elsewhere.
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

    return Broker("mosquitto", settings.folder, render, host, port, settings.namespace)


__all__ = ["MosquittoSettings", "find_mosquitto", "mosquitto_broker", "render_access_list", "render_mosquitto"]
