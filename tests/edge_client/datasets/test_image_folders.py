from __future__ import annotations

import builtins
import importlib.util
import io
import shutil
import struct
import tarfile
import zlib

import image_data
import numpy as np
import pytest
from image_data import CIFAR10, encoded, image_files, write_files, write_tar

from edge_client.datasets import image_folders
from edge_client.datasets.image_folders import read_image_folder
from fedpruneshare.errors import DataError


def silent(stage, done, total):
    """A report nobody reads."""


def read(source):
    return read_image_folder(source, CIFAR10, silent)


def by_class_and_name(images, labels):
    return images[np.argsort(labels, kind="stable")]


needs_zstd = pytest.mark.skipif(not shutil.which("zstd"), reason="the program zstd is missing, which packs the archive")
ARCHIVES = ["x.tar", "x.tar.gz", "x.tgz", pytest.param("x.tar.zst", marks=needs_zstd)]


@pytest.mark.parametrize("name", ["folder", *ARCHIVES])
def test_folder_and_archives_give_the_same_arrays(name, tmp_path):
    files = dict(reversed(image_files().items()))
    source = write_files(tmp_path / name, files) if name == "folder" else write_tar(tmp_path / name, files)
    images = read(source)
    wanted = by_class_and_name(image_data.TRAIN_IMAGES, image_data.TRAIN_LABELS)
    np.testing.assert_array_equal(images.train_images, wanted)
    np.testing.assert_array_equal(images.train_labels, np.sort(image_data.TRAIN_LABELS))
    np.testing.assert_array_equal(images.test_images, by_class_and_name(*image_data.COLOUR[5]))
    assert images.form == "PNG"


def test_one_jpeg_among_them_makes_it_jpeg(tmp_path):
    files = image_files()
    name = next(iter(files))
    files[name] = encoded(image_data.COLOUR[0][0][0], "JPEG")  # whatever its name says
    assert read(write_tar(tmp_path / "x.tar", files)).form == "JPEG"
    near = read(write_tar(tmp_path / "y.tar", image_files("JPEG")))
    exact = by_class_and_name(image_data.TRAIN_IMAGES, image_data.TRAIN_LABELS)
    assert 0 < np.abs(near.train_images.astype(int) - exact).mean() < 60


def test_classes_by_number_a_leading_folder_and_other_files(tmp_path):
    files = {"CIFAR-10-images-master/README.md": b"read me", "CIFAR-10-images-master/train/list.txt": b"1"}
    for name, data in image_files().items():
        part, kind, file = name.split("/")
        files[f"CIFAR-10-images-master/{part}/{CIFAR10.classes.index(kind)}/{file}"] = data
    first, second = read(write_tar(tmp_path / "x.tar", files)), read(write_tar(tmp_path / "y.tar", image_files()))
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_grey_images_of_a_colour_set_become_colour(tmp_path):
    files = image_files()
    grey = np.full((32, 32), 77, np.uint8)
    name = next(name for name in files if name.startswith("test"))
    files[name] = encoded(grey)
    assert (read(write_tar(tmp_path / "x.tar", files)).test_images == 77).all(axis=(1, 2, 3)).sum() == 1


def huge_png(side):
    """A PNG of a few bytes that says it has side^2 pixels."""
    data = bytearray(encoded(np.zeros((32, 32, 3), np.uint8)))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


FIRST = next(iter(image_files()))
BAD_FILES = {
    "a bomb": ({FIRST: huge_png(100_000)}, "10000000000 pixels"),
    "too large an image": ({FIRST: huge_png(8_000)}, r"image of \(8000, 8000\)"),
    "a little too large": ({FIRST: encoded(np.zeros((33, 32, 3), np.uint8))}, r"image of \(32, 33\)"),
    "too long a file": ({FIRST: bytes(image_folders.IMAGE_BYTES + 1)}, "longer than"),
    "no image": ({FIRST: b"not an image"}, "not a readable PNG or JPEG"),
    "half an image": ({FIRST: image_files()[FIRST][:200]}, "not a readable PNG or JPEG"),
    "another format": ({FIRST: encoded(np.zeros((32, 32, 3), np.uint8), "GIF")}, "not a readable PNG or JPEG"),
    "an unknown class": ({"train/whale/0001.png": image_files()[FIRST]}, "class 'whale'"),
    "one too many": ({"train/ship/9999.png": image_files()[FIRST]}, "more than the 24 images"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
@pytest.mark.parametrize("is_archive", [False, True])
def test_bad_images_are_refused(fault, is_archive, tmp_path):
    changed, reason = BAD_FILES[fault]
    files = image_files() | changed
    source = write_tar(tmp_path / "x.tar", files) if is_archive else write_files(tmp_path / "x", files)
    with pytest.raises(DataError, match=reason):
        read(source)


@pytest.mark.parametrize("name", ["../train/ship/1.png", "/train/ship/1.png", "a/../../train/ship/1.png"])
def test_paths_that_lead_outside_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="leads outside"):
        read(write_tar(tmp_path / "in" / "x.tar", {name: image_files()[FIRST], **image_files()}))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tar"]  # nothing is ever unpacked


def test_links_are_no_images(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in list(image_files().items())[1:]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(FIRST)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="holds 19 images in train/"):
        read(path)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_archives_are_refused(name, kept, tmp_path):
    path = write_tar(tmp_path / name, image_files())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"not a readable archive|zstd says|images in"):
        read(path)


@needs_zstd
@pytest.mark.skipif(not importlib.util.find_spec("zstandard"), reason="the package zstandard is missing")
@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_zst_without_the_package_goes_through_the_program(kept, tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar.zst", image_files())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "zstandard" else find(name))
    if kept == 1.0:
        assert read(path).form == "PNG"
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(DataError, match=r"zstandard \(pip install 'fedpruneshare\[images\]'\) or the program zstd"):
            read(path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"not a readable archive|zstd says"):
            read(path)


def test_an_archive_of_something_else_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folders, "_OTHER_FILES", 5)
    with pytest.raises(DataError, match="5 more that are no images"):
        read(write_tar(tmp_path / "x.tar", {f"{i}.txt": b"x" for i in range(9)}))
    with pytest.raises(DataError, match="no images"):
        read(write_tar(tmp_path / "y.tar", {"weights.bin": bytes(image_folders.IMAGE_BYTES + 1)}))
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="neither a folder nor one of"):
        read(tmp_path / "x.zip")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest, **more)

    source = write_files(tmp_path, image_files())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"Pillow.*fedpruneshare\[images\]"):
        read(source)
