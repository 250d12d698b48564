"""Bytes that must not be seen: keys, sharing seeds, words of a share."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


def digest_text(value: bytes | bytearray | memoryview) -> str:
    """The first 8 hex digits of SHA-256: enough to compare two logs, not enough to learn a random secret."""
    return hashlib.sha256(value).hexdigest()[:8]


class SecretBytes:
    """Random secret bytes. `repr` and `str` show length and digest only; `reveal` gives the bytes themselves.

    Meant for high-entropy values (keys and seeds): the digest of a guessable value would let it be guessed.
    It compares in constant time, has no hash, and refuses to be pickled or copied.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes. Call it where they are used, and keep no name for the result."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return f"<secret: {len(self)} bytes, sha256 {digest_text(self._value)}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretBytes is never pickled or copied; pass the object, or reveal() it where it is used")


__all__ = ["SecretBytes", "digest_text"]
