"""The newest directory, as it reaches a party that is at work (docs/protocol.md §7.1).

The coordinator passes on the file that the root has signed; it can keep it back, but not change it. Operators may as
well put the file in place and send SIGHUP.
"""

from __future__ import annotations

import structlog

from fedpruneshare.directory import MAX_DIRECTORY_BYTES
from fedpruneshare.errors import FedPruneShareError, MessageError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.messages import DirectoryChunk, digest
from fedpruneshare.party import Party

_log = structlog.get_logger()


class DirectoryWatcher:
    """Joins the chunks of a newer directory and has the party adopt it. One version is joined at a time, the newest."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._name: tuple[int, bytes, int] | None = None
        self._chunks: dict[int, bytes] = {}

    async def on_chunk(self, delivery: Delivery) -> None:
        """Take one delivery of the channel `directory`; what is wrong with it is logged."""
        opened = self._party.take("directory", delivery)
        if opened is None or not isinstance(opened.message, DirectoryChunk):
            return
        try:
            self._add(opened.message)
        except FedPruneShareError as error:
            self._name, self._chunks = None, {}
            _log.error("directory-refused", version=opened.message.version, reason=str(error))

    def _add(self, part: DirectoryChunk) -> None:
        if part.version <= self._party.directory.version:
            return  # the one in force, or one that was overtaken
        name = part.version, part.digest, part.chunks
        if name != self._name:
            if self._name is not None and part.version < self._name[0]:
                return
            self._name, self._chunks = name, {}
        if part.chunk >= part.chunks:
            raise MessageError(f"directory chunk {part.chunk} of {part.chunks}")
        self._chunks[part.chunk] = part.data
        if sum(map(len, self._chunks.values())) > MAX_DIRECTORY_BYTES:
            raise MessageError(f"directory of more than {MAX_DIRECTORY_BYTES} bytes")
        if len(self._chunks) == part.chunks:
            data = b"".join(self._chunks[index] for index in range(part.chunks))
            self._name, self._chunks = None, {}
            if digest(data) != part.digest:
                raise MessageError("a directory that does not match its digest")
            self._party.adopt(data)


async def watch_directory(party: Party, control: Link) -> None:
    """Adopt every newer directory that is published on the control broker. Call it before `control.connect`."""
    await control.subscribe(party.topics.every("directory"), DirectoryWatcher(party).on_chunk)
