"""Small fleets for the end-to-end tests: the shipped sample, few devices, short deadlines, and what tests watch."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.outbox import Outbox, Upload
from fedpruneshare.errors import LinkError
from fedpruneshare.link import BrokerAddress, Delivery
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from testbed.fleet import Fleet
from testbed.scenario import load_scenario

#: Deadline, grace and the wait for the roster cost nothing where everybody is there, and a crowded machine needs them.
SMALL = (
    "fleet.devices=8", "rounds.cohort=8", "rounds.min_devices=4", "rounds.grace_s=30.0", "rounds.deadline_s=300.0",
    "rounds.wait_for_devices_s=90.0", 'task.data="fixture"', "training.local_epochs=1",
)  # fmt: skip


def small_fleet(folder: Path, *overrides: str) -> Fleet:
    """A fleet of eight devices on the sample; its brokers run, its services do not yet."""
    return Fleet(load_scenario("demo", [*SMALL, *overrides]), folder, seed=1)


def start(fleet: Fleet) -> dict[str, int]:
    """Start everything; process ids by name, those of the brokers as `broker-NAME`."""
    pids = {f"broker-{name}": broker.pid for name, broker in fleet.brokers.items()}
    pids |= {ident: fleet.start_aggregator(ident) for ident in fleet.aggregators}
    pids["coordinator"] = fleet.start_coordinator()
    return pids | {ident: fleet.start_device(ident) for ident in fleet.devices}


@contextmanager
def held(fleet: Fleet, *silent: str) -> Iterator[dict[str, int]]:
    """Start everything and hold the first round open, for as long as the block lasts, by devices that say nothing.

    These devices (`device-00` if none is named) are paused once the coordinator has heard their hello and before the
    rest of the fleet is there: they are in the cohort of round 1, for which the coordinator waits for the whole roster,
    and have not read that plan.
    """
    silent = silent or ("device-00",)
    pids = {f"broker-{name}": broker.pid for name, broker in fleet.brokers.items()}
    pids |= {ident: fleet.start_aggregator(ident) for ident in fleet.aggregators}
    pids |= {"coordinator": fleet.start_coordinator()}
    pids |= {ident: fleet.start_device(ident) for ident in silent}
    greeted = "SELECT device_id FROM devices"
    fleet.wait_for(lambda: len(coordinator_rows(fleet, greeted)) == len(silent), 200, f"the hello of {silent}")
    with paused(*(pids[ident] for ident in silent)):
        pids |= {ident: fleet.start_device(ident) for ident in fleet.devices if ident not in silent}
        fleet.wait_for(lambda: begun_rounds(fleet) >= 1, 200, "the first plan")
        yield pids


@contextmanager
def paused(*pids: int) -> Iterator[None]:
    """SIGSTOP processes for as long as the block lasts: they are there, and say nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # the block may have killed it
                os.kill(pid, signal.SIGCONT)


def query(path: Path, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """Rows of a service's store, read beside it."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
    try:
        return database.execute(statement, arguments).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        database.close()


def coordinator_rows(fleet: Fleet, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """Rows of the coordinator's store."""
    path = fleet.folder.store("coordinator") / "rounds.sqlite"
    return query(path, statement, *arguments) if path.exists() else []


def at(fleet: Fleet, aggregator: str, statement: str, *arguments: Any) -> int:
    """A number from an aggregator's store."""
    path = fleet.folder.store(aggregator) / "shares.sqlite"
    rows = query(path, statement, *arguments) if path.exists() else []
    return int(rows[0][0]) if rows else 0


def complete_uploads(fleet: Fleet, aggregator: str, round_id: int) -> int:
    """How many uploads an aggregator holds whole."""
    stored = "SELECT COUNT(*) FROM chunks c WHERE c.round_id = u.round_id AND c.upload_id = u.upload_id"
    return at(fleet, aggregator, f"SELECT COUNT(*) FROM uploads u WHERE round_id = ? AND chunks = ({stored})", round_id)


def begun_rounds(fleet: Fleet) -> int:
    """How many rounds the coordinator has planned."""
    rows = coordinator_rows(fleet, "SELECT COUNT(*) FROM rounds WHERE plan IS NOT NULL")
    return int(rows[0][0]) if rows else 0


def upload_id_of(fleet: Fleet, device: str, plan: bytes) -> bytes | None:
    """Id of the upload in a device's outbox for a plan, if it has got that far."""
    folder = fleet.folder.store(device) / "outbox"
    upload = Outbox(folder).get(plan) if folder.exists() else None
    return upload.upload_id if upload else None


def outboxes(fleet: Fleet) -> dict[str, Upload] | None:
    """The upload that lies in each device's outbox, once every device has written its own."""
    uploads = {}
    for device in fleet.devices:
        folder = fleet.folder.store(device) / "outbox"
        upload = Outbox(folder).held() if folder.exists() else None
        if upload is None:
            return None
        uploads[device] = upload
    return uploads


#: What the tap itself publishes at the end: whatever brokers had taken before comes before it.
END = "tap/end"


@dataclass
class Capture:
    """Every payload that passes a set of brokers, taken down by a client that subscribes to everything."""

    addresses: dict[str, BrokerAddress]
    messages: list[tuple[str, str, bytes, bool]] = field(default_factory=list)
    _stop: Callable[[], None] = lambda: None

    @contextmanager
    def running(self) -> Iterator[Capture]:
        """Capture while the block lasts. `messages`: (broker, topic, payload, retained)."""
        ready, failure = threading.Event(), []

        def work() -> None:
            try:
                asyncio.run(self._listen(ready))
            except Exception as error:
                failure.append(error)
                ready.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(120.0)
        assert not failure, failure
        try:
            yield self
        finally:
            self._stop()
            thread.join(200.0)

    async def _listen(self, ready: threading.Event) -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(over.set)
        links, ended = [], []
        for name, address in self.addresses.items():
            link, end = open_link(address, f"tap-{name}", LinkSettings()), asyncio.Event()

            async def keep(delivery: Delivery, name: str = name, end: asyncio.Event = end) -> None:
                if delivery.topic == END:
                    end.set()
                else:
                    self.messages.append((name, delivery.topic, delivery.payload, delivery.retained))

            await link.subscribe("#", keep)
            await link.connect()
            links.append(link)
            ended.append(end)
        ready.set()
        await over.wait()
        for link, end in zip(links, ended, strict=True):
            with suppress(LinkError, TimeoutError):  # a broker that is gone has nothing more to tell
                async with asyncio.timeout(30.0):
                    await link.publish(END, b"")
                    await end.wait()
            await link.close()


@contextmanager
def hearing_attendances(fleet: Fleet) -> Iterator[Callable[[], None]]:
    """Listen on the control broker; what is yielded waits until every aggregator's attendance has got there.

    Stored is not sent yet: an aggregator paused in between would keep its attendance to itself.
    """
    with Capture({"control": fleet.brokers["control"].address}).running() as tap:

        def wait() -> None:
            for name in fleet.aggregators:
                end = f"/attendance/{name}"
                fleet.wait_for(
                    lambda e=end: any(topic.endswith(e) for _, topic, _, _ in list(tap.messages)),
                    200,
                    f"that of {name}",
                )

        yield wait
