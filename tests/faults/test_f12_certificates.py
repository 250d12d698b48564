"""F12: certificates that must not let anybody in, against a broker as it ships; and brokers that are not what they say.

Let in means: a login that succeeds. Where TLS has nothing to object to (a name in another role), it means a message of
its own that arrives, or one of others that comes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import Certificates
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from faults.access import DEVICES, Names, Party, Site, site
from faults.mqtt_client import hostile_context

from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.topics import Broker as Kind
from fedpruneshare.topics import Role
from firmware_configs.brokers.mosquitto import broker_access_list
from firmware_configs.provision.authority import SERVER, Leaf

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(60)]
NOW, DAY = datetime.now(UTC).replace(microsecond=0), timedelta(days=1)
PI = Party("pi-01", Role.DEVICE)
Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), Kind.OWN) as broker:
        yield broker


def logs_in(at: Site, tls: TlsSettings | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bool:
    """Whether the broker answers a CONNECT of MQTT 5 with success."""
    context = hostile_context(tls, str(at.certificates.ca_file))
    context.maximum_version = newest
    address = at.broker.address
    connect = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05pi-01"
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secure,
        ):
            secure.sendall(connect)
            answer = secure.recv(4)
    except OSError:
        return False
    return len(answer) == 4 and answer[0] == 0x20 and answer[3] == 0


def forged(certificates: Certificates, issuer: Signer | None) -> TlsSettings:
    """A certificate of `pi-01` that is signed by whatever key, by its own without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lab"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "device"),
            x509.NameAttribute(NameOID.COMMON_NAME, "pi-01"),
        ]
    )
    by, signer = (issuer[0].subject, issuer[1]) if issuer is not None else (name, key)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    chain = issuer[0].public_bytes(serialization.Encoding.PEM) if issuer is not None else b""
    certificate = certificates.write("forged.pem", made.public_bytes(serialization.Encoding.PEM) + chain)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return TlsSettings(str(certificates.ca_file), str(certificate), str(certificates.write("forged.key", pem)))


