"""The doctor on the federation: settings, key file and directory, the store's folder, and every broker."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from edge_client.adaptation.calibration import load_calibration
from edge_client.board.profiles import BoardProfile
from edge_client.doctor.findings import Check, Finding, Visit
from edge_client.settings import DeviceSettings
from fedpruneshare.errors import LinkError, RefusedError, SettingsError
from fedpruneshare.link import BrokerAddress, Delivery, Link
from fedpruneshare.link.tcp import connect_tcp
from fedpruneshare.link.tls import start_tls
from fedpruneshare.party import LinkSettings, Party
from fedpruneshare.process import open_link

CONFIG: Final = Check("config", "the service starts with a settings file without mistakes only")
DIRECTORY: Final = Check(
    "directory", "keys and brokers come from it; the root must have signed it and it must name this device"
)
STORE: Final = Check("store", "the outbox and the ledger lie there: without them a restart loses the upload under way")
BROKERS: Final = Check("brokers", "shares go to every aggregator's broker, plans come from the coordinator's")

CALIBRATION: Final = Check("calibration", "without measured times a device chooses its model by its board's estimates")

_LOW_MIB, _LEAST_MIB = 500, 50
#: File systems that forget at every start.
_FORGETFUL: Final = ("tmpfs", "ramfs", "overlay")

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 5.0
#: For everything about one broker together, whatever hangs.
_BROKER_S: Final = 20.0
_SLOW_S: Final = 1.0
_TRIPS: Final = 5


def federation(visit: Visit) -> list[Finding]:
    """All findings on what a settings file names; skipped where none was given or it cannot be read."""
    if visit.config is None:
        return [
            check.skipped("no settings file was given") for check in (CONFIG, CALIBRATION, DIRECTORY, STORE, BROKERS)
        ]
    if visit.settings is None:
        fix = "mend what is listed; the names are in docs/operations.md"
        rest = [check.skipped("the settings cannot be read") for check in (CALIBRATION, DIRECTORY, STORE, BROKERS)]
        return [CONFIG.failed(visit.settings_error, fix), *rest]
    findings = [
        CONFIG.ok(str(visit.config)),
        calibration_finding(visit.settings, visit.profile),
        _directory(visit),
        store_finding(Path(visit.settings.store), visit.root),
    ]
    if visit.party is None:
        return [*findings, BROKERS.skipped("the directory cannot be read")]
    if not visit.is_here:
        return [*findings, BROKERS.skipped("a copied tree says nothing of this machine's network")]
    return [*findings, *brokers(visit.party, visit.settings.link, visit.is_sparing)]


def calibration_finding(settings: DeviceSettings, profile: BoardProfile | None) -> Finding:
    """Whether there is a calibration that can be read, of this board and this task."""
    again = "fedpruneshare device calibrate --config FILE"
    path = Path(settings.calibration or Path(settings.store) / "calibration.toml")
    if not settings.adaptive:
        return CALIBRATION.skipped("adaptive = false: the device does not choose by what it measured")
    if not settings.calibration and not path.exists():
        return CALIBRATION.warning(f"no {path}", again)
    try:
        known = load_calibration(path)
    except SettingsError as error:
        return CALIBRATION.failed(str(error), again)
    found = f"{path}: board {known.board}, task {known.task}, widths {', '.join(known.step_s) or 'none'}"
    if profile is not None and known.board != profile.name:
        return CALIBRATION.warning(f"{found}; this is {profile.name}", again)
    if known.task != settings.task.name:
        return CALIBRATION.warning(f"{found}; the task is {settings.task.name}", again)
    return CALIBRATION.ok(found)


def _directory(visit: Visit) -> Finding:
    if visit.party is None:
        fix = "fetch the federation's current directory, and check party.root_key and party.key_file"
        return DIRECTORY.failed(visit.party_error, fix)
    known = visit.party.directory
    who = f"this is {visit.party.ident}, {len(known.aggregators)} aggregators"
    return DIRECTORY.ok(f"{known.federation}, version {known.version}: {who}")


# --------------------------------------------------------------------------- the store's folder


def store_finding(store: Path, root: Path) -> Finding:
    """Whether the store can be written, lasts, and has room. Writes one empty file where the folder exists."""
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        if place == store:
            with tempfile.NamedTemporaryFile(dir=store, prefix=".doctor-"):
                pass
        elif not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        free_mib = shutil.disk_usage(place).free >> 20
    except OSError as error:
        found = f"{place}: {(error.strerror or 'cannot be written').lower()}, expected a folder to write to"
        return STORE.failed(found, f"sudo install -d -o $USER {store}")
    found = f"{store}: {free_mib} MiB free" + ("" if place == store else f" (not made yet, below {place})")
    if free_mib < _LEAST_MIB:
        return STORE.failed(f"{found}, {_LEAST_MIB} needed", "make room, or name another folder in `store`")
    if free_mib < _LOW_MIB:
        return STORE.warning(f"{found}, that is little", "make room, or name another folder in `store`")
    kind = file_system(place.resolve(), root)
    if kind in _FORGETFUL:
        return STORE.warning(
            f"{found}, on {kind}, which forgets at every start", "name a folder on the card in `store`"
        )
    return STORE.ok(found, free_mib=float(free_mib))


def file_system(place: Path, root: Path) -> str:
    """The kind of file system that `place` is on, by proc/self/mounts; empty where that cannot be read."""
    try:
        text = (root / "proc/self/mounts").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    kinds = {}
    for line in text.splitlines():
        parts = line.split(" ")
        if len(parts) > 2 and place.is_relative_to(parts[1].replace("\\040", " ")):
            kinds[len(parts[1])] = parts[2]  # the deepest mount holds, of two at one place the later
    return kinds[max(kinds)] if kinds else ""


# --------------------------------------------------------------------------- the brokers


def brokers(party: Party, settings: LinkSettings, is_sparing: bool = False) -> list[Finding]:
    """One finding a broker: does it accept a connection and a login, and how far away is it?

    `is_sparing`: a broker that knows devices by their certificates is not logged in at; one more login with it would
    end the connection of the device at work.
    """
    directory = party.directory
    addresses = {"control": directory.coordinator.address}
    addresses |= {ident: service.address for ident, service in directory.aggregators.items()}
    bounded = msgspec.structs.replace(
        settings,
        connect_timeout_s=min(settings.connect_timeout_s, _CONNECT_S),
        publish_timeout_s=min(settings.publish_timeout_s, _ANSWER_S),
    )

    async def all_of_them() -> list[Finding]:
        return await asyncio.gather(
            *(
                (_spared if is_sparing and place.tls else _broker)(name, place, party, bounded)
                for name, place in addresses.items()
            )
        )

    return asyncio.run(all_of_them())


async def _broker(name: str, address: BrokerAddress, party: Party, settings: LinkSettings) -> Finding:
    check = Check(f"broker {name}", BROKERS.why)
    where = f"{address.host}:{address.port}"
    # A name of its own: under the device's the broker would throw the running one out. (One that takes the name from
    # the certificate does so all the same: `_spared`.)
    link = open_link(address, f"{party.ident}-doctor", settings)
    try:
        async with asyncio.timeout(_BROKER_S):
            tcp_s = await _tcp(address, settings.connect_timeout_s)
            started_s = time.perf_counter()
            await link.connect()
            login_s = time.perf_counter() - started_s
            rtt_s = await _round_trip(link, f"{party.directory.federation}/doctor/{party.ident}")
    except RefusedError as error:
        return check.failed(f"{where}: {error}", "check the broker's password file and access list for this device")
    except (LinkError, TimeoutError) as error:
        found = str(error) or f"no answer within {_BROKER_S:.0f} s"
        return check.failed(
            f"{where}: {found}", f"nc -vz {address.host} {address.port}; is it up, and no firewall between?"
        )
    finally:
        with suppress(LinkError):
            await link.close()
    found = f"{where}: TCP in {tcp_s * 1e3:.1f} ms, login in {login_s * 1e3:.1f} ms, round trip {rtt_s * 1e3:.1f} ms"
    figures = {"tcp_s": tcp_s, "login_s": login_s, "rtt_s": rtt_s}
    if rtt_s > _SLOW_S:
        return check.warning(found, "a link this slow needs longer rounds: rounds.deadline_s", **figures)
    return check.ok(found, **figures)


async def _spared(name: str, address: BrokerAddress, _party: Party, settings: LinkSettings) -> Finding:
    """As `_broker`, as far as the device at work is not disturbed."""
    check = Check(f"broker {name}", BROKERS.why)
    where = f"{address.host}:{address.port}"
    try:
        async with asyncio.timeout(_BROKER_S):
            tcp_s = await _tcp(address, settings.connect_timeout_s)
            if settings.tls is None:
                raise LinkError("it speaks TLS, expected link.tls with a certificate for it")
            connection, started_s = await connect_tcp(address), time.perf_counter()
            (await start_tls(connection, address, settings.tls)).close()
            tls_s = time.perf_counter() - started_s
    except (LinkError, TimeoutError) as error:
        found = str(error) or f"no answer within {_BROKER_S:.0f} s"
        return check.failed(f"{where}: {found}", f"nc -vz {address.host} {address.port}; what does the device log?")
    found = f"{where}: TCP in {tcp_s * 1e3:.1f} ms, TLS in {tls_s * 1e3:.1f} ms; no login"
    why = "it would end the connection of the device at work, whose log says how it fares; --force logs in"
    return check.ok(f"{found}: {why}", tcp_s=tcp_s, tls_s=tls_s)


async def _tcp(address: BrokerAddress, limit_s: float) -> float:
    """Seconds of a TCP connection alone, which tells a broker that is not there from one that does not let us in."""
    started_s = time.perf_counter()
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        raise LinkError(f"no TCP connection within {limit_s:g} s") from None
    except socket.gaierror as error:
        raise LinkError(f"no such host ({error.strerror})") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # asyncio's own text names its function
        raise LinkError(f"no TCP connection: {reason.lower()}") from None
    writer.close()
    return time.perf_counter() - started_s


async def _round_trip(link: Link, topic: str) -> float:
    """Seconds of a subscription's answer, the median of a few.

    Nothing is published: every topic a device may write to means something. A broker that refuses answers, too.
    """

    async def ignore(delivery: Delivery) -> None:
        del delivery

    times = []
    for _ in range(_TRIPS):
        started_s = time.perf_counter()
        with suppress(RefusedError):
            await link.subscribe(topic, ignore)
        times.append(time.perf_counter() - started_s)
        await link.unsubscribe(topic)
    return median(times)
