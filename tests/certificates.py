"""Certificates of a throw-away authority, in files as links and brokers want them."""

from __future__ import annotations

from pathlib import Path

from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.topics import Role
from firmware_configs.brokers.mosquitto import BrokerTls
from firmware_configs.provision.authority import Authority, Issued, Leaf


class Certificates:
    """A federation's authority and a folder for what it issues; a name stands for one certificate."""

    def __init__(self, folder: Path, federation: str = "lab") -> None:
        self.folder = folder
        self.federation = federation
        self.authority = Authority.create(federation)
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = self.write("ca.pem", self.authority.certificate)
        self.crl_file = self.write("crl.pem", self.authority.crl())

    def write(self, name: str, data: bytes) -> Path:
        """A file of the folder, readable by its owner alone."""
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def files(self, name: str, issued: Issued, ca_file: Path | None = None) -> TlsSettings:
        """Settings of a party with a certificate that was issued."""
        certificate = self.write(f"{name}.pem", issued.certificate)
        key = self.write(f"{name}.key", issued.key)
        return TlsSettings(str(ca_file or self.ca_file), str(certificate), str(key))

    def client(self, ident: str, role: Role = Role.DEVICE, leaf: Leaf | None = None) -> TlsSettings:
        """Settings of a party with a certificate of its own."""
        return self.files(f"{role}-{ident}", self.authority.issue_client(ident, role, leaf))

    def server(self, host: str = "127.0.0.1", leaf: Leaf | None = None, name: str = "server") -> BrokerTls:
        """Files of a broker."""
        issued = self.authority.issue_server(host, leaf)
        made = self.files(name, issued)
        return BrokerTls(self.ca_file, Path(made.certificate), Path(made.key_file), self.crl_file)

    def revoke(self, serial: int) -> None:
        """Put a certificate on the revocation list; a broker reads it again on SIGHUP."""
        self.authority.revoke(serial)
        self.write("crl.pem", self.authority.crl())
