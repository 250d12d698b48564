"""A key that is revoked while a round is open, in a simulated federation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from simulators.schedules import CALM, _begin, _reload
from simulators.virtual_time import VirtualLoop, run
from simulators.world import Setup, World

from coordinator.deciding import Decider
from testbed.faults import checker


def test_a_key_that_is_replaced_and_revoked_after_the_attendance_fails_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every aggregator drops the upload it has signed: a Freeze that named it would be refused by all of them."""
    victim, setup, loop = "device-05", Setup(11, devices=8), VirtualLoop()
    world = World(setup, tmp_path, loop)
    check_dealers = Decider.check_dealers

    def replace_key() -> None:
        (old,) = (key.raw().key_id.hex() for key in world.directory.devices[victim].keys)
        world.keys[victim] += 1
        world.revoked.add(victim)  # as histories tell it: what it sent so far counts no more
        entry = msgspec.structs.replace(world.directory.devices[victim], keys=world.public(victim)[:1])
        world.sign_directory(devices=world.directory.devices | {victim: entry}, revoked={old: victim})
        for name in (*setup.aggregators, "coordinator"):
            _reload(world, name)

    async def after_attendance(decider: Decider, *rest: Any) -> Any:
        if not world.directory.revoked:
            replace_key()
            await asyncio.sleep(0.1)
        return await check_dealers(decider, *rest)

    async def scene() -> None:
        for broker in world.brokers.values():
            broker.weather = CALM
        for name in ("coordinator", *setup.aggregators, *setup.device_names):
            world.start(name)
        for _ in range(200):
            await asyncio.sleep(0.5)
            if any(event["event"] == "outcome" for event in world.history):
                break
        for name in list(world.lives):
            world.cut(name)

    monkeypatch.setattr(Decider, "check_dealers", after_attendance)
    with world.laws():
        _begin(world)
        run(loop, scene())
    world.note("end")
    loop.bury([*world.over, *world.lives.values()])
    ended = [(event["phase"], event["reason"]) for event in world.history if event["event"] == "outcome"]
    assert ended[0] == ("APPLIED", "")
    frozen = next(event for event in world.history if event["event"] == "freeze-signed")
    assert {c[0] for c in frozen["contributors"]} == {*setup.device_names} - {victim}
    assert [v for v in checker.judge(world.history) if "0 outcomes" not in v] + world.faults == []
