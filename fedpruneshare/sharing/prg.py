"""Uniform field elements from a 32-byte seed (docs/protocol.md §5.2). The only place that draws share coefficients.

Stream s of (algorithm, seed, domain) is the cipher's keystream under
key = SHA-256("fedpruneshare/prg/1" ‖ 0 ‖ algorithm ‖ 0 ‖ s as one byte ‖ seed ‖ domain), nonce zero: a key serves one
stream only. In F31 element i is word i (little-endian uint32) of stream 0 with its top bit cleared. Where that is p,
it is replaced: the replacements are the words of stream 1, top bit cleared, that are not p, in ascending order of
position. In F61 words are uint64 with their three top bits cleared, and the streams are 2 and 3.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from typing import Final

import numpy as np
from Crypto.Cipher import AES, ChaCha20

from fedpruneshare.errors import SharingError
from fedpruneshare.secret import SecretBytes
from fedpruneshare.sharing.field import CHUNK_BYTES, F31, Field, Words, check_words

_LABEL: Final = b"fedpruneshare/prg/1"
_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))
SEED_BYTES: Final = 32


def _libraries() -> Iterator[str]:
    # Older releases want longer buffers than the bytes they write.
    if find_spec("cryptography") and int(version("cryptography").partition(".")[0]) >= 44:
        yield "cryptography"
    yield "pycryptodome"


#: Libraries that make keystream here, the quickest first. All give the same bytes.
BACKENDS: Final = tuple(_libraries())
#: The one that is always there and loaded already, for the seals: `cryptography` takes 7 MiB more, which a device that
#: shares a few megabytes a round does not win back in time.
LEAN_BACKEND: Final = "pycryptodome"


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


# --------------------------------------------------------------------------- keystream

#: Writes the next keystream bytes into a writable view of at most CHUNK_BYTES.
_Write = Callable[[memoryview], object]


def _cipher(prg: Prg, key: bytes, backend: str) -> _Write:
    if prg not in list(Prg):
        raise SharingError(f"keystream algorithm {prg!r}, expected one of {', '.join(Prg)}")
    if backend not in BACKENDS:
        raise SharingError(f"keystream library {backend!r}, expected one of {', '.join(BACKENDS)}")
    return _by_cryptography(prg, key) if backend == "cryptography" else _by_pycryptodome(prg, key)


def _by_pycryptodome(prg: Prg, key: bytes) -> _Write:
    if prg == Prg.CHACHA20:
        encrypt: Callable[..., object] = ChaCha20.new(key=key, nonce=bytes(12)).encrypt
    else:
        encrypt = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt
    return lambda out: encrypt(_ZEROS[: len(out)], output=out)


def _by_cryptography(prg: Prg, key: bytes) -> _Write:
    # Imported on first use: it costs a device nothing that it does not use.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if prg == Prg.CHACHA20:  # its 16 bytes are block counter and nonce
        update = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update_into
    else:
        update = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update_into
    return lambda out: update(_ZEROS[: len(out)], out)


# --------------------------------------------------------------------------- elements


class _Keystream:
    """Consecutive words of one stream, reduced to the field's bits."""

    def __init__(self, source: tuple[Prg, Seed, bytes], stream: int, field: Field, backend: str) -> None:
        prg, seed, domain = source
        head = b"\0".join([_LABEL, prg.encode(), bytes([stream])])
        self._write = _cipher(prg, hashlib.sha256(head + seed.reveal() + domain).digest(), backend)
        self._mask = field.word_type.type(2**field.bits - 1)

    def fill(self, out: Words) -> None:
        """Next words of the stream, at most a chunk."""
        self._write(out.data.cast("B"))
        np.bitwise_and(out, self._mask, out=out)


class ElementStream:
    """Uniform elements in order, as many at a time as asked for: the cuts do not change the result."""

    def __init__(self, prg: Prg, seed: Seed, domain: bytes, field: Field = F31, backend: str | None = None) -> None:
        """`backend`: one of `BACKENDS`, by default the first. Raises `SharingError` for an unknown one."""
        self._source, self._field, self._backend = (prg, seed, domain), field, backend or BACKENDS[0]
        self._main = _Keystream(self._source, field.stream, field, self._backend)
        self._spare: _Keystream | None = None

    def fill(self, out: Words) -> Words:
        """Next `out.size` elements into a contiguous array of the field's words. Raises `SharingError` for another."""
        check_words(out, self._field, "output")
        if not out.flags.c_contiguous:
            raise SharingError("output with gaps between its words, expected a contiguous array")
        for start in range(0, out.size, self._field.chunk):
            part = out[start : start + self._field.chunk]
            self._main.fill(part)
            if int(part.max()) >= self._field.p:
                self._replace(part)
        return out

    def _replace(self, part: Words) -> None:
        if self._spare is None:
            self._spare = _Keystream(self._source, self._field.stream + 1, self._field, self._backend)
        word = np.empty(1, dtype=self._field.word_type)
        for place in np.flatnonzero(part >= self._field.modulus):
            self._spare.fill(word)
            while int(word[0]) >= self._field.p:
                self._spare.fill(word)
            part[place] = word[0]


def fill_elements(
    prg: Prg, seed: Seed, domain: bytes, out: Words, field: Field = F31, backend: str | None = None
) -> Words:
    """The first `out.size` elements of (prg, seed, domain) into `out`, a contiguous array of the field's words."""
    return ElementStream(prg, seed, domain, field, backend).fill(out)
