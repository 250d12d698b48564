"""CIFAR-10 as published: six batches of 10,000 images, as pickles (`-py`) or as plain records (`-bin`).

A pickle is read by the allow-list reader: nothing it names is run. A record is one byte of label and 3,072 of pixels:
all red ones, row by row, then green, then blue. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets.allow_list_pickle import PickledArray, load_allow_listed
from edge_client.datasets.image_sets import Images, ImageSet
from fedpruneshare.errors import DataError

PICKLES, RECORDS = "cifar-10-batches-py", "cifar-10-batches-bin"
_SLACK_BYTES = 4 << 20  # labels and file names of a pickle

Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def read_batches(folder: Path, of: ImageSet) -> Images:
    """All batches. Raises `DataError` where one is missing, damaged, of another size, or (pickles) another file."""
    names = list(of.batch_md5)
    train = [read_batch(folder, name, of) for name in names[:-1]]
    images, labels = np.concatenate([batch[0] for batch in train]), np.concatenate([batch[1] for batch in train])
    return Images(images, labels, *read_batch(folder, names[-1], of)).check(of, str(folder))


def read_training_batches(folder: Path, of: ImageSet) -> Iterator[Batch]:
    """The training batches in order, one at a time in memory."""
    return (read_batch(folder, name, of) for name in list(of.batch_md5)[:-1])


def read_batch(folder: Path, name: str, of: ImageSet) -> Batch:
    """Images uint8[N, 32, 32, 3] and labels uint8[N] of one batch, N a sixth of the set."""
    count = sum(of.counts) // len(of.batch_md5)
    pixels, labels = (
        _read_records(folder, name, of, count) if folder.name == RECORDS else _read_pickle(folder, name, of, count)
    )
    if pixels.shape != (count, int(np.prod(of.shape))) or labels.shape != (count,) or labels.max() >= len(of.classes):
        raise DataError(f"{folder / name} holds pixels {pixels.shape}, expected {count} images of known classes")
    height, width, colours = of.shape
    planes = pixels.reshape(count, colours, height, width)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _read_records(folder: Path, name: str, of: ImageSet, count: int) -> Batch:
    size = 1 + int(np.prod(of.shape))
    data = _read(folder / f"{name}.bin", count * size)
    if len(data) != count * size:
        raise DataError(f"{folder / name}.bin has {len(data)} bytes, expected {count * size}: {count} records")
    records = np.frombuffer(data, np.uint8).reshape(count, size)
    return records[:, 1:], records[:, 0].copy()


def _read_pickle(folder: Path, name: str, of: ImageSet, count: int) -> Batch:
    data = _read(folder / name, count * (int(np.prod(of.shape)) + 64) + _SLACK_BYTES)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != of.batch_md5[name]:
        raise DataError(f"{folder / name} has MD5 {digest}, expected {of.batch_md5[name]}")
    batch: Any = load_allow_listed(data, frozenset(), encoding="latin1")
    pixels = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(pixels, PickledArray) or not isinstance(pixels.values, np.ndarray):
        raise DataError(f"{folder / name} holds no array 'data', expected a batch of CIFAR-10")
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise DataError(f"{folder / name} holds no list 'labels' of class numbers, expected a batch of CIFAR-10")
    if pixels.values.dtype != np.uint8:
        raise DataError(f"{folder / name} holds {pixels.values.dtype} pixels, expected uint8")
    return pixels.values, np.array(labels, np.uint8)


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > limit_bytes:
        raise DataError(f"{path} holds more than {limit_bytes} bytes, expected at most as many")
    return data
