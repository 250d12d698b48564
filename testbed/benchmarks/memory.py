"""Extra memory of a split, measured in a process of its own: `python -m testbed.benchmarks.memory VARIANT N K VALUES`.

The peak of the resident memory during the split less what was resident before it, input included. Both are read from
/proc, because the `ru_maxrss` of a new process starts at the peak of the one that started it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedpruneshare.errors import RunError
from fedpruneshare.sharing.field import F31, Words
from fedpruneshare.sharing.prg import Prg, Seed
from fedpruneshare.sharing.shamir import SharingScheme
from testbed.benchmarks.packages import ONE_THREAD
from testbed.benchmarks.peer_vectors import HandWritten

VARIANTS: Final = ("streamed", "seeds and vectors", "all n vectors", "hand-written numpy")
_TIMEOUT_S: Final = 120
_STATUS: Final = Path("/proc/self/status")


def can_measure() -> bool:
    """Whether this system tells a process its peak memory the way it is read here (Linux does)."""
    return _STATUS.exists() and "VmHWM" in _STATUS.read_text()


def extra_bytes(variant: str, n: int, k: int, values: int) -> int:
    """Start a process that splits so many values, and return the bytes it needed beyond its input."""
    command = [sys.executable, "-m", __name__, variant, str(n), str(k), str(values)]
    ran = subprocess.run(
        command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if ran.returncode:
        raise RunError(f"measuring memory ended with {ran.returncode}: {ran.stderr[-400:]}")
    return int(ran.stdout)


def _resident_bytes(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RunError(f"{_STATUS} has no {entry}, expected one")
    return 1024 * int(found[1])


def _forget_peak() -> None:
    """The peak starts again at what is resident now. Where that is not allowed, the figure can only come out larger."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _split(variant: str, scheme: SharingScheme, words: Words) -> None:
    if variant == "hand-written numpy":
        peer: Any = HandWritten(scheme.n, scheme.k, np.random.default_rng(1))
        peer.split(peer.take(words))
        return
    seeds = {x: Seed.fresh() for x in range(1, scheme.t + 1)}
    stream = (Prg.AES_256_CTR, b"benchmark")
    if variant == "streamed":
        for _part, chunks in scheme.stream(words, seeds, stream):
            for chunk in chunks.values():
                int(chunk[0])  # a device seals and sends it here
        return
    first = 1 if variant == "all n vectors" else scheme.t + 1
    out = {x: np.empty(scheme.elements(words.size), dtype=words.dtype) for x in range(first, scheme.n + 1)}
    for _ in scheme.split_chunks(words, seeds, stream, out):
        pass


def main(arguments: list[str]) -> str:
    """Run one variant and return its extra bytes as text."""
    variant, n, k, values = arguments[0], *map(int, arguments[1:])
    scheme = SharingScheme(n, k, k - 1)
    words = np.arange(values, dtype=F31.dtype)
    _split(variant, scheme, words[:1])  # libraries that load on first use are not part of the split
    _forget_peak()
    before = _resident_bytes("VmRSS")
    _split(variant, scheme, words)
    return str(max(0, _resident_bytes("VmHWM") - before))


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]))
