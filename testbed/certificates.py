"""Throw-away certificates of a run whose brokers speak TLS; they lie with the private keys and go with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedpruneshare.errors import SettingsError
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.topics import Role
from firmware_configs.brokers.mosquitto import BrokerTls, MosquittoSettings, broker_parties, shipped_settings

try:
    from firmware_configs.provision.authority import Authority, Issued
except ImportError:  # the extra `provision` is not installed
    Authority = None  # type: ignore[assignment, misc]


@dataclass(frozen=True)
class RunRoster:
    """Names of the parties of a run (`firmware_configs.brokers.mosquitto.Roster`)."""

    federation: str
    coordinator_id: str
    aggregators: tuple[str, ...]
    devices: tuple[str, ...]


class RunCertificates:
    """An authority for one run, and a certificate for every party and broker of it.

    Raises `SettingsError` without the extra `provision`.
    """

    def __init__(self, roster: RunRoster, folder: Path) -> None:
        if Authority is None:
            raise SettingsError("brokers.tls needs the extra provision: pip install 'fedpruneshare[provision]'")
        self._roster, self._folder = roster, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._authority = Authority.create(roster.federation)
        self._ca_file = self._write("ca.pem", self._authority.certificate)
        self._crl_file = self._write("crl.pem", self._authority.crl())

    def parties(self, control: str) -> dict[str, TlsSettings]:
        """Issue one for every party; `control` is the name of the broker at which all of them are known."""
        return {ident: self._client(ident, role) for ident, role in broker_parties(self._roster, control).items()}

    def broker(self, name: str, host: str, folder: Path) -> MosquittoSettings:
        """A broker as it ships, with a certificate for the host."""
        certificate, key = self._files(f"broker-{name}", self._authority.issue_server(host, broker=name))
        return shipped_settings(folder, self._roster, name, BrokerTls(self._ca_file, certificate, key, self._crl_file))

    def _client(self, ident: str, role: Role) -> TlsSettings:
        certificate, key = self._files(ident, self._authority.issue_client(ident, role))
        return TlsSettings(str(self._ca_file), str(certificate), str(key))

    def _files(self, name: str, issued: Issued) -> tuple[Path, Path]:
        return self._write(f"{name}.pem", issued.certificate), self._write(f"{name}.key", issued.key)

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path
