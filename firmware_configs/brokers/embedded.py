"""The embedded default broker: iotcore in a child process, for demos, tests and the testbed on one machine."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Final

import structlog

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from firmware_configs.brokers import LOOPBACK, Broker, is_loopback
from firmware_configs.brokers.namespaces import is_private

log = structlog.get_logger()

NOTICE: Final = "embedded broker: no access list, no client certificates, nothing on disk; for this machine only"
_TEMPLATE: Final = Path(__file__).with_name("embedded.toml.template")


def render_embedded(address: BrokerAddress, segments: int, connections: int, namespace: str = "") -> str:
    """The TOML configuration of iotcore for one loopback address, or any in a network namespace of its own.

    It keeps up to `segments` × 8 MiB for each topic filter, delivered or not, and drops the oldest beyond. Raises
    `SettingsError` for an address that others may reach: nothing on it is protected.
    """
    if not (is_loopback(address.host) or is_private(namespace)):
        raise SettingsError(
            f"embedded broker at {address.host}, expected a loopback address such as {LOOPBACK}; "
            "use Mosquitto where other machines connect"
        )
    if segments < 2 or connections < 1:
        raise SettingsError(f"embedded broker with {segments} segments, {connections} connections, expected 2 and 1")
    host = f"[{address.host}]" if ":" in address.host else address.host
    values = {"host": host, "port": address.port, "segments": segments, "connections": connections}
    return Template(_TEMPLATE.read_text()).substitute(values)


def embedded_broker(
    folder: Path,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    segments: int = 16,
    connections: int = 4096,
    namespace: str = "",
) -> Broker:
    """An iotcore broker, not started yet; its configuration and log go to `folder`.

    Raises `SettingsError` for a host that is not loopback, unless it is to run in another network namespace.
    """
    render_embedded(BrokerAddress(host, port or 1), segments, connections, namespace)

    def render(address: BrokerAddress) -> list[str]:
        config = folder.absolute() / "embedded.toml"
        config.write_text(render_embedded(address, segments, connections, namespace))
        log.info(NOTICE, host=address.host, port=address.port)
        return ["embedded", str(config)]

    return Broker("embedded", folder, render, host, port, namespace)


__all__ = ["NOTICE", "embedded_broker", "render_embedded"]
