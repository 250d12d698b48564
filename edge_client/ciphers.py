"""Which ciphers this device uses where a plan leaves it the choice: those its processor is quicker at (§4.2, §7.3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, TypeVar

import numpy as np

from fedpruneshare.messages import Suite
from fedpruneshare.sharing.field import F31
from fedpruneshare.sharing.prg import LEAN_BACKEND, SEED_BYTES, ElementStream, Prg, Seed

Name = TypeVar("Name")

_AEAD_OF: Final = {Prg.CHACHA20: "chacha20-poly1305", Prg.AES_256_CTR: "aes-256-gcm"}
#: A timing ends before an interruption is likely, and one that was interrupted is not the least of so many.
_TIMED_WORDS: Final = 8 * 1024
_TURNS: Final = 16
#: AES instructions win by two times or more and AES without them loses: where it is closer, a device that starts anew
#: must not choose otherwise.
_CLEARLY: Final = 1.25


@dataclass(frozen=True)
class Ciphers:
    """The keystream algorithm of seed shares, and the cipher of seals. Either is as safe; only speed differs."""

    prg: Prg
    aead: str

    def suite(self, allowed: tuple[Suite, ...]) -> Suite:
        """Of the suites a plan allows the first with the quicker cipher, or else the first."""
        return next((suite for suite in allowed if suite.endswith(self.aead)), allowed[0])


def own_ciphers(prg: str) -> Ciphers:
    """Those of this processor. `prg`: a keystream algorithm by name, which seals then encrypt with too, or `auto`."""
    taken = quickest_prg(LEAN_BACKEND) if prg == "auto" else Prg(prg)
    return Ciphers(taken, _AEAD_OF[taken])


@lru_cache(maxsize=3)
def quickest_prg(backend: str | None = None) -> Prg:
    """The keystream algorithm this processor is quicker at, made by one of `BACKENDS`; measured once, in a moment."""

    def work(prg: Prg) -> Callable[[], object]:
        stream = ElementStream(prg, Seed(bytes(SEED_BYTES)), b"timing", backend=backend)
        return partial(stream.fill, np.empty(_TIMED_WORDS, dtype=F31.word_type))

    return quickest({prg: work(prg) for prg in (Prg.CHACHA20, Prg.AES_256_CTR)})


def quickest(works: Mapping[Name, Callable[[], object]], clock: Callable[[], float] = time.thread_time) -> Name:
    """Which of two works takes less by the least of their timings, in turns: the first unless the other clearly does.

    `clock` in seconds: by the processor's time for this thread a crowded machine finds what an idle one does.
    """
    least = dict.fromkeys(works, math.inf)
    for turn in range(1 + _TURNS):
        for name, work in works.items():
            started = clock()
            work()
            if turn:  # the first one warms up
                least[name] = min(least[name], clock() - started)
    first, other = works
    return other if _CLEARLY * least[other] < least[first] else first
