"""Image data sets on disk: every layout they are found in, each opened as the same arrays.

Below the data folder, in the set's own folder (`mnist/`, `fashion-mnist/`, `cifar10/`) or in the data folder itself:
IDX files, raw or gzipped; torchvision's `MNIST/raw`, `FashionMNIST/raw`, `cifar-10-batches-py`; `cifar-10-batches-bin`;
the project's .npz; a folder or archive of images. The SHA-256 of IDX data and the MD5 of pickled batches must be
those published. A folder of images is converted once to an .npz beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_client.datasets import FIXTURES, DataSource
from edge_client.datasets.cifar_batches import PICKLES, RECORDS, read_batches, read_training_batches
from edge_client.datasets.idx import idx_bytes, parse_idx, read_idx_bytes, read_idx_rows
from edge_client.datasets.image_folders import PARTS, Report, is_archive, read_image_folder
from edge_client.datasets.image_sets import ARRAYS, Images, ImageSet, load_npz, npz_form, save_npz
from fedpruneshare.errors import DataError

Layout = Literal["batches", "npz", "idx", "images"]

#: A part of at most one such share of the whole is read alone.
_SMALL_PART = 4
_IDX_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_log = structlog.get_logger()


@dataclass(frozen=True)
class Place:
    """Where a full data set lies, and in which layout."""

    path: Path
    layout: Layout


def find_images(of: ImageSet, folder: Path) -> Place | None:
    """The full data set below the data folder, or where a package of the system puts it, or None."""
    return next(_places(of, folder), None)


def data_source(of: ImageSet, folder: Path) -> DataSource:
    """Whether the full images are there or the fixture is used, if the set has one."""
    return "fixture" if of.has_fixture and find_images(of, folder) is None else "full"


def data_form(of: ImageSet, folder: Path) -> str:
    """What the images were read from, "PNG" or "JPEG"; empty for the data as published, and where there are none."""
    place = prepare(of, folder)
    return npz_form(place.path) if place and place.layout == "npz" else ""


def prepare(of: ImageSet, folder: Path) -> Place | None:
    """As `find_images`, a folder of images converted first."""
    place = find_images(of, folder)
    if place is None or place.layout != "images":
        return place
    _log.info("converting images, once", images=sum(of.counts), source=str(place.path))
    return convert(place.path, of, folder, lambda *_: None)


def convert(source: Path, of: ImageSet, folder: Path, report: Report) -> Place:
    """Decode a folder or archive of images and write them as the project's .npz below the data folder."""
    images = read_image_folder(source, of, report)
    path = folder / of.name / f"{of.name}.npz"
    try:
        save_npz(path, images)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; run `fedpruneshare data get` as one who may") from error
    return Place(path, "npz")


# --------------------------------------------------------------------------- opening

#: What `open_images` gave last. Devices forked from this process share it.
_opened: dict[tuple[str, Path | None], Images] = {}


def open_images(of: ImageSet, folder: Path) -> Images:
    """The full data set, checked, else the fixture. Kept in memory, so devices forked from one process share a copy.

    Raises `DataError` where it is damaged or another one, and with the ways to get it where there is neither.
    """
    place = prepare(of, folder)
    key = (of.name, place.path if place else None)
    if key not in _opened:
        images = load_images(place, of) if place else _fixture(of, folder)
        _opened.clear()
        _opened[key] = images
    return _opened[key]


Choose = Callable[[NDArray[np.uint8]], NDArray[np.int64]]


