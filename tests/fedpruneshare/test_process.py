"""A service as a process: SIGTERM ends it, SIGHUP has it read keys and directory again (docs/protocol.md §9)."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path

from builders import directory, identity

from fedpruneshare.directory import sign_directory, write_directory
from fedpruneshare.keys import Identity
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.process import serve
from fedpruneshare.topics import Role

ROOT = Identity.generate("root")


def loaded(folder: Path) -> Party:
    identity("coordinator").save(folder / "key.json")
    write_directory(folder / "directory.json", directory(), ROOT)
    key = ROOT.public()[0].signing.hex()
    return Party.load(PartySettings(f"{folder}/key.json", f"{folder}/directory.json", key), Role.COORDINATOR)


def test_a_hang_up_brings_the_newer_directory_into_force_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    party = loaded(tmp_path)
    seen: list[int] = []

    async def work() -> int:
        changed = asyncio.Event()
        party.on_change(changed.set)
        (tmp_path / "directory.json").write_bytes(sign_directory(directory(version=2), ROOT))
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(changed.wait(), 60)
        seen.append(party.directory.version)
        (tmp_path / "directory.json").write_bytes(b"not a directory")
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(5):
            await asyncio.sleep(0)
        seen.append(party.directory.version)
        return 7

    assert serve(work, party) == 7
    assert seen == [2, 2]


def test_sigterm_ends_with_exit_code_0() -> None:
    async def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        return 1

    assert serve(work) == 0


def test_a_service_leaves_no_image_of_its_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    found: list[int] = []

    async def work() -> int:
        found.append(resource.getrlimit(resource.RLIMIT_CORE)[0])
        return 0

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        assert serve(work) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert found == [0]
