"""Brokers and their access lists, tried with a party's own certificate and with messages that mean nothing.

An empty payload is the one thing every party ignores on every channel (docs/protocol.md §1.3). A broker that speaks
MQTT 5 answers a forbidden one with "not authorized"; so a party sees what it may write. What it may read shows only
where something retained waits for it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from fedpruneshare.directory import utc
from fedpruneshare.errors import CertificateDateError, CertificateError, LinkError, RefusedError
from fedpruneshare.expiry import SOON_S
from fedpruneshare.link import BrokerAddress, Delivery, Link
from fedpruneshare.link.tls import TlsSettings, client_context
from fedpruneshare.party import LinkSettings, Party
from fedpruneshare.process import open_link
from fedpruneshare.topics import TABLE, Broker, Channel, Role
from firmware_configs.provision.findings import FAILED, OK, WARNING, Finding

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 5.0
#: How long a retained message may take to arrive that the broker holds.
_ARRIVAL_S: Final = 1.0
_CONTROL: Final = "control"
_UPDATE: Final = "copy the root's updates/ to that broker, and SIGHUP it"
#: What can be done about a broker's certificate, by the reason of a `CertificateError`.
_CERTIFICATE_FIXES: Final = {
    "authority": "another federation's broker listens there, or this bundle is another's: look at host and port",
    "host": "another broker listens there, or its host was renamed: look at host and port, then `provision renew` it",
}


def probe_brokers(party: Party, settings: LinkSettings) -> list[Finding]:
    """Findings on every broker this party has business with."""
    directory = party.directory
    addresses = {_CONTROL: directory.coordinator.address}
    if party.role is Role.DEVICE:
        addresses |= {name: service.address for name, service in directory.aggregators.items()}
    elif party.role is Role.AGGREGATOR:
        addresses[party.ident] = directory.aggregators[party.ident].address
    bounded = msgspec.structs.replace(
        settings,
        connect_timeout_s=min(settings.connect_timeout_s, _CONNECT_S),
        publish_timeout_s=min(settings.publish_timeout_s, _ANSWER_S),
    )

    async def all_of_them() -> list[Finding]:
        found = await asyncio.gather(*(_broker(name, place, party, bounded) for name, place in addresses.items()))
        return [finding for findings in found for finding in findings]

    return asyncio.run(all_of_them())


async def _broker(name: str, address: BrokerAddress, party: Party, settings: LinkSettings) -> list[Finding]:
    what = f"broker {name}"
    where = f"{address.host}:{address.port}"
    link = open_link(address, party.ident, settings)
    try:
        await link.connect()
        findings = [Finding(OK, what, f"{where}: connected, {'mutual TLS' if address.tls else 'no TLS'}")]
        if address.tls and settings.tls is not None:
            findings += await asyncio.to_thread(_dates, what, address, settings.tls)
        kind = Broker.CONTROL if name == _CONTROL else Broker.OWN
        return findings + await _access(what, kind, party, link)
    except LinkError as error:
        found = str(error) if str(error).startswith(where) else f"{where}: {error}"
        return [Finding(FAILED, what, found, _what_to_do(error))]
    finally:
        await link.close()


def _what_to_do(error: LinkError) -> str:
    if isinstance(error, CertificateError):
        return _CERTIFICATE_FIXES.get(error.reason, _UPDATE)
    if isinstance(error, CertificateDateError):
        return "set the clock that is wrong, or renew the certificate that has ended, here or there"
    if isinstance(error, RefusedError):
        return _UPDATE
    return "is it up, and its host and port those of the directory? does this party run already?"


def _dates(what: str, address: BrokerAddress, tls: TlsSettings) -> list[Finding]:
    """A warning if the certificate that the broker shows ends soon: it may be an older one than lies in its folder."""
    place, context = (address.host, address.port), client_context(tls)
    try:
        with (
            socket.create_connection(place, _CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secure,
        ):
            shown = secure.getpeercert() or {}
    except OSError as error:
        return [Finding(WARNING, what, f"its certificate was not shown a second time: {error}")]
    end = ssl.cert_time_to_seconds(str(shown["notAfter"]))
    if end - time.time() >= SOON_S:
        return []
    fix = "`provision renew` at the root, `provision enrol finish` there, SIGHUP the broker"
    return [Finding(WARNING, what, f"the certificate it shows ends at {utc(end)}", fix)]


async def _access(what: str, kind: Broker, party: Party, link: Link) -> list[Finding]:
    """What this party may write there, and what not."""
    refused = [channel.name for channel, topic in _own(kind, party) if not await _is_taken(link, topic)]
    taken = [topic for topic in _foreign(kind, party) if await _is_taken(link, topic)]
    findings = []
    fix = "its access list is not the directory's: copy the root's updates/ there, and SIGHUP it"
    if refused:
        findings.append(Finding(FAILED, what, f"refuses this party's own {', '.join(refused)}", fix))
    if taken:
        findings.append(Finding(FAILED, what, f"takes what only others may write: {', '.join(taken)}", fix))
    if not refused and not taken:
        findings.append(Finding(OK, what, "takes this party's own messages and refuses others'"))
    arrived = await _retained(kind, party, link)
    if arrived is not None:
        findings.append(arrived)
    return findings


def _own(kind: Broker, party: Party) -> Iterator[tuple[Channel, str]]:
    """A topic of every channel that this party writes there without leaving something behind."""
    for channel in TABLE:
        if channel.broker is kind and channel.writer is party.role and not channel.retained:
            yield channel, _topic(channel, party, party.ident)


def _foreign(kind: Broker, party: Party) -> Iterator[str]:
    """Topics that only others write: of other roles, and another's of this role. They name nobody there is."""
    for channel in TABLE:
        is_others = channel.writer is not party.role or f"{{{party.role}}}" in channel.pattern
        if channel.broker is kind and is_others and not channel.retained:
            yield _topic(channel, party, "nobody")


def _topic(channel: Channel, party: Party, name: str) -> str:
    levels = channel.pattern.count("{")
    return party.topics.name(channel.name, *[name] * levels)


async def _is_taken(link: Link, topic: str) -> bool:
    """Whether the broker takes an empty message."""
    try:
        await link.publish(topic, b"", expiry_s=1.0)
    except RefusedError:
        return False
    return True


async def _retained(kind: Broker, party: Party, link: Link) -> Finding | None:
    """Whether what the coordinator has left for everybody arrives."""
    if kind is not Broker.CONTROL or party.role is Role.COORDINATOR:
        return None
    came: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def take(delivery: Delivery) -> None:
        if not came.done():
            came.set_result(delivery.topic)

    for channel in ("round", "outcome", "directory"):
        await link.subscribe(party.topics.every(channel), take)
    try:
        async with asyncio.timeout(_ARRIVAL_S):
            topic = await came
    except TimeoutError:
        return Finding(
            WARNING, f"broker {_CONTROL}", "nothing to read yet", "fine before the coordinator's first round"
        )
    return Finding(OK, f"broker {_CONTROL}", f"{topic} can be read")
