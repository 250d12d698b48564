"""Running a service as a process: an event loop that ends cleanly on SIGTERM and Ctrl-C (docs/protocol.md §9)."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from collections.abc import Awaitable, Callable

import structlog

from fedpruneshare.errors import FedPruneShareError
from fedpruneshare.expiry import watch_ends
from fedpruneshare.link import BrokerAddress, Link
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import LinkSettings, Party

_log = structlog.get_logger()

#: Makes a link to one broker for a client id, not yet connected.
OpenLink = Callable[[BrokerAddress, str, LinkSettings], Link]


def open_link(address: BrokerAddress, client_id: str, settings: LinkSettings) -> Link:
    """A link to one broker, not yet connected.

    Sessions are clean: what a broker would have queued is asked for again by the protocol itself, which a broker that
    lost its memory forces on it anyway (docs/protocol.md §3.2). Raises `SettingsError` where address and
    `settings.tls` do not fit.
    """
    return MqttLink(address, client_id, settings.limits(), random.Random(), tls=settings.tls)


def serve(work: Callable[[], Awaitable[int]], party: Party | None = None, tls: TlsSettings | None = None) -> int:
    """Run `work` in a new event loop until it returns its exit code, or SIGTERM or SIGINT cancels it (then 0).

    SIGHUP has `party` read its key file and the directory again (docs/protocol.md §7.1); faults are logged.
    In good time before its directory or certificate (`tls`) ends a line of the log says so.
    """
    leave_no_core()
    return asyncio.run(_serve(work, party, tls))


def leave_no_core() -> None:
    """Should this process crash, no image of its memory is kept: keys, seeds and shares are in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


async def _serve(work: Callable[[], Awaitable[int]], party: Party | None, tls: TlsSettings | None) -> int:
    loop = asyncio.get_running_loop()
    if party is not None:
        _keep_directory(party)
    task = asyncio.ensure_future(work())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    if party is not None:
        loop.add_signal_handler(signal.SIGHUP, _reload, party)
    watching = asyncio.ensure_future(watch_ends(party, tls)) if party is not None else None
    try:
        return await task
    except asyncio.CancelledError:
        _log.info("stopped")
        return 0
    finally:
        if watching is not None:
            watching.cancel()


def _keep_directory(party: Party) -> None:
    try:
        party.keep_directory()
    except FedPruneShareError as error:
        _log.error("directory-not-kept", reason=str(error))


def _reload(party: Party) -> None:
    try:
        is_new = party.reload()
    except FedPruneShareError as error:
        _log.error("not-reloaded", reason=str(error))
    else:
        _log.info("reloaded", is_new=is_new, directory=party.directory.version)
