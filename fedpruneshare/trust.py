"""The newest directory, as it reaches a party that is at work (docs/protocol.md §7.1).

The coordinator passes on the file that the root has signed; it can keep it back, but not change it. Operators may as
well put the file in place and send SIGHUP. Chunks whose sender is not known count as well, or nobody would hear of a
new plan key after the old one was lost: what is adopted is what the root has signed. They are kept apart from those of
the coordinator that is known, and no more of them are looked at than a directory needs.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from fedpruneshare.directory import MAX_DIRECTORY_BYTES
from fedpruneshare.errors import FedPruneShareError, MessageError, PeerError, StoreError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.messages import KINDS, DirectoryChunk, Message, digest
from fedpruneshare.party import Party
from fedpruneshare.quota import Allowance, Quota
from fedpruneshare.sealing import ENVELOPE_BYTES, read_unverified

_log = structlog.get_logger()


#: Directories of which chunks are kept at a time: one that never becomes whole keeps out no other.
_MOST_BEGUN: Final = 2
#: Between two tries where the disk is full.
_FULL_DISK_PAUSE_S: Final = 5.0
#: What is looked at of senders that are not known, in so many seconds: the largest directory, twice.
_STRANGERS_S: Final = 60.0
_STRANGERS: Final = Allowance(1024, 2 * MAX_DIRECTORY_BYTES, KINDS["directory-chunk"][1] + ENVELOPE_BYTES)
_STRANGER: Final = "a sender that is not known"


class _Begun:
    """Chunks of directories that are not whole yet: of few, and of no more bytes together than one may have."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, bytes, int], dict[int, bytes]] = {}

    def add(self, part: DirectoryChunk) -> bytes | None:
        """Keep a chunk; the whole file with the last. Raises `MessageError`, and forgets the file, if it is wrong."""
        name = part.version, part.digest, part.chunks
        chunks = self._files.setdefault(name, {})
        chunks[part.chunk] = part.data
        if part.chunk >= part.chunks:
            del self._files[name]
            raise MessageError(f"directory chunk {part.chunk} of {part.chunks}")
        while len(self._files) > _MOST_BEGUN or (len(self._files) > 1 and self._size() > MAX_DIRECTORY_BYTES):
            del self._files[next(older for older in self._files if older != name)]
        if len(chunks) < part.chunks and self._size() <= MAX_DIRECTORY_BYTES:
            return None
        del self._files[name]
        data = b"".join(chunks[index] for index in sorted(chunks))
        if len(data) > MAX_DIRECTORY_BYTES:
            raise MessageError(f"directory of more than {MAX_DIRECTORY_BYTES} bytes")
        if digest(data) != part.digest:
            raise MessageError("a directory that does not match its digest")
        return data

    def _size(self) -> int:
        return sum(len(data) for chunks in self._files.values() for data in chunks.values())


class DirectoryWatcher:
    """Joins the chunks of a newer directory and has the party adopt it."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._known, self._unknown = _Begun(), _Begun()
        self._quota, self._counted_until = Quota(_STRANGERS), 0.0
        self._is_dropping = False

    async def on_chunk(self, delivery: Delivery) -> None:
        """Take one delivery of the channel `directory`; what is wrong with it is logged."""
        if not delivery.payload:  # the broker's eraser
            return
        try:
            part, begun = self._read(delivery.payload)
            if isinstance(part, DirectoryChunk) and part.version > self._party.directory.version:
                self._add(part, begun)
        except FedPruneShareError as error:
            _log.error("directory-refused", topic=delivery.topic, reason=str(error))

    def _read(self, payload: bytes) -> tuple[Message | None, _Begun]:
        """The chunk, if it is to be looked at, and with which others it belongs. Raises `MessageError`."""
        try:
            return self._party.open("directory", payload).message, self._known
        except PeerError as error:
            if not self._may_look(len(payload)):
                return None, self._unknown
            part = read_unverified(payload, "directory-chunk")
            _log.info("directory-chunk-not-verified", reason=str(error))
            return part, self._unknown

    def _may_look(self, size_bytes: int) -> bool:
        """Count what a sender that is not known sends, anew every minute; whether it is to be looked at."""
        now = asyncio.get_running_loop().time()
        if now >= self._counted_until:
            self._quota.open_round(_STRANGERS)
            self._counted_until, self._is_dropping = now + _STRANGERS_S, False
        reason = self._quota.refuse(_STRANGER, size_bytes, (_STRANGER,))
        if reason and not self._is_dropping:
            self._is_dropping = True
            _log.warning("message-dropped", channel="directory", of=_STRANGER, reason=reason)
        return not reason

    def _add(self, part: DirectoryChunk, begun: _Begun) -> None:
        data = begun.add(part)
        if data is not None:
            if begun is self._unknown:
                _log.info("directory-of-unknown-sender", version=part.version)
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
