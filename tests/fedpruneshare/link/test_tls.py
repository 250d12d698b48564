"""What a link over TLS refuses, and how it says so (docs/protocol.md §3.1)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from certificates import Certificates

from fedpruneshare.errors import CertificateDateError, CertificateError, LinkError, RefusedError, SettingsError
from fedpruneshare.link import BrokerAddress, LinkLimits
from fedpruneshare.link.connection import Connection
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from fedpruneshare.topics import Role
from firmware_configs.brokers import Broker
from firmware_configs.brokers.mosquitto import BrokerTls, MosquittoSettings, mosquitto_broker
from firmware_configs.provision.authority import SERVER, Leaf

pytestmark = pytest.mark.mosquitto
QUICK = LinkLimits(connect_timeout_s=60.0, publish_timeout_s=60, reconnect_min_s=0.05, reconnect_max_s=0.2)
#: For what is tried until the time is up.
SHORT = replace(QUICK, connect_timeout_s=1.5)
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "tls")


@pytest.fixture
def start_tls_broker(tmp_path: Path, certificates: Certificates) -> Iterator[Callable[..., Broker]]:
    started: list[Broker] = []

    def start(tls: BrokerTls | None = None, access_list: str = "pattern readwrite #\n") -> Broker:
        settings = MosquittoSettings(
            tmp_path / f"broker-{len(started)}",
            allow_anonymous=False,
            access_list=access_list,
            tls=tls or certificates.server(),
        )
        started.append(mosquitto_broker(settings))
        started[-1].start()
        return started[-1]

    yield start
    for broker in started:
        broker.stop()


def link_with(address: BrokerAddress, tls: TlsSettings | None, limits: LinkLimits = QUICK) -> MqttLink:
    return MqttLink(address, "a", limits, random.Random(1), tls=tls)


async def fails(address: BrokerAddress, tls: TlsSettings) -> None:
    """Try to connect until the time is up. A crowded machine, which has not shaken hands by then, is given more."""
    for limit_s in (SHORT.connect_timeout_s, 10.0, 60.0):
        try:
            await link_with(address, tls, replace(SHORT, connect_timeout_s=limit_s)).connect()
        except LinkError as error:
            if "no answer" not in str(error) or limit_s == 60.0:
                raise


async def connects(address: BrokerAddress, tls: TlsSettings) -> None:
    link = link_with(address, tls)
    await link.connect()
    await link.publish("x", bytes(100_000))
    await link.close()


# --------------------------------------------------------------------------- settings


def test_settings_and_address_must_agree(certificates: Certificates) -> None:
    tls = certificates.client("a")
    with pytest.raises(SettingsError, match=r"speaks TLS, expected link\.tls"):
        link_with(BrokerAddress("127.0.0.1", 8883, tls=True), None)
    with pytest.raises(SettingsError, match="speaks plain TCP"):
        link_with(BrokerAddress("127.0.0.1", 1883), tls)
    with pytest.raises(SettingsError, match=r"speaks TLS, expected link\.tls"):
        open_link(BrokerAddress("127.0.0.1", 8883, tls=True), "a", LinkSettings())
    open_link(BrokerAddress("127.0.0.1", 8883, tls=True), "a", LinkSettings(tls=tls))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_that_others_may_read(certificates: Certificates, mode: int) -> None:
    tls = certificates.client("a")
    Path(tls.key_file).chmod(mode)
    with pytest.raises(SettingsError, match=rf"mode {mode:04o}\), expected 0600"):
        link_with(BrokerAddress("127.0.0.1", 8883, tls=True), tls)


@pytest.mark.parametrize("field", ["ca_file", "certificate", "key_file"])
def test_files_that_are_not_what_they_must_be(certificates: Certificates, field: str) -> None:
    tls, address = certificates.client("a"), BrokerAddress("127.0.0.1", 8883, tls=True)
    other = certificates.client("b")
    nonsense = certificates.write("nonsense", b"-----BEGIN CERTIFICATE-----\nx\n")
    for wrong in (str(nonsense), str(nonsense) + ".not"):
        with pytest.raises(SettingsError, match="expected"):
            link_with(address, msgspec.structs.replace(tls, **{field: wrong}))
    if field != "ca_file":
        with pytest.raises(SettingsError, match="expected a PEM certificate and its unencrypted key"):
            link_with(address, msgspec.structs.replace(tls, **{field: getattr(other, field)}))


def test_key_that_is_encrypted(certificates: Certificates) -> None:
    from cryptography.hazmat.primitives import serialization as pem

    tls = certificates.client("a")
    key = pem.load_pem_private_key(Path(tls.key_file).read_bytes(), None)
    locked = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"secret"))
    certificates.write(Path(tls.key_file).name, locked)
    with pytest.raises(SettingsError, match="it is encrypted"):
        link_with(BrokerAddress("127.0.0.1", 8883, tls=True), tls)


# --------------------------------------------------------------------------- the broker's certificate


async def test_broker_with_another_name(start_tls_broker: Any, certificates: Certificates) -> None:
    broker = start_tls_broker(certificates.server("broker.example"))
    with pytest.raises(CertificateError, match="another host's"):
        await link_with(broker.address, certificates.client("a")).connect()


async def test_broker_of_another_authority(start_tls_broker: Any, certificates: Certificates, tmp_path: Path) -> None:
    broker = start_tls_broker(Certificates(tmp_path / "other", "lab").server())
    with pytest.raises(CertificateError, match="not of this federation's authority"):
        await link_with(broker.address, certificates.client("a"), LinkLimits()).connect(wait=True)


async def test_broker_with_a_clients_certificate(start_tls_broker: Any, certificates: Certificates) -> None:
    theirs = certificates.client("b")
    tls = BrokerTls(certificates.ca_file, Path(theirs.certificate), Path(theirs.key_file), None)
    with pytest.raises(CertificateError, match="not of this federation's authority"):
        await link_with(start_tls_broker(tls).address, certificates.client("a")).connect()


async def test_broker_whose_certificate_has_ended_or_not_begun(
    start_tls_broker: Any, certificates: Certificates
) -> None:
    for leaf, what in (
        (Leaf(NOW - 9 * DAY, NOW - DAY), "has expired; this machine's clock says 20"),
        (Leaf(NOW + DAY, NOW + 9 * DAY), "not valid yet: this machine's clock says 20"),
    ):
        broker = start_tls_broker(certificates.server(leaf=leaf))
        with pytest.raises(CertificateDateError, match=what):
            await fails(broker.address, certificates.client("a"))


async def test_broker_without_tls_and_broker_with_an_old_one(certificates: Certificates) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\x20\x03\x00\x00\x00")
        writer.close()

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    files = certificates.server()
    old.load_cert_chain(files.certificate, files.key_file)
    for context in (None, old):
        server = await asyncio.start_server(closing, "127.0.0.1", 0, ssl=context)
        address = BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
        with pytest.raises(LinkError, match=r"expected a TLS 1\.3 handshake"):
            await fails(address, certificates.client("a"))
        server.close()


async def test_broker_that_never_shakes_hands(certificates: Certificates) -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        closed.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
    with pytest.raises(LinkError, match="no answer"):
        await asyncio.wait_for(link_with(address, certificates.client("a"), SHORT).connect(), 60)
    await asyncio.wait_for(closed.wait(), 60)  # and no socket is left behind
    server.close()


# --------------------------------------------------------------------------- our certificate


@pytest.mark.parametrize(
    ("leaf", "kind", "what"),
    [
        (Leaf(NOW - 9 * DAY, NOW - DAY), CertificateDateError, "has expired; this machine's clock says 20"),
        (Leaf(NOW + DAY, NOW + 9 * DAY), CertificateDateError, "not valid yet"),
        (Leaf(usages=(SERVER,)), CertificateError, "may not be used by a client"),
    ],
    ids=["expired", "not yet", "a server's"],
)
async def test_our_certificate_is_refused(
    start_tls_broker: Any, certificates: Certificates, leaf: Leaf, kind: type[LinkError], what: str
) -> None:
    with pytest.raises(kind, match=what):
        await fails(start_tls_broker().address, certificates.client("a", leaf=leaf))


async def test_our_certificate_is_of_another_authority(
    start_tls_broker: Any, certificates: Certificates, tmp_path: Path
) -> None:
    strange = Certificates(tmp_path / "other", "lab").client("a")
    tls = msgspec.structs.replace(strange, ca_file=str(certificates.ca_file))
    with pytest.raises(CertificateError, match="not of the broker's authority"):
        await link_with(start_tls_broker().address, tls).connect()


async def test_our_certificate_has_been_revoked(start_tls_broker: Any, certificates: Certificates) -> None:
    broker, issued = start_tls_broker(), certificates.authority.issue_client("a", Role.DEVICE)
    tls = certificates.files("a", issued)
    await connects(broker.address, tls)
    certificates.revoke(issued.serial)
    os.kill(broker.pid, signal.SIGHUP)
    with pytest.raises(CertificateError, match="has been revoked"):
        async with asyncio.timeout(60):
            while True:  # until the broker has taken the signal
                await connects(broker.address, tls)


async def test_renewed_certificate_is_read_at_the_next_connect(
    start_tls_broker: Any, certificates: Certificates
) -> None:
    """Another name stands for another date: the broker lets only the second one write."""
    broker = start_tls_broker(access_list="user CN=b,OU=device,O=lab\ntopic write x\n")
    back, tls = asyncio.Queue[bool](), certificates.client("a")
    link = link_with(broker.address, tls)

    async def connected(is_first: bool) -> None:
        back.put_nowait(is_first)

    link.on_connect(connected)
    await link.connect()
    assert await asyncio.wait_for(back.get(), 60)
    with pytest.raises(RefusedError, match="Not authorized"):
        await link.publish("x", b"")
    assert certificates.files("device-a", certificates.authority.issue_client("b", Role.DEVICE)) == tls
    broker.restart()
    assert await asyncio.wait_for(back.get(), 60) is False
    await link.publish("x", b"")
    await link.close()


async def test_files_that_are_half_renewed_are_tried_again(start_tls_broker: Any, certificates: Certificates) -> None:
    broker, back, tls = start_tls_broker(), asyncio.Queue[bool](), certificates.client("a")
    link = link_with(broker.address, tls)

    async def connected(is_first: bool) -> None:
        back.put_nowait(is_first)

    link.on_connect(connected)
    await link.connect()
    await asyncio.wait_for(back.get(), 60)
    key = Path(tls.key_file).read_bytes()
    certificates.write(Path(tls.key_file).name, certificates.authority.issue_client("a", Role.DEVICE).key)
    with structlog.testing.capture_logs() as logs:
        broker.restart()
        async with asyncio.timeout(60):
            while sum("its unencrypted key" in line.get("reason", "") for line in logs) < 2:
                await asyncio.sleep(0.01)
    assert back.empty()
    certificates.write(Path(tls.key_file).name, key)
    assert await asyncio.wait_for(back.get(), 60) is False
    await link.close()


# --------------------------------------------------------------------------- bytes


async def test_a_write_that_must_read_first_waits_for_it(
    start_tls_broker: Any, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS may ask for that at any time (RFC 8446 §4.6.3); OpenSSL does not here, so its answer is put in."""
    link, real = link_with(start_tls_broker().address, certificates.client("a")), ssl.SSLSocket.send
    stalled: list[int] = []

    def send(self: ssl.SSLSocket, data: Any, flags: int = 0) -> int:
        if len(data) > 1000 and len(stalled) < 3:
            stalled.append(len(data))
            real(self, b"\xc0\x00")  # a ping, so that there will be something to read
            raise ssl.SSLWantReadError
        return real(self, data, flags)

    turns: list[None] = []
    real_on_stalled = Connection._on_stalled
    monkeypatch.setattr(Connection, "_on_stalled", lambda self: turns.append(real_on_stalled(self)))
    await link.connect()
    monkeypatch.setattr(ssl.SSLSocket, "send", send)
    await asyncio.wait_for(link.publish("x", bytes(2000)), 60)
    assert len(stalled) == len(turns) == 3
    await link.close()


async def test_messages_that_share_a_record_are_all_read(certificates: Certificates, seen: Any) -> None:
    """Once TLS has decrypted the record, the socket has nothing to read and the loop does not see the rest of it."""
    count, got = 60, seen()

    async def batching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x03\x00\x00\x00")
        subscribe = await reader.read(1000)
        writer.write(b"\x90\x04" + subscribe[2:4] + b"\x00\x01")
        await writer.drain()
        writer.write(b"".join(b"\x32\x09\x00\x02up%c%c\x00%02d" % (0, 1 + n, n) for n in range(count)))
        await reader.read()
        writer.close()

    files, context = certificates.server(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key_file)
    server = await asyncio.start_server(batching, "127.0.0.1", 0, ssl=context)
    address = BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
    # A queue of three, so that reading also stops and goes on in the middle of the record.
    link = link_with(address, certificates.client("a"), LinkLimits(incoming_messages=3))

    async def slow(delivery: Any) -> None:
        await asyncio.sleep(0)
        await got(delivery)

    await link.subscribe("up", slow)
    await link.connect()
    await got.until(count)
    assert [int(payload) for payload in got.payloads] == list(range(count))
    await link.close()
    server.close()
