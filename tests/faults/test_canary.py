"""I8: no word of a device stands in a broker's files, a packet, a log, or the stores of fewer than k aggregators.

A real fleet over Mosquitto without TLS, which writes down everything for a listener that is away: the worst broker
there can be. The words looked for are those that the devices' outboxes hold, and each place that is searched is shown
to hold what should be there, so that a search that looks in the wrong place fails.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from e2e.fleets import Capture, complete_uploads, coordinator_rows, outboxes, paused, query, small_fleet, start

from aggregator.summing import _elements
from edge_client.outbox import Upload
from fedpruneshare.link import BrokerAddress, Delivery
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.messages import Contribution, RoundPlan, ShareUpload, decode, digest
from fedpruneshare.party import LinkSettings, Party
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sealing import Identity
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.topics import Role
from testbed.fleet import Fleet

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.mosquitto, pytest.mark.timeout(180)]

OVERRIDES = (
    "rounds.count=2", "rounds.deadline_s=90", "rounds.grace_s=60", "coding.chunk_bytes=4096",
    "coding.clip_initial=0.002", 'brokers.kind="mosquitto"',  # a low clip: many different words
)  # fmt: skip
SILENT = "aggregator-3"
_EIGHT = np.dtype("<u8")


# --------------------------------------------------------------------------- the search


@dataclass
class Canaries:
    """Runs of eight bytes that stand nowhere by chance: two words of a device, or eight bytes of its secrets."""

    owners: dict[int, str] = field(default_factory=dict)

    def add(self, owner: str, data: bytes) -> None:
        """Every fourth byte begins a run; runs of few different bytes (zeros, no update) say nothing."""
        for start_at in range(0, len(data) - 8, 4):
            run = data[start_at : start_at + 8]
            if len(set(run)) >= 6:
                self.owners[int.from_bytes(run, "little")] = owner

    def found_in(self, data: bytes) -> set[str]:
        """Whose runs stand in some bytes, at any place."""
        wanted, found = np.array(sorted(self.owners), _EIGHT), set[str]()
        for offset in range(min(8, max(len(data) - 7, 0))):
            here = np.frombuffer(data, _EIGHT, (len(data) - offset) // 8, offset)
            found |= {self.owners[int(run)] for run in here[np.isin(here, wanted)]}
        return found


def everything_below(*folders: Path, but: tuple[Path, ...] = ()) -> bytes:
    """The contents of all files."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"\0\0".join(path.read_bytes() for path in files if not any(path.is_relative_to(one) for one in but))


# --------------------------------------------------------------------------- who listens


@contextmanager
def sniffed() -> Iterator[list[bytes]]:
    """Every packet of the loopback interface; none where that is not allowed."""
    packets: list[bytes] = []
    over = threading.Event()
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.bind(("lo", 0))
    except PermissionError:
        yield packets
        return
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    tap.settimeout(0.1)

    def listen() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                packets.append(tap.recv(1 << 17))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield packets
    finally:
        over.set()
        thread.join(10.0)
        tap.close()


async def leave_a_session(addresses: dict[str, BrokerAddress]) -> None:
    """A listener to everything goes away, and its brokers keep for it what it misses."""

    async def never(delivery: Delivery) -> None: ...

    for name, address in addresses.items():
        link = MqttLink(address, f"away-{name}", LinkSettings().limits(), random.Random(1), session_expiry_s=3600)
        await link.subscribe("#", never)
        await link.connect()
        await link.close()


def broker_files(fleet: Fleet) -> bytes:
    """What the brokers have written, once each has been told to write it all."""
    folders = {name: fleet.folder.state / f"broker-{name}" for name in fleet.brokers}
    for name, broker in fleet.brokers.items():
        kept = folders[name] / "mosquitto.db"
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        os.kill(broker.pid, signal.SIGUSR1)  # write the persistence file
        fleet.wait_for(
            lambda kept=kept, b=before: kept.exists() and kept.stat().st_mtime_ns > b, 20, f"files of {name}"
        )
    return everything_below(*folders.values())


# --------------------------------------------------------------------------- the fleet


@dataclass
class Seen:
    """What was there while every share of round 1 was on its way or stored."""

    uploads: dict[str, Upload]
    stores: dict[str, Path]
    on_brokers: bytes
    plan: bytes


def look(fleet: Fleet, folder: Path) -> Seen:
    """With one aggregator silent: outboxes are full, two aggregators hold all shares, the third broker its messages."""
    uploads = fleet.wait_for(lambda: outboxes(fleet), 60, "every device's upload")
    others = [name for name in fleet.aggregators if name != SILENT]
    for name in others:
        fleet.wait_for(lambda n=name: complete_uploads(fleet, n, 1) == len(uploads), 60, f"all shares at {name}")
    stores = {}
    for name in others:
        stores[name] = folder / name
        shutil.copytree(fleet.folder.store(name), stores[name])
    plan = coordinator_rows(fleet, "SELECT plan FROM rounds WHERE round_id = 1")[0][0]
    return Seen(uploads, stores, broker_files(fleet), plan)


