"""Named seed streams: every random choice that must be repeatable, and none that must be secret.

A stream is found by its name path, so adding a device or a round never shifts the numbers of another one:
`stream(seed, "device", 3, "batches")` is the same whatever else was drawn. Share coefficients and keys never come from
here but from the operating system (`os.urandom`, wrapped in `fedpruneshare.secret.SecretBytes`), a different type on
purpose: a function that wants secret randomness does not take a `Generator`.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

_DOMAIN = b"fedpruneshare/rng/1"


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
    # Each part carries its type and length, so ("a", "b") and ("ab",), or 1 and "1", are different streams.
    state = hashlib.sha256(_DOMAIN)
    for part in (seed, *names):
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise TypeError(f"stream name of type {type(part).__name__}, expected text or a whole number")
        body = str(part).encode()
        state.update(b"i" if isinstance(part, int) else b"s")
        state.update(len(body).to_bytes(8, "big") + body)
    return state.digest()


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed in 0…2^63−1 for libraries that take only a number (such as a torch generator)."""
    return int.from_bytes(_digest(seed, names)[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The numpy generator of this name path (PCG64, 256 bits of seed from SHA-256 over seed and names)."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, names), "big")))


def python_stream(seed: int, *names: str | int) -> random.Random:
    """The standard library's generator of this name path, for shuffles and choices of plain lists."""
    return random.Random(int.from_bytes(_digest(seed, names), "big"))


__all__ = ["derived_seed", "python_stream", "stream"]
