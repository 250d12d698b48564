"""What SQLite does not say of its write-ahead log: that commits lie behind the place where it gives the log up.

For SQLite a log ends at the first frame that does not check. A bit that flips there takes every later commit with it,
in silence: receipted uploads, a Freeze. A commit that loss of power cut short looks the same, but is the last one in
its log: a transaction is written only once the one before is synced. So a log is damaged where more than one commit
lies behind the place. (Its format: https://www.sqlite.org/fileformat2.html#walformat)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

_Sums = NDArray[np.uint32]

_HEADER: Final = struct.Struct(">IIII8s8s")  # magic, version, page size, checkpoints, salts, checksum
_FRAME: Final = struct.Struct(">II8s8s")  # page, database pages after a commit (else 0), salts, checksum
_CHECKED_OF_FRAME: Final = 8
#: Where a database says how large its pages are (1: 65,536 bytes); the log says so too, but may be wrong.
_PAGE_SIZE: Final = slice(16, 18)


def lost_commits(path: Path) -> int:
    """How many commits in the log beside the database `path` SQLite would drop although they were synced.

    The last one is not counted: nothing tells it from one that was cut short.
    """
    log = path.with_name(path.name + "-wal")
    if not log.exists() or not path.stat().st_size:  # SQLite does not read the log of an empty database
        return 0
    with path.open("rb") as database, log.open("rb") as file:
        page_bytes = int.from_bytes(database.read(_PAGE_SIZE.stop)[_PAGE_SIZE], "big")
        commits = sum(_unread(file, page_bytes if page_bytes > 1 else 65_536))
    return max(commits - 1, 0)


def _unread(file: BinaryIO, page_bytes: int) -> Iterator[bool]:
    """The frames that SQLite does not read although they belong to the log: whether each ends a transaction."""
    raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        return
    magic, _, _, _, salts, check = _HEADER.unpack(raw)
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, raw[: -len(check)], np.zeros(2, dtype=np.uint32))
    is_read = is_header_whole = _packed(sums) == check
    while len(head := file.read(_FRAME.size)) == _FRAME.size and len(page := file.read(page_bytes)) == page_bytes:
        _, pages, salts_found, check = _FRAME.unpack(head)
        if not is_header_whole:  # the salts of the first frame are as good
            salts, is_header_whole = salts_found, True
        if is_read:
            sums = _checksum(order, head[:_CHECKED_OF_FRAME] + page, sums)
            is_read = salts_found == salts and _packed(sums) == check
        if not is_read and salts_found == salts:  # other salts: left from before the log was begun anew
            yield pages > 0


def _packed(sums: _Sums) -> bytes:
    return struct.pack(">II", *sums.tolist())


def _checksum(order: str, data: bytes, before: _Sums) -> _Sums:
    """SQLite's checksum uint32[2], which goes on from that of what came before.

    SQLite goes from pair to pair: first += one + second, second += two + first. That is linear, modulo 2^32.
    """
    words = np.frombuffer(data, dtype=f"{order}u4").astype(np.uint32)
    weights, power = _weights(words.size // 2)
    return weights @ words + power @ before


@lru_cache
def _weights(pairs: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What the words of so many pairs add to both sums, uint32[2, 2 · pairs], and the sums before, uint32[2, 2]."""
    step, take = np.array([[1, 1], [1, 2]], dtype=np.uint32), np.array([[1, 0], [1, 1]], dtype=np.uint32)
    power, columns = np.eye(2, dtype=np.uint32), list[NDArray[np.uint32]]()
    for _ in range(pairs):
        columns.append(power @ take)
        power = power @ step
    return np.concatenate(columns[::-1], axis=1), power
