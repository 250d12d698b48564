"""The hidden linear checksum: a lying aggregator is noticed with exactly k sums (docs/protocol.md §5.11).

The last words of every segment are t_j = Σ r_ji·w_i mod p over its other words w, rows r of a keystream that
coordinator and devices know and aggregators do not. Sums keep the relation; who adds an error without knowing r breaks
it, but for one chance in p for each row. The plan commits to the seed of r: a device that was given another one would
show the coordinator combinations of its own words.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.field import Field, Words, inner_product
from fedpruneshare.sharing.prg import LEAN_BACKEND, ElementStream, Prg, Seed

SEED_BYTES: Final = 32
#: Checksum words of a segment, by field: about 93 bits in F31, 122 in F61.
CHECKSUM_WORDS: Final = {"F31": 3, "F61": 2}
_LABEL: Final = b"fedpruneshare/checksum/1\0"
#: Elements of a row that are drawn and multiplied at a time: 512 KiB of each.
_BLOCK: Final = 1 << 17


def commitment(seed: bytes) -> bytes:
    """What the plan says of the seed (32 bytes)."""
    return hashlib.sha256(_LABEL + seed).digest()


def fill_checksum(words: Words, seed: bytes, segment: int, rows: int, field: Field) -> None:
    """Write the checksum of a segment into its last `rows` words, in place. `words` [m] are all of its words."""
    words[words.size - rows :] = checksum(words[: words.size - rows], seed, segment, rows, field)


def is_checksum_right(words: Words, seed: bytes, segment: int, rows: int, field: Field) -> bool:
    """Whether the last `rows` words of an opened segment are the checksum of its other words."""
    expected = checksum(words[: words.size - rows], seed, segment, rows, field)
    return bool(np.array_equal(words[words.size - rows :], expected))


def checksum(words: Words, seed: bytes, segment: int, rows: int, field: Field) -> Words:
    """The checksum [rows] of words [m] of a segment. Raises `SharingError` for a seed of another length."""
    if len(seed) != SEED_BYTES:
        raise SharingError(f"checksum seed of {len(seed)} bytes, expected {SEED_BYTES}")
    sums = [_row(words, seed, b"checksum segment %d row %d" % (segment, row), field) for row in range(rows)]
    return np.array(sums, dtype=field.word_type)


def _row(words: Words, seed: bytes, domain: bytes, field: Field) -> int:
    """Σ r_i·w_i mod p, a block at a time."""
    stream, total = ElementStream(Prg.CHACHA20, Seed(seed), domain, field, LEAN_BACKEND), 0
    for start in range(0, words.size, _BLOCK):
        part = words[start : start + _BLOCK]
        coefficients = stream.fill(np.empty(part.size, dtype=field.word_type))
        total += inner_product(coefficients, part, field)
    return total % field.p
