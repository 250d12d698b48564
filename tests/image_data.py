"""Image data sets of a few images, written in every layout the real ones come in."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from edge_client.datasets import image_sets
from edge_client.datasets.idx import idx_bytes

RNG = np.random.default_rng(0)

GREY = {
    "train-images": RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels": np.arange(30, dtype=np.uint8) % 10,
    "t10k-images": RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels": np.arange(10, dtype=np.uint8),
}
"""A data set like MNIST, by the names of its IDX files."""

BATCH = 4
COLOUR = [
    (RNG.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), RNG.integers(0, 10, BATCH, dtype=np.uint8))
    for _ in range(6)
]
"""Five training batches and a test batch like CIFAR-10's: images and labels."""
TRAIN_IMAGES = np.concatenate([images for images, _ in COLOUR[:5]])
TRAIN_LABELS = np.concatenate([labels for _, labels in COLOUR[:5]])

_SHA256 = {part: hashlib.sha256(idx_bytes(array)).hexdigest() for part, array in GREY.items()}
MNIST = dataclasses.replace(image_sets.MNIST, counts=(30, 10), idx_sha256=_SHA256)
FASHION_MNIST = dataclasses.replace(image_sets.FASHION_MNIST, counts=(30, 10), idx_sha256=_SHA256, elsewhere=())


def write_idx(folder: Path, dash: str = "-", packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in GREY.items():
        name = f"{part}{dash}idx{array.ndim}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))


def write_npz(path: Path, **changed: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez_compressed(path, **{**dict(zip(names, GREY.values(), strict=True)), **changed})


def python2_batch(images: np.ndarray, labels: np.ndarray, module: str = "numpy.core.multiarray") -> bytes:
    """A batch as Python 2 pickled it, opcode by opcode: bytes are texts there, and numpy names its old modules."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def name(of: str, what: str) -> bytes:
        return f"c{of}\n{what}\n".encode()

    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    empty = name(module, "_reconstruct") + name("numpy", "ndarray") + number(0) + b"\x85" + text(b"b") + b"\x87R"
    dtype = name("numpy", "dtype") + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array = empty + b"(" + number(1) + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


PICKLES = [python2_batch(*batch) for batch in COLOUR]
assert pickle.loads(PICKLES[0], encoding="latin1")["labels"] == COLOUR[0][1].tolist()
_MD5 = {
    name: hashlib.md5(data, usedforsecurity=False).hexdigest()
    for name, data in zip(image_sets.CIFAR10.batch_md5, PICKLES, strict=True)
}
CIFAR10 = dataclasses.replace(image_sets.CIFAR10, counts=(5 * BATCH, BATCH), batch_md5=_MD5)


def write_pickles(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in zip(CIFAR10.batch_md5, PICKLES, strict=True):
        (folder / name).write_bytes(data)


def write_records(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (images, labels) in zip(CIFAR10.batch_md5, COLOUR, strict=True):
        planes = images.transpose(0, 3, 1, 2).reshape(BATCH, -1)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], planes], axis=1).tobytes())


def encoded(pixels: np.ndarray, form: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def image_files(form: str = "PNG") -> dict[str, bytes]:
    """Path -> bytes of every image of `CIFAR10`, numbered in the order of the batches."""
    ending = {"PNG": "png", "JPEG": "jpg"}[form]
    files = {}
    for part, batches in (("train", COLOUR[:5]), ("test", COLOUR[5:])):
        images, labels = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            files[f"{part}/{CIFAR10.classes[label]}/{i:04d}.{ending}"] = encoded(pixels, form)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A .tar, .tar.gz or .tar.zst, packed by the program zstd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = stream.getvalue()
    if path.suffix == ".zst":
        data = subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    path.write_bytes(gzip.compress(data) if path.suffix in (".gz", ".tgz") else data)
    return path