def loaded(tls: TlsSettings) -> Signer:
    key = serialization.load_pem_private_key(Path(tls.key_file).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(Path(tls.certificate).read_bytes()), key


def tampered(certificates: Certificates) -> TlsSettings:
    """A certificate whose last signature byte is another one."""
    issued = certificates.authority.issue_client("pi-01", Role.DEVICE)
    der = bytearray(x509.load_pem_x509_certificate(issued.certificate).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    certificate = certificates.write("tampered.pem", ssl.DER_cert_to_PEM_cert(bytes(der)).encode())
    return TlsSettings(str(certificates.ca_file), str(certificate), str(certificates.write("tampered.key", issued.key)))


def other_authority(certificates: Certificates) -> TlsSettings:
    """Everything right but the authority, which only calls itself the same."""
    return Certificates(certificates.folder / "other", "lab").client("pi-01")


def authority_itself(certificates: Certificates) -> TlsSettings:
    key = certificates.write("authority.key", certificates.authority.key_pem())
    return TlsSettings(str(certificates.ca_file), str(certificates.ca_file), str(key))


def brokers_own(certificates: Certificates) -> TlsSettings:
    files = certificates.server(name="thief")
    return TlsSettings(str(files.ca_file), str(files.certificate), str(files.key_file))


BAD: dict[str, Callable[[Certificates], TlsSettings | None]] = {
    "expired": lambda c: c.client("pi-01", leaf=Leaf(NOW - 9 * DAY, NOW - DAY)),
    "not valid yet": lambda c: c.client("pi-01", leaf=Leaf(NOW + DAY, NOW + 9 * DAY)),
    "of another authority of the same name": other_authority,
    "signed by itself": lambda c: forged(c, None),
    "signed by a device": lambda c: forged(c, loaded(c.client("pi-02"))),
    "without client authentication": lambda c: c.client("pi-01", leaf=Leaf(usages=(SERVER,))),
    "for signing code": lambda c: c.client("pi-01", leaf=Leaf(usages=(ExtendedKeyUsageOID.CODE_SIGNING,))),
    "the authority's own": authority_itself,
    "the broker's own": brokers_own,
    "tampered with": tampered,
    "none": lambda _c: None,
}


def test_a_right_certificate_is_let_in(at: Site) -> None:
    assert logs_in(at, at.certificate(PI))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_certificate_is_not_let_in(at: Site, name: str) -> None:
    assert not logs_in(at, BAD[name](at.certificates))
    assert logs_in(at, at.certificate(PI))


def test_an_older_tls_is_not_let_in(at: Site) -> None:
    assert not logs_in(at, at.certificate(PI), ssl.TLSVersion.TLSv1_2)


def test_no_tls_at_all_is_not_let_in(at: Site) -> None:
    address = at.broker.address
    with socket.create_connection((address.host, address.port), timeout=10) as plain:
        plain.sendall(b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05pi-01")
        with contextlib.suppress(ConnectionError):
            assert plain.recv(4)[:1] != b"\x20"


def test_a_revoked_certificate_is_not_let_in_after_sighup(at: Site) -> None:
    issued = at.certificates.authority.issue_client("pi-02", Role.DEVICE)
    tls = at.certificates.files("revoked", issued)
    assert logs_in(at, tls)
    at.certificates.revoke(issued.serial)
    os.kill(at.broker.pid, signal.SIGHUP)
    give_up_s = time.monotonic() + 60
    while logs_in(at, tls):
        assert time.monotonic() < give_up_s
    assert logs_in(at, at.certificate(PI))


def serial_of(at: Site) -> int:
    """Of the certificate that the broker shows."""
    context = hostile_context(at.certificate(PI), str(at.certificates.ca_file))
    address = at.broker.address
    with (
        socket.create_connection((address.host, address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_broker_takes_its_renewed_certificate_on_sighup(tmp_path: Path) -> None:
    with site(tmp_path, Kind.OWN) as at:
        before, stays = serial_of(at), at.client(PI)
        at.certificates.server(name="north")  # the same files
        os.kill(at.broker.pid, signal.SIGHUP)
        give_up_s = time.monotonic() + 60
        while serial_of(at) == before:
            assert time.monotonic() < give_up_s
        assert not stays.is_lost
        stays.close()


def test_a_session_that_outlives_its_revocation_can_do_nothing(tmp_path: Path) -> None:
    """The revocation list ends no session; the access list without the device does, in all but name."""
    with site(tmp_path, Kind.OWN) as at:
        north, device = at.client(Party("north", Role.AGGREGATOR)), at.client(PI)
        north.subscribe("fps/v1/lab/up/+")
        device.subscribe("fps/v1/lab/ack/pi-01")
        remaining = replace(Names("lab"), devices=DEVICES[1:])
        (tmp_path / "north" / "access.acl").write_text(broker_access_list(remaining, "north"))
        os.kill(at.broker.pid, signal.SIGHUP)
        give_up_s, number = time.monotonic() + 60, 0
        while number == 0 or any(got.payload == b"%d" % number for got in north.got):
            assert time.monotonic() < give_up_s
            number += 1
            device.publish("fps/v1/lab/up/pi-01", b"%d" % number)
            north.unsubscribe("none")  # behind whatever came
        north.publish("fps/v1/lab/ack/pi-01", b"receipt")
        device.unsubscribe("none")
        assert not device.is_lost and not device.got
        for client in (north, device):
            client.close()


@pytest.mark.parametrize(
    "impostor",
    [Party("north", Role.DEVICE), Party("pi-01", Role.AGGREGATOR), Party("head", Role.COORDINATOR)],
    ids=["device named north", "aggregator named pi-01", "coordinator at an aggregator's broker"],
)
def test_a_name_in_another_role_is_nobody(at: Site, impostor: Party) -> None:
    """TLS has nothing to object to; but no byte passes either way. (The access matrix has all of its topics.)"""
    thief = at.client(impostor)
    north, device = at.client(Party("north", Role.AGGREGATOR)), at.client(PI)
    thief.subscribe("#", "fps/v1/lab/up/pi-01", "fps/v1/lab/ack/pi-01")
    north.subscribe("fps/v1/lab/up/+")
    device.subscribe("fps/v1/lab/ack/pi-01")
    for topic in ("fps/v1/lab/up/pi-01", "fps/v1/lab/ack/pi-01", "fps/v1/lab/up/north"):
        thief.publish(topic, b"thief")
    device.publish("fps/v1/lab/up/pi-01", b"share")
    north.publish("fps/v1/lab/ack/pi-01", b"receipt")
    north.wait(lambda: north.got, "the share")
    device.wait(lambda: device.got, "the receipt")
    thief.unsubscribe("none")  # behind whatever would have come
    assert [got.payload for got in north.got] == [b"share"]
    assert [got.payload for got in device.got] == [b"receipt"]
    assert not thief.got
    for client in (thief, north, device):
        client.close()


def test_two_federations_on_one_host_do_not_meet(at: Site, tmp_path: Path) -> None:
    with site(tmp_path, Kind.OWN, Certificates(tmp_path / "tls", "other")) as beside:
        ours, theirs = at.certificate(PI), beside.certificate(PI)
        assert logs_in(at, ours) and logs_in(beside, theirs)
        assert not logs_in(at, TlsSettings(str(at.certificates.ca_file), theirs.certificate, theirs.key_file))
        for context_of, broker in ((at, beside), (beside, at)):
            context = hostile_context(context_of.certificate(PI), str(context_of.certificates.ca_file))
            with (
                socket.create_connection((broker.broker.address.host, broker.broker.address.port)) as plain,
                pytest.raises(ssl.SSLCertVerificationError),
            ):
                context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("size", [0, 1, 2, 300, 70_000])
def test_noise_before_tls_does_no_harm(at: Site, size: int) -> None:
    address = at.broker.address
    with socket.create_connection((address.host, address.port), timeout=10) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.sendall(b"\x16\x03\x01\x40\x00" + bytes(size))
    assert logs_in(at, at.certificate(PI))
