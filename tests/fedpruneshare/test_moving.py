"""A service follows its brokers to where a newer directory has them, when it loses nothing by it, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import builders
import msgspec
import pytest

from fedpruneshare.directory import Directory, sign_directory, write_directory
from fedpruneshare.errors import SettingsError
from fedpruneshare.keys import Identity
from fedpruneshare.moving import Brokers, brokers_of, follow
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.topics import Role

ROOT = Identity.generate("root")


def moved(version: int, port: int) -> Directory:
    """The directory with the second aggregator's broker at another port."""
    services = dict(builders.directory().aggregators)
    services["aggregator-2"] = msgspec.structs.replace(services["aggregator-2"], port=port)
    return builders.directory(version=version, aggregators=services)


class Guest:
    """Notes where it was, and is free when it is told to."""

    def __init__(self, brokers: Brokers, lives: list[Guest]) -> None:
        self.port, self.has_stopped = brokers["aggregator-2"].port, False
        self.is_running, self.is_free, self.is_asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lives.append(self)

    async def run(self) -> int:
        self.is_running.set()
        return await self.end

    async def stop(self) -> None:
        await asyncio.sleep(0)  # closing its links
        self.has_stopped = True

    async def until_free(self) -> None:
        self.is_asked.set()
        await self.is_free.wait()


class Scene:
    """A party that follows; `adopt` gives it another directory."""

    def __init__(self, folder: Path) -> None:
        builders.identity("coordinator").save(folder / "key.json")
        write_directory(folder / "directory.json", builders.directory(), ROOT)
        key = ROOT.public()[0].signing.hex()
        files = PartySettings(f"{folder}/key.json", f"{folder}/directory.json", key)
        self.party, self.lives = Party.load(files, Role.COORDINATOR), list[Guest]()
        self.following = asyncio.create_task(follow(self.party, brokers_of, lambda found: Guest(found, self.lives)))

    def adopt(self, directory: Directory) -> None:
        self.party.adopt(sign_directory(directory, ROOT))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def alive(self, lives: int) -> Guest:
        await self.until(lambda: len(self.lives) == lives and self.lives[-1].is_running.is_set())
        return self.lives[-1]


async def test_it_goes_over_once_it_is_free_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = await scene.alive(1)
    scene.adopt(moved(2, 1999))
    await asyncio.wait_for(first.is_asked.wait(), 60)
    assert not first.has_stopped and len(scene.lives) == 1
    first.is_free.set()
    second = await scene.alive(2)
    assert first.has_stopped and second.port == 1999
    second.end.set_result(3)
    assert await asyncio.wait_for(scene.following, 60) == 3
    assert not scene.party._watchers, "what watched for directories is gone with it"


async def test_a_directory_with_the_same_brokers_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = await scene.alive(1)
    scene.adopt(builders.directory(version=2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not first.is_asked.is_set()
    first.end.set_exception(SettingsError("its own reason"))
    with pytest.raises(SettingsError, match="its own reason"):
        await asyncio.wait_for(scene.following, 60)


async def test_a_service_that_ends_while_it_is_waited_for_has_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = await scene.alive(1)
    scene.adopt(moved(2, 1999))
    await asyncio.wait_for(first.is_asked.wait(), 60)
    first.end.set_result(0)
    assert await asyncio.wait_for(scene.following, 60) == 0
    assert len(scene.lives) == 1


async def test_sigterm_ends_it_wherever_it_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = await scene.alive(1)
    scene.adopt(moved(2, 1999))
    await asyncio.wait_for(first.is_asked.wait(), 60)
    scene.following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(scene.following, 60)
    assert first.has_stopped and not scene.party._watchers
