"""A directory whose sender is not known: what counts is that the root has signed it (docs/protocol.md §7.1)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import DEVICES, directory, identity
from structlog.testing import capture_logs

from fedpruneshare import trust
from fedpruneshare.directory import MAX_DIRECTORY_BYTES, party_keys, sign_directory
from fedpruneshare.link import Delivery
from fedpruneshare.link.chunks import cut
from fedpruneshare.messages import DirectoryChunk, digest
from fedpruneshare.party import Party, PartySettings
from fedpruneshare.sealing import Identity
from fedpruneshare.topics import Role
from fedpruneshare.trust import DirectoryWatcher

ROOT, OTHER_ROOT = Identity.generate("root"), Identity.generate("root")
KNOWN, UNKNOWN = identity("coordinator"), Identity.generate("coordinator")


class Reader:
    """A device that reads the channel `directory`, on version 1."""

    def __init__(self, folder: Path) -> None:
        (folder / "directory.json").write_bytes(sign_directory(directory(), ROOT))
        root_key = ROOT.public()[0].signing.hex()
        files = PartySettings(str(folder / "key.json"), str(folder / "directory.json"), root_key)
        self.party = Party(identity(DEVICES[0]), directory(), Role.DEVICE, files)
        self.watcher = DirectoryWatcher(self.party)

    @property
    def version(self) -> int:
        return self.party.directory.version

    async def hear(self, *parts: DirectoryChunk, sender: Identity = UNKNOWN) -> None:
        speaker = Party(sender, directory(), Role.COORDINATOR)
        for part in parts:
            await self.hear_bytes(speaker.sign(part))

    async def hear_bytes(self, payload: bytes) -> None:
        await self.watcher.on_chunk(Delivery("fps/v1/lab/directory/0", payload, True))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def after_a_loss(version: int = 2, root: Identity = ROOT, **changes: Any) -> list[DirectoryChunk]:
    """Three chunks of the directory that has the new plan key in place of the old one, which it revokes."""
    service = msgspec.structs.replace(directory().coordinator, keys=(party_keys(UNKNOWN.public()[0]),))
    revoked = {KNOWN.public()[0].key_id.hex(): "coordinator"}
    made = directory(version=version, coordinator=service, revoked=revoked, round_epoch=1, **changes)
    return chunks(sign_directory(made, root), version)


def chunks(data: bytes, version: int, count: int = 3) -> list[DirectoryChunk]:
    pieces = cut(data, -(-len(data) // count))
    return [DirectoryChunk(version, digest(data), index, count, bytes(piece)) for index, piece in enumerate(pieces)]


def garbage(version: int, index: int = 0, count: int = 1, size: int = 100) -> DirectoryChunk:
    data = os.urandom(size)
    return DirectoryChunk(version, digest(data), index, count, data)


async def test_a_directory_comes_into_force_by_its_root_alone(reader: Reader) -> None:
    with capture_logs() as lines:
        await reader.hear(*reversed(after_a_loss()))
    assert reader.version == 2
    events = [line["event"] for line in lines]
    assert events == ["directory-chunk-not-verified"] * 3 + ["directory-of-unknown-sender", "directory-in-force"]
    await reader.hear(*after_a_loss(3))  # and the new key is known from then on
    assert reader.version == 3


@pytest.mark.parametrize(
    "parts",
    [
        after_a_loss(root=OTHER_ROOT),
        after_a_loss(federation="other"),
        after_a_loss()[:-1],
        after_a_loss(1),
        [msgspec.structs.replace(part, version=1) for part in after_a_loss()],
        [msgspec.structs.replace(part, data=part.data[:-1] + b"?") for part in after_a_loss()],
    ],
    ids=["other root", "other federation", "a chunk missing", "not newer", "said to be not newer", "spoilt"],
)
async def test_nothing_comes_into_force_that_the_root_has_not_signed_for_here(
    reader: Reader, parts: list[DirectoryChunk]
) -> None:
    await reader.hear(*parts)
    assert reader.party.directory == directory()
    await reader.hear(*after_a_loss(2))
    assert reader.version == 2


async def test_what_strangers_send_pushes_out_nothing_of_the_coordinators(reader: Reader) -> None:
    first, *others = after_a_loss()
    await reader.hear(first, sender=KNOWN)
    for version in range(2, 60):
        await reader.hear(garbage(version), garbage(version, 0, 2), garbage(2**47 + version, 1, 2))
    await reader.hear(*others, sender=KNOWN)
    assert reader.version == 2


async def test_no_more_is_kept_of_strangers_than_the_largest_directory(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "MAX_DIRECTORY_BYTES", 500_000)
    kept = 0
    for version in range(2, 8):
        name = os.urandom(32)
        for index in range(6):
            part = DirectoryChunk(version, name, index, 1000, os.urandom(100_000))
            await reader.hear(part)
            kept = max(kept, reader.watcher._unknown._size())
    assert 400_000 < kept <= 600_000
    await reader.hear(*after_a_loss())
    assert reader.version == 2


async def test_in_a_minute_no_more_is_looked_at_than_the_largest_directory_twice(reader: Reader) -> None:
    assert trust._STRANGERS.total_bytes == 2 * MAX_DIRECTORY_BYTES
    with capture_logs() as lines:
        await reader.hear_bytes(b"no envelope")
        reader.watcher._counted_until += 3600.0  # however slow this machine is
        for _ in range(1200):
            await reader.hear_bytes(b"no envelope")
        await reader.hear(*after_a_loss())
    assert reader.version == 1
    assert [line["event"] for line in lines] == ["directory-refused"] * 1024 + ["message-dropped"]
    await reader.hear(*after_a_loss(2), sender=KNOWN)  # who is known is heard all the time
    assert reader.version == 2
    reader.watcher._counted_until = asyncio.get_running_loop().time()
    await reader.hear(*after_a_loss(3), sender=OTHER_ROOT)
    assert reader.version == 3
