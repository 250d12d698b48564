"""Devices that were there before the coordinator are heard, however many a broker hands over at once."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from builders import directory, identity, keys

from coordinator import roll_call
from coordinator.desk import Desk
from coordinator.roll_call import await_devices
from coordinator.store import RoundStore
from fedpruneshare.directory import DeviceEntry
from fedpruneshare.link import LinkLimits
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.messages import Hello
from fedpruneshare.party import Party
from fedpruneshare.topics import Role
from firmware_configs.brokers.embedded import embedded_broker

FLEET = tuple(f"device-{index:03}" for index in range(150))


async def test_hellos_that_a_broker_drops_are_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "_PAUSE_S", 0.2)
    everybody = directory(devices={name: DeviceEntry(keys(name)) for name in (*FLEET, "device-999")})
    party = Party(identity("coordinator"), everybody, Role.COORDINATOR)
    store = RoundStore(tmp_path / "store", bytes(32))
    with embedded_broker(tmp_path) as broker:
        async with AsyncExitStack() as links:
            links.callback(store.close)
            names = ("coordinator", "devices")
            own, theirs = (MqttLink(broker.address, name, LinkLimits(), random.Random(1)) for name in names)
            await theirs.connect(wait=True)
            links.push_async_callback(theirs.close)
            for name in FLEET:
                hello = Party(identity(name), everybody, Role.DEVICE).sign(Hello("0.1.0", 1))
                await theirs.publish(party.topics.name("hello", name), hello, retain=True)
            desk = Desk(party, store, own)
            await desk.subscribe()
            await own.connect(wait=True)
            links.push_async_callback(own.close)

            def heard() -> set[str]:
                return set(store.fleet(1).limits)

            await await_devices(desk, lambda: len(heard()) == 150, lambda: everybody.devices.keys() - heard(), 30)
            assert heard() == set(FLEET)
            assert not [each for each in own._inbox.subscriptions if "/hello/device" in each]
