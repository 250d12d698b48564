"""Files with a few bits wrong: one kind of error whatever the decoders below make of them."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_client.datasets import FIXTURES
from edge_client.datasets.hapt_recordings import load_windows
from edge_client.datasets.idx import idx_bytes, parse_idx, read_idx_bytes, read_idx_rows
from edge_client.datasets.image_sets import FASHION_MNIST, load_npz
from fedpruneshare.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 4, (200, 28, 28), dtype=np.uint8)
READERS = {
    "hapt.npz": ((FIXTURES / "hapt.npz").read_bytes(), load_windows),
    "images.npz": ((FIXTURES / "fashion-mnist.npz").read_bytes(), lambda path: load_npz(path, FASHION_MNIST, False)),
    "all.gz": (gzip.compress(idx_bytes(PIXELS)), lambda path: parse_idx(read_idx_bytes(path, 1 << 20), str(path))),
    "rows.gz": (gzip.compress(idx_bytes(PIXELS)), lambda path: read_idx_rows(path, np.array([1, 5]), 1 << 20)),
}


@pytest.mark.parametrize("name", READERS)
def test_damage_anywhere_is_a_data_error(tmp_path: Path, name: str) -> None:
    data, read = READERS[name]
    refused = 0
    for seed in range(60):
        refused += is_refused(damaged(data, random.Random(seed)), tmp_path / name, read)
    assert refused > 30


def damaged(data: bytes, rng: random.Random) -> bytes:
    """With eight bytes wrong, most of them where headers are."""
    broken = bytearray(data)
    for _ in range(8):
        broken[rng.choice((rng.randrange(300), rng.randrange(len(data)), -1 - rng.randrange(300)))] = rng.randrange(256)
    return bytes(broken)


def is_refused(data: bytes, path: Path, read: Callable[[Path], object]) -> bool:
    path.write_bytes(data)
    try:
        read(path)
    except DataError as error:
        assert path.name in str(error)
        return True
    return False