def open_training_part(of: ImageSet, folder: Path, choose: Choose) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training images uint8[M, *shape] and labels of the ascending indices that `choose(all labels)` returns.

    A small part of IDX files or batches is read without the rest ever being in memory: a small board has no room for
    it. Raises `DataError` as `open_images`.
    """
    place = prepare(of, folder)
    if place and place.layout in ("idx", "batches") and (of.name, place.path) not in _opened:
        labels = _training_labels(place, of)
        rows = choose(labels)
        if len(rows) * _SMALL_PART <= len(labels):
            return _training_rows(place, of, rows), labels[rows]
    else:
        rows = choose(open_images(of, folder).train_labels)
    images = open_images(of, folder)
    return images.train_images[rows], images.train_labels[rows]


def load_images(place: Place, of: ImageSet) -> Images:
    """Read the whole set at a place. Raises `DataError` where a part is missing, damaged or another one."""
    if place.layout == "batches":
        return read_batches(place.path, of)
    if place.layout == "idx":
        train_images, train_labels, *test = (_idx_array(place.path, part, of) for part in _IDX_PARTS)
        return Images(train_images, train_labels, test[0], test[1]).check(of, str(place.path))
    if place.layout == "images":
        return read_image_folder(place.path, of, lambda *_: None)
    images = load_npz(place.path, of)
    for part, name in zip(_IDX_PARTS, ARRAYS, strict=True):
        if of.idx_sha256 and not images.form:
            found = hashlib.sha256(idx_bytes(getattr(images, name))).hexdigest()
            _check(found, of.idx_sha256[part], f"{place.path} ({part})")
    return images


def _fixture(of: ImageSet, folder: Path) -> Images:
    if of.has_fixture:
        return load_npz(FIXTURES / f"{of.name}.npz", of, is_whole=False)
    fault = f"{of.title} is not below {folder}, and no sample of it ships with the project; get it by"
    raise DataError(f"{fault}\n  fedpruneshare data get {of.name} --to {folder}\n{of.help(folder)}")


def _training_labels(place: Place, of: ImageSet) -> NDArray[np.uint8]:
    if place.layout == "idx":
        labels = _idx_array(place.path, "train-labels", of)
    else:
        labels = np.concatenate([labels for _, labels in read_training_batches(place.path, of)])
    if len(labels) != of.counts[0] or labels.max() >= len(of.classes):
        raise DataError(f"{place.path} holds {len(labels)} training labels, expected {of.counts[0]} of known classes")
    return labels


def _training_rows(place: Place, of: ImageSet, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    if place.layout == "idx":
        path = _required(place.path, "train-images")
        taken, digest = read_idx_rows(path, rows, of.limit_bytes)
        _check(digest, of.idx_sha256["train-images"], str(path))
    else:
        pieces, first = [], 0
        for images, labels in read_training_batches(place.path, of):
            start, end = np.searchsorted(rows, (first, first + len(labels)))
            pieces.append(images[rows[start:end] - first])
            first += len(labels)
        taken = np.concatenate(pieces)
    if taken.shape[1:] != of.shape:
        raise DataError(f"{place.path} holds images {taken.shape[1:]}, expected {of.shape}")
    return taken


# --------------------------------------------------------------------------- finding


def _places(of: ImageSet, folder: Path) -> Iterator[Place]:
    """Where the set lies, best first: as published, then the project's own file, then folders of images."""
    inner = [folder / name for name in of.folders]
    for place in (*inner, folder):
        for name in (PICKLES, RECORDS) if of.batch_md5 else ():
            if (place / name).is_dir():
                yield Place(place / name, "batches")
    for place in (*inner, folder):
        if (place / f"{of.name}.npz").is_file():
            yield Place(place / f"{of.name}.npz", "npz")
    if of.idx_sha256:
        own = [*inner, *(place / "raw" for place in inner), *(a / b / "raw" for a in inner for b in of.folders)]
        shared = [place for place in (folder, folder / "raw") if _is_of(place, of)]
        for place in (*own, *shared, *of.elsewhere):
            if _idx_file(place, "train-images"):
                yield Place(place, "idx")
    for place in inner:
        if all((place / part).is_dir() for part in PARTS):
            yield Place(place, "images")
    archives = [path for place in inner if place.is_dir() for path in sorted(place.iterdir())]
    archives += sorted(folder.glob(f"{of.name}*"))
    yield from (Place(path, "images") for path in archives if is_archive(path) and path.is_file())


def _is_of(folder: Path, of: ImageSet) -> bool:
    """Whether IDX files in a folder that several sets may lie in are this set's: they all have the same names."""
    path = _idx_file(folder, "t10k-labels")
    if path is None:
        return False
    return hashlib.sha256(read_idx_bytes(path, of.limit_bytes)).hexdigest() == of.idx_sha256["t10k-labels"]


def _idx_file(folder: Path, part: str) -> Path | None:
    rank = 3 if part.endswith("images") else 1
    names = [f"{part}{dash}idx{rank}-ubyte{end}" for dash in ("-", ".") for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _required(folder: Path, part: str) -> Path:
    path = _idx_file(folder, part)
    if path is None:
        raise DataError(f"{folder} holds no file for {part!r}, expected {part}-idx*-ubyte or the same with .gz")
    return path


def _idx_array(folder: Path, part: str, of: ImageSet) -> NDArray[np.uint8]:
    path = _required(folder, part)
    data = read_idx_bytes(path, of.limit_bytes)
    _check(hashlib.sha256(data).hexdigest(), of.idx_sha256[part], str(path))
    return parse_idx(data, str(path))


def _check(found: str, expected: str, name: str) -> None:
    if found != expected:
        raise DataError(f"{name} has SHA-256 {found} (decompressed), expected {expected}")