def view_of(fleet: Fleet, plan: bytes) -> PlanView:
    assert fleet.directory is not None
    found = decode("round-plan", plan)
    assert isinstance(found, RoundPlan)
    return check_plan(found, digest(plan), fleet.directory)


def shares_in(store: Path, upload: Upload) -> tuple[Contribution, bytes]:
    """A device's whole share, as one aggregator has it on disk."""
    path = store / "shares.sqlite"
    rows = query(path, "SELECT data FROM chunks WHERE upload_id = ? ORDER BY chunk", upload.upload_id)
    device = query(path, "SELECT device_id FROM uploads WHERE upload_id = ?", upload.upload_id)[0][0]
    return Contribution(device, upload.upload_id, upload.rung), b"".join(row[0] for row in rows)


def opened_by(stores: dict[str, Path], view: PlanView, upload: Upload) -> np.ndarray:
    """What these aggregators together can read of an upload."""
    points = {}
    for name, store in stores.items():
        x = view.plan.points[name]
        share = shares_in(store, upload)
        points[x] = _elements(view, x, share, lambda _: Prg(upload.prg))[: view.upload_words(upload.rung)]
    return view.scheme.open(points, view.upload_words(upload.rung))


def test_no_word_of_a_device_stands_anywhere(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", *OVERRIDES) as fleet, sniffed() as packets:
        addresses = {name: broker.address for name, broker in fleet.brokers.items()}
        asyncio.run(leave_a_session(addresses))
        capture = Capture(addresses)
        with capture.running():
            pids = start(fleet)
            with paused(pids[SILENT]):
                seen = look(fleet, tmp_path)
            assert fleet.wait_done(90) == 0
            at_the_end = broker_files(fleet)
            coordinator = Identity.load(fleet.folder.key("coordinator"))
        devices = tuple(fleet.folder.store(name) for name in fleet.devices)
        brokers = tuple(fleet.folder.state / f"broker-{name}" for name in fleet.brokers)
        rest = everything_below(fleet.folder.root, but=(*devices, *brokers, fleet.folder.keys))
        view, directory = view_of(fleet, seen.plan), fleet.directory
    assert directory is not None
    words, secrets = canaries_of(seen.uploads)
    published = b"\0\0".join(payload for _, _, payload, _ in capture.messages)

    everywhere = {
        "broker files, first": seen.on_brokers, "broker files, last": at_the_end, "MQTT": published,
        "packets": b"".join(packets), "logs, settings, results, services' stores": rest,
    }  # fmt: skip
    for place, data in everywhere.items():
        print(f"{place}: {len(data) / 2**20:.1f} MiB")
        assert words.found_in(data) == set(), place
        assert secrets.found_in(data) == set(), place
    check_stores(seen, view, words, secrets)
    check_that_it_would_be_seen(Party(coordinator, directory, Role.COORDINATOR), capture, everywhere, bool(packets))


def canaries_of(uploads: dict[str, Upload]) -> tuple[Canaries, Canaries]:
    """The words of all devices; and their sharing seeds and masks."""
    words, secrets = Canaries(), Canaries()
    for device, upload in uploads.items():
        words.add(device, upload.words.astype("<u4").tobytes())
        secrets.add(device, b"".join(upload.seeds.values()) + upload.masks.astype("<u4").tobytes())
    print({device: np.unique(upload.words).size for device, upload in uploads.items()}, len(words.owners))
    assert len(words.owners) > 1000
    assert set(words.owners.values()) == set(secrets.owners.values()) == set(uploads)
    return words, secrets


def check_stores(seen: Seen, view: PlanView, words: Canaries, secrets: Canaries) -> None:
    """One aggregator's store shows nothing; two together, which is k, show everything."""
    assert (view.scheme.k, len(seen.stores)) == (2, 2)
    for name, store in seen.stores.items():
        data = everything_below(store)
        assert words.found_in(data) == set(), name
        if not view.scheme.is_seed_point(view.plan.points[name]):  # a seed share is that point's own
            assert secrets.found_in(data) == set(), name
    for device, upload in seen.uploads.items():
        opened = opened_by(seen.stores, view, upload)
        assert np.array_equal(opened, upload.words)
        assert device in words.found_in(opened.tobytes())


def check_that_it_would_be_seen(
    reader: Party, capture: Capture, everywhere: dict[str, bytes], is_sniffed: bool
) -> None:
    """Sealed shares, which look like nothing, are found in brokers' files and packets by the very same search."""
    sealed = Canaries()
    for _, topic, payload, _ in capture.messages:
        if payload and topic.split("/")[3] == "up":
            message = reader.open("up", payload)
            assert isinstance(message.message, ShareUpload)
            sealed.add(message.sender, message.message.sealed[:400])
    devices = set(sealed.owners.values())
    assert len(devices) == 8
    for place in ("broker files, first", "broker files, last", "MQTT", *(["packets"] if is_sniffed else [])):
        assert sealed.found_in(everywhere[place]) == devices, place
    planted = Canaries()
    planted.add("device-00", bytes(range(100)))
    assert planted.found_in(b"x" * 13 + bytes(range(100))) == {"device-00"}
