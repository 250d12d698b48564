"""Which ciphers this device uses where a plan leaves it the choice: those its processor is quicker at (§4.2, §7.3)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from Crypto.Cipher import AES, ChaCha20_Poly1305

from fedpruneshare.messages import Suite
from fedpruneshare.sharing.prg import LEAN_BACKEND, Prg, quickest_prg

#: What seals encrypt with, as the names of suites end.
_AEADS: Final = ("chacha20-poly1305", "aes-256-gcm")
_TIMED_BYTES: Final = 128 * 1024


@dataclass(frozen=True)
class Ciphers:
    """The keystream algorithm of seed shares, and the cipher of seals. Either is as safe; only speed differs."""

    prg: Prg
    aead: str

    def suite(self, allowed: tuple[Suite, ...]) -> Suite:
        """Of the suites a plan allows the first with the quicker cipher, or else the first."""
        return next((suite for suite in allowed if suite.endswith(self.aead)), allowed[0])


def own_ciphers(prg: str) -> Ciphers:
    """Those of this processor. `prg`: a keystream algorithm by name, or `auto`."""
    clock = time.thread_time  # of the processor alone: on a crowded machine a device chooses as on an idle one
    keystream = quickest_prg(clock, LEAN_BACKEND) if prg == "auto" else Prg(prg)
    return Ciphers(keystream, quickest_aead(clock))


@lru_cache(maxsize=4)
def quickest_aead(clock: Callable[[], float]) -> str:
    """By the best of three timings of 128 KiB each, measured once; a few milliseconds. `clock` in seconds."""
    return min(_AEADS, key=lambda name: _best_s(name, clock))


def _best_s(name: str, clock: Callable[[], float]) -> float:
    block, times = bytes(_TIMED_BYTES), []
    for _ in range(4):  # the first one warms up
        started = clock()
        _cipher(name).encrypt_and_digest(block)
        times.append(clock() - started)
    return min(times[1:])


def _cipher(name: str) -> Any:
    if name == "aes-256-gcm":
        return AES.new(bytes(32), AES.MODE_GCM, nonce=bytes(12))
    return ChaCha20_Poly1305.new(key=bytes(32), nonce=bytes(12))
