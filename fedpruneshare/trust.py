"""The newest directory, as it reaches a party that is at work (docs/protocol.md §7.1).

The coordinator passes on the file that the root has signed; it can keep it back, but not change it. Operators may as
well put the file in place and send SIGHUP.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from fedpruneshare.directory import MAX_DIRECTORY_BYTES
from fedpruneshare.errors import FedPruneShareError, MessageError, StoreError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.messages import DirectoryChunk, digest
from fedpruneshare.party import Party

_log = structlog.get_logger()


#: Directories of which chunks are kept at a time: one that never becomes whole keeps out no other.
_MOST_BEGUN: Final = 2
#: Between two tries where the disk is full.
_FULL_DISK_PAUSE_S: Final = 5.0


class DirectoryWatcher:
    """Joins the chunks of a newer directory and has the party adopt it."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._begun: dict[tuple[int, bytes, int], dict[int, bytes]] = {}

    async def on_chunk(self, delivery: Delivery) -> None:
        """Take one delivery of the channel `directory`; what is wrong with it is logged."""
        opened = self._party.take("directory", delivery)
        if opened is None or not isinstance(opened.message, DirectoryChunk):
            return
        part = opened.message
        try:
            self._add(part)
        except FedPruneShareError as error:
            self._begun.pop((part.version, part.digest, part.chunks), None)
            _log.error("directory-refused", version=part.version, reason=str(error))

    def _add(self, part: DirectoryChunk) -> None:
        if part.version <= self._party.directory.version:
            return  # the one in force, or one that was overtaken
        if part.chunk >= part.chunks:
            raise MessageError(f"directory chunk {part.chunk} of {part.chunks}")
        name = part.version, part.digest, part.chunks
        chunks = self._begun.setdefault(name, {})
        if len(self._begun) > _MOST_BEGUN:
            del self._begun[next(iter(self._begun))]
        chunks[part.chunk] = part.data
        if sum(map(len, chunks.values())) > MAX_DIRECTORY_BYTES:
            raise MessageError(f"directory of more than {MAX_DIRECTORY_BYTES} bytes")
        if len(chunks) == part.chunks:
            data = b"".join(chunks[index] for index in range(part.chunks))
            del self._begun[name]
            if digest(data) != part.digest:
                raise MessageError("a directory that does not match its digest")
            self._adopt(data)

    def _adopt(self, data: bytes) -> None:
        """Have it adopted; again and again where the disk does not take it, for nobody sends it a second time."""
        try:
            self._party.adopt(data)
        except StoreError as error:
            _log.error("directory-waits", reason=str(error), again_in_s=_FULL_DISK_PAUSE_S)
            asyncio.get_running_loop().call_later(_FULL_DISK_PAUSE_S, self._adopt_quietly, data)

    def _adopt_quietly(self, data: bytes) -> None:
        try:
            self._adopt(data)
        except FedPruneShareError as error:  # overtaken meanwhile
            _log.info("directory-refused", reason=str(error))


async def watch_directory(party: Party, control: Link) -> None:
    """Adopt every newer directory that is published on the control broker. Call it before `control.connect`."""
    await control.subscribe(party.topics.every("directory"), DirectoryWatcher(party).on_chunk)
