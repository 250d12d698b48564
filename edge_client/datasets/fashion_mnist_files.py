"""Fashion-MNIST on disk: every layout it is found in, one check for all of them.

60,000 + 10,000 images, 28x28 grey, 10 classes. Layouts read below the data folder: IDX files raw or gzipped
(`fashion-mnist/` or the folder itself), torchvision's `FashionMNIST/raw`, an .npz, and the folder of the Debian
package. Whatever the layout, the SHA-256 of the decompressed IDX bytes must match, so every source is the same data.
Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST" (2017), arXiv:1708.07747. Licence of the data: MIT.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import FIXTURES
from edge_client.datasets.idx import idx_bytes, parse_idx, read_idx_bytes, read_idx_rows
from fedpruneshare.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
LIMIT_BYTES = 48 << 20
CLASSES, SIDE = 10, 28
#: A part of at most one such share of the whole is read alone.
_SMALL_PART = 4

DIGESTS: Mapping[str, str] = MappingProxyType(
    {
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
)
"""SHA-256 of each decompressed IDX file."""

_NPZ_NAMES = {
    "train-images": "train_images",
    "train-labels": "train_labels",
    "t10k-images": "test_images",
    "t10k-labels": "test_labels",
}


@dataclass(frozen=True)
class Images:
    """uint8[N, 28, 28] images and uint8[N] labels (0..9), training and test."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            wanted = (len(labels), SIDE, SIDE)
            if images.dtype != np.uint8 or labels.dtype != np.uint8 or labels.ndim != 1 or images.shape != wanted:
                raise DataError(f"images are {images.dtype}{images.shape}, expected uint8{wanted} and uint8 labels")
            if not len(labels) or labels.max() >= CLASSES:
                raise DataError(f"labels are none or reach {labels.max(initial=0)}, expected 0 to {CLASSES - 1}")


#: What `open_images` gave last. Devices forked from this process share it.
_opened: dict[Path | None, Images] = {}


def open_images(place: Path | None) -> Images:
    """The full data set at `place` (from `find_images`), checked, or the fixture where it is None.

    Kept in memory, so devices forked from one process share one copy.
    """
    if place not in _opened:
        images = load_npz(FIXTURES / "fashion-mnist.npz") if place is None else load_images(place)
        _opened.clear()
        _opened[place] = images
    return _opened[place]


Choose = Callable[[NDArray[np.uint8]], NDArray[np.int64]]


def open_training_part(
    place: Path | None, choose: Choose, digests: Mapping[str, str] = DIGESTS
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training images uint8[M, 28, 28] and labels of the ascending indices that `choose(all labels)` returns.

    A small part of IDX files is read without the rest ever being in memory: a small board has no room for it. Raises
    `DataError` as `load_images`.
    """
    if place is None or place.suffix == ".npz" or place in _opened:
        images = open_images(place)
        rows = choose(images.train_labels)
        return images.train_images[rows], images.train_labels[rows]
    path = _required(place, "train-labels")
    data = read_idx_bytes(path, LIMIT_BYTES)
    _check(hashlib.sha256(data).hexdigest(), digests["train-labels"], str(path))
    labels = parse_idx(data, str(path))
    rows = choose(labels)
    if len(rows) * _SMALL_PART > len(labels):
        images = open_images(place)
        return images.train_images[rows], images.train_labels[rows]
    path = _required(place, "train-images")
    taken, digest = read_idx_rows(path, rows, LIMIT_BYTES)
    _check(digest, digests["train-images"], str(path))
    if taken.shape[1:] != (SIDE, SIDE) or labels[rows].max(initial=0) >= CLASSES:
        raise DataError(f"images are uint8{taken.shape}, expected uint8[{len(rows)}, {SIDE}, {SIDE}] of known classes")
    return taken, labels[rows]


def load_images(place: Path, digests: Mapping[str, str] = DIGESTS) -> Images:
    """Read an .npz or a folder of IDX files. Raises `DataError` where a part is missing, damaged or another one."""
    if place.suffix == ".npz":
        images = load_npz(place)
        for part, digest in digests.items():
            data = idx_bytes(getattr(images, _NPZ_NAMES[part]))
            _check(hashlib.sha256(data).hexdigest(), digest, f"{place} ({part})")
        return images
    arrays = {}
    for part, digest in digests.items():
        path = _required(place, part)
        data = read_idx_bytes(path, LIMIT_BYTES)
        _check(hashlib.sha256(data).hexdigest(), digest, str(path))
        arrays[_NPZ_NAMES[part]] = parse_idx(data, str(path))
    return Images(**arrays)


def load_npz(path: Path) -> Images:
    """Read an .npz with `train_images`, `train_labels`, `test_images` and `test_labels`; no pickled arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > 2 * LIMIT_BYTES:
            raise DataError(f"{path} unpacks to {unpacked} bytes, expected at most {2 * LIMIT_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return Images(**{name: arrays[name] for name in _NPZ_NAMES.values()})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz of images: {error}") from error


def find_images(folder: Path, debian_folder: Path = DEBIAN_FOLDER) -> Path | None:
    """The full data set below the data folder or of the Debian package: an .npz or a folder of IDX files, or None."""
    inner = [folder / "fashion-mnist", folder / "FashionMNIST", folder]
    files = [place / "fashion-mnist.npz" for place in inner]
    folders = [
        *inner,
        folder / "FashionMNIST" / "raw",
        folder / "fashion-mnist" / "FashionMNIST" / "raw",
        folder / "raw",
        debian_folder,
    ]
    found = next((path for path in files if path.is_file()), None)
    return found or next((place for place in folders if _idx_file(place, "train-images")), None)


def _idx_file(folder: Path, part: str) -> Path | None:
    rank = 3 if part.endswith("images") else 1
    names = [f"{part}{dash}idx{rank}-ubyte{end}" for dash in ("-", ".") for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _required(folder: Path, part: str) -> Path:
    path = _idx_file(folder, part)
    if path is None:
        raise DataError(f"{folder} holds no file for {part!r}, expected {part}-idx*-ubyte or the same with .gz")
    return path


def _check(found: str, expected: str, name: str) -> None:
    if found != expected:
        raise DataError(f"{name} has SHA-256 {found} (decompressed), expected {expected}")
