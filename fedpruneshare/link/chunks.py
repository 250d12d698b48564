"""Cutting a payload into chunks and joining them again, and the bitmap that names missing ones (docs/protocol.md §3.3).

Pure: no I/O, no clock. Chunk i of a payload of `total_bytes` holds bytes i·chunk_bytes up to (i+1)·chunk_bytes; all
are full but the last. Both ends know `total_bytes` from the round plan before the first chunk travels, so every length
is checked before anything is stored.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedpruneshare.errors import MessageError, ProtocolError

Buffer = bytes | bytearray | memoryview


def chunk_count(total_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a payload makes: ceil(total/chunk), and one (empty) chunk for an empty payload.

    Raises `ValueError` for a negative total or a chunk below one byte.
    """
    if total_bytes < 0 or chunk_bytes < 1:
        raise ValueError(f"{total_bytes} bytes in chunks of {chunk_bytes}, expected at least 0 and 1")
    return max(1, -(-total_bytes // chunk_bytes))


def cut(payload: Buffer, chunk_bytes: int) -> list[memoryview]:
    """The chunks of a payload as read-only views, nothing copied."""
    view = memoryview(payload).cast("B").toreadonly()
    count = chunk_count(len(view), chunk_bytes)
    return [view[place * chunk_bytes : (place + 1) * chunk_bytes] for place in range(count)]


class Joiner:
    """Joins the chunks of one payload, in any order, each as often as it likes to come.

    Holds one buffer of `total_bytes`, allocated when the first chunk is accepted, and one byte a chunk.
    Raises `ValueError` where `total_bytes` is above `limit_bytes`.
    """

    def __init__(self, total_bytes: int, chunk_bytes: int, *, limit_bytes: int) -> None:
        if total_bytes > limit_bytes:
            raise ValueError(f"payload of {total_bytes} bytes, expected at most {limit_bytes}")
        self.count = chunk_count(total_bytes, chunk_bytes)
        self._total_bytes = total_bytes
        self._chunk_bytes = chunk_bytes
        self._have = bytearray(self.count)
        self._left = self.count
        self._buffer: bytearray | None = None

    def __repr__(self) -> str:
        return f"Joiner({self.count - self._left} of {self.count} chunks, {self._total_bytes} bytes)"

    @property
    def is_complete(self) -> bool:
        """Whether no chunk is missing."""
        return self._left == 0

    def add(self, chunk: int, data: Buffer) -> bool:
        """Take one chunk; False if it was there already.

        Raises `ProtocolError` for a chunk outside the payload, of the wrong length, or with other bytes than the
        same chunk had before; the joiner is unchanged then.
        """
        if not 0 <= chunk < self.count:
            raise ProtocolError(f"chunk {chunk}, expected 0 to {self.count - 1}")
        start = chunk * self._chunk_bytes
        end = min(start + self._chunk_bytes, self._total_bytes)
        if len(data) != end - start:
            raise ProtocolError(f"chunk {chunk} of {len(data)} bytes, expected {end - start}")
        if self._buffer is None:
            self._buffer = bytearray(self._total_bytes)
        if self._have[chunk]:
            if self._buffer[start:end] != data:
                raise ProtocolError(f"chunk {chunk} came twice with different bytes, expected the same")
            return False
        self._buffer[start:end] = data
        self._have[chunk] = 1
        self._left -= 1
        return True

    def has(self, chunks: range) -> bool:
        """Whether all of these chunks have come."""
        return all(self._have[chunk] for chunk in chunks)

    def missing(self) -> list[int]:
        """The chunks that have not come, ascending."""
        return [chunk for chunk in range(self.count) if not self._have[chunk]]

    def payload(self) -> bytes:
        """The joined payload, `total_bytes` long. Calling it before `is_complete` is a `RuntimeError`."""
        if self._left or self._buffer is None:
            raise RuntimeError(f"{self._left} of {self.count} chunks are missing")
        return bytes(self._buffer)


class Bitmap:
    """Sets of chunk numbers as bytes: bit i%8 (least significant first) of byte i//8 is chunk i."""

    @staticmethod
    def encode(chunks: Iterable[int], count: int) -> bytes:
        """The set of chunks out of `count` as exactly ceil(count/8) bytes.

        Raises `ValueError` for a chunk outside 0…count−1.
        """
        bits = bytearray((count + 7) // 8)
        for chunk in chunks:
            if not 0 <= chunk < count:
                raise ValueError(f"chunk {chunk}, expected 0 to {count - 1}")
            bits[chunk // 8] |= 1 << chunk % 8
        return bytes(bits)

    @staticmethod
    def decode(bits: bytes, count: int) -> list[int]:
        """The chunks a bitmap names, ascending.

        Raises `MessageError` unless it is exactly ceil(count/8) bytes long and its spare bits are zero.
        """
        if len(bits) != (count + 7) // 8:
            raise MessageError(f"bitmap of {len(bits)} bytes, expected {(count + 7) // 8} for {count} chunks")
        value = int.from_bytes(bits, "little")
        if value >> count:
            raise MessageError(f"bitmap names a chunk beyond {count - 1}, expected zero bits there")
        return [chunk for chunk in range(count) if bits[chunk // 8] >> chunk % 8 & 1]


__all__ = ["Bitmap", "Joiner", "chunk_count", "cut"]
