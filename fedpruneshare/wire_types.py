"""Limits and small types of everything on the wire (docs/protocol.md §1.3)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

MAX_DEVICES: Final = 4096
MAX_AGGREGATORS: Final = 16
MAX_SEGMENTS: Final = 16
MAX_TENSORS: Final = 4096
MAX_CHUNKS: Final = 65_536
MAX_CHUNK_BYTES: Final = 192 * 1024
#: Bytes of a key id (docs/protocol.md §7.1).
KEY_ID_BYTES: Final = 8
_TAG_BYTES: Final = 16
_X25519_BYTES: Final = 32
_XWING_BYTES: Final = 1120


class Suite(StrEnum):
    """How a chunk is sealed: HPKE with this key encapsulation and this cipher, HKDF-SHA256 (docs/protocol.md §7.3).

    `xwing` combines ML-KEM-768 and X25519: what is recorded today stays closed to the quantum computers of tomorrow.
    """

    X25519_CHACHA20 = "x25519/chacha20-poly1305"
    X25519_AES256 = "x25519/aes-256-gcm"
    XWING_CHACHA20 = "xwing/chacha20-poly1305"
    XWING_AES256 = "xwing/aes-256-gcm"

    @property
    def is_hybrid(self) -> bool:
        """Whether the key encapsulation is the hybrid one."""
        return self.startswith("xwing/")

    @property
    def enc_bytes(self) -> int:
        """Bytes of the encapsulated key, which goes before the ciphertext."""
        return _XWING_BYTES if self.is_hybrid else _X25519_BYTES

    @property
    def seal_bytes(self) -> int:
        """Bytes a seal adds to its plaintext: encapsulated key and authentication tag."""
        return self.enc_bytes + _TAG_BYTES


#: What a seal adds at least and at most.
SEAL_BYTES: Final = Suite.X25519_CHACHA20.seal_bytes
MAX_SEAL_BYTES: Final = Suite.XWING_CHACHA20.seal_bytes

Identifier = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}$")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
KeyId = Annotated[bytes, Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
UploadId = Annotated[bytes, Meta(min_length=16, max_length=16)]
RoundId = Annotated[int, Meta(ge=1, lt=2**48)]
Rung = Annotated[int, Meta(ge=0, lt=MAX_SEGMENTS)]
Point = Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
Chunk = Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
Chunks = Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]
Keystream = Annotated[str, Meta(pattern="^(chacha20|aes-256-ctr)$")]
Reason = Annotated[str, Meta(max_length=500)]
Sealed = Annotated[bytes, Meta(min_length=SEAL_BYTES + 1, max_length=MAX_CHUNK_BYTES + MAX_SEAL_BYTES)]
