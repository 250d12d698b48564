"""What no sharing can be quicker than: making its random bytes and writing its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from Crypto.Cipher import AES, ChaCha20

from fedpruneshare.sharing.field import CHUNK_BYTES, Words
from fedpruneshare.sharing.prg import Prg

_ZEROS = memoryview(bytes(CHUNK_BYTES))


def keystream_and_copy(prg: Prg, backend: str, streams: int, shares: Mapping[int, Words]) -> Callable[[], None]:
    """A call that makes the raw keystream of so many shares, chunk by chunk, and copies every share to a buffer.

    The buffers are made here and used again.
    """
    sources = [share.copy() for share in shares.values()]
    targets = [np.empty_like(share) for share in sources]
    size_bytes = sources[0].nbytes
    block = memoryview(bytearray(CHUNK_BYTES))

    def run() -> None:
        for _ in range(streams):
            write = _keystream(prg, backend)
            for start in range(0, size_bytes, CHUNK_BYTES):
                length = min(CHUNK_BYTES, size_bytes - start)
                write(_ZEROS[:length], block[:length])
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)

    return run


def copy_each(vectors: Sequence[Words]) -> Callable[[], None]:
    """A call that copies each vector into one buffer, used again."""
    target = np.empty_like(vectors[0])

    def run() -> None:
        for vector in vectors:
            np.copyto(target, vector)

    return run


def _keystream(prg: Prg, backend: str) -> Callable[[memoryview, memoryview], object]:
    """The cipher itself, key set-up included: without masking, rejection or anything else of ours."""
    key = bytes(32)
    if backend == "cryptography":
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        if prg == Prg.CHACHA20:
            return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update_into
        return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update_into
    if prg == Prg.CHACHA20:
        encrypt: Callable[..., object] = ChaCha20.new(key=key, nonce=bytes(12)).encrypt
    else:
        encrypt = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt
    return lambda zeros, out: encrypt(zeros, output=out)
