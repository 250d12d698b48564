"""Uniform field elements from a 32-byte seed (docs/protocol.md §5.2). The only place that draws share coefficients.

Stream s of (algorithm, seed, domain) is the cipher's keystream under
key = SHA-256("fedpruneshare/prg/1" ‖ 0 ‖ algorithm ‖ 0 ‖ s as one byte ‖ seed ‖ domain), nonce zero: a key serves one
stream only. Element i is word i (little-endian uint32) of stream 0 with its top bit cleared. Where that is p, it is
replaced: the replacements are the words of stream 1, top bit cleared, that are not p, in ascending order of position.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import numpy as np
from Crypto.Cipher import AES, ChaCha20

from fedpruneshare.errors import SharingError
from fedpruneshare.secret import SecretBytes
from fedpruneshare.sharing.field import CHUNK, F31, Words, check_words

_LABEL: Final = b"fedpruneshare/prg/1"
_MASK: Final = np.uint32(F31.p)
SEED_BYTES: Final = 32


class Prg(StrEnum):
    """Keystream algorithms: AES where the processor has AES instructions, ChaCha20 elsewhere."""

    CHACHA20 = "chacha20"
    AES_256_CTR = "aes-256-ctr"


class Seed(SecretBytes):
    """32 secret bytes that stand for a whole share."""

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        """Raises `SharingError` unless it is 32 bytes."""
        if len(value) != SEED_BYTES:
            raise SharingError(f"seed of {len(value)} bytes, expected {SEED_BYTES}")
        super().__init__(value)

    @classmethod
    def fresh(cls) -> Seed:
        """A new seed from the operating system's generator."""
        return cls(os.urandom(SEED_BYTES))


class _Keystream:
    """Consecutive words of one stream."""

    def __init__(self, prg: Prg, seed: Seed, domain: bytes, stream: int) -> None:
        head = b"\0".join([_LABEL, prg.encode(), bytes([stream])])
        key = hashlib.sha256(head + seed.reveal() + domain).digest()
        self._encrypt: Callable[..., object] = _cipher(prg, key)

    def fill(self, out: Words) -> None:
        """Next words of the stream, top bit cleared."""
        out[:] = 0
        view = out.data.cast("B")
        self._encrypt(view, output=view)
        np.bitwise_and(out, _MASK, out=out)


def _cipher(prg: Prg, key: bytes) -> Callable[..., object]:
    if prg is Prg.CHACHA20:
        return ChaCha20.new(key=key, nonce=bytes(12)).encrypt
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt


class ElementStream:
    """Uniform elements in order, as many at a time as asked for: the cuts do not change the result."""

    def __init__(self, prg: Prg, seed: Seed, domain: bytes) -> None:
        self._main = _Keystream(prg, seed, domain, 0)
        self._spare_source = (prg, seed, domain)
        self._spare: _Keystream | None = None

    def fill(self, out: Words) -> Words:
        """Next `out.size` elements into a contiguous uint32 array."""
        check_words(out, "output")
        for start in range(0, out.size, CHUNK):
            part = out[start : start + CHUNK]
            self._main.fill(part)
            if part.size and int(part.max()) == F31.p:
                self._replace(part)
        return out

    def _replace(self, part: Words) -> None:
        if self._spare is None:
            self._spare = _Keystream(*self._spare_source, 1)
        word = np.empty(1, dtype=F31.dtype)
        for place in np.flatnonzero(part == _MASK):
            self._spare.fill(word)
            while int(word[0]) == F31.p:
                self._spare.fill(word)
            part[place] = word[0]


def fill_elements(prg: Prg, seed: Seed, domain: bytes, out: Words) -> Words:
    """The first `out.size` elements of (prg, seed, domain) into `out`, a contiguous uint32 array."""
    return ElementStream(prg, seed, domain).fill(out)
