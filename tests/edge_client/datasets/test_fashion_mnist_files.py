from __future__ import annotations

import gzip
import hashlib
import tracemalloc

import numpy as np
import pytest

from edge_client.datasets import FIXTURES
from edge_client.datasets import fashion_mnist_files as files
from edge_client.datasets.idx import idx_bytes, read_idx_rows
from fedpruneshare.errors import DataError

RNG = np.random.default_rng(0)
PARTS = {
    "train-images": RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels": np.arange(30, dtype=np.uint8) % 10,
    "t10k-images": RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels": np.arange(10, dtype=np.uint8),
}
DIGESTS = {part: hashlib.sha256(idx_bytes(array)).hexdigest() for part, array in PARTS.items()}


def write_idx(folder, dash="-", packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in PARTS.items():
        name = f"{part}{dash}idx{array.ndim}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))


def write_npz(path, **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train_images": PARTS["train-images"],
        "train_labels": PARTS["train-labels"],
        "test_images": PARTS["t10k-images"],
        "test_labels": PARTS["t10k-labels"],
    }
    np.savez_compressed(path, **{**arrays, **changed})


LAYOUTS = {
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_layout_as_the_same_data(layout, tmp_path):
    assert files.find_images(tmp_path, tmp_path / "debian") is None
    LAYOUTS[layout](tmp_path)
    images = files.load_images(files.find_images(tmp_path, tmp_path / "debian"), DIGESTS)
    np.testing.assert_array_equal(images.train_images, PARTS["train-images"])
    np.testing.assert_array_equal(images.train_labels, PARTS["train-labels"])
    np.testing.assert_array_equal(images.test_images, PARTS["t10k-images"])
    np.testing.assert_array_equal(images.test_labels, PARTS["t10k-labels"])


@pytest.mark.parametrize("layout", ["gzipped", "npz"])
def test_refuses_other_data(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    with pytest.raises(DataError, match="SHA-256"):
        files.load_images(files.find_images(tmp_path))  # not the hashes of the published files


def test_refuses_missing_and_damaged_parts(tmp_path):
    write_idx(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-6])
    with pytest.raises(DataError, match="cannot be read"):
        files.load_images(tmp_path, DIGESTS)
    labels.unlink()
    with pytest.raises(DataError, match="no file for 't10k-labels'"):
        files.load_images(tmp_path, DIGESTS)


def test_refuses_bad_npz(tmp_path):
    path = tmp_path / "fashion-mnist.npz"
    for changed in (
        {"train_labels": PARTS["train-labels"][:-1]},
        {"train_labels": PARTS["train-labels"] + np.uint8(1)},
        {"train_images": PARTS["train-images"].astype(object)},
        {"train_images": PARTS["train-images"].astype(np.float32)},
        {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, np.uint8)},
    ):
        write_npz(path, **changed)
        with pytest.raises(DataError):
            files.load_npz(path)


def test_fixture_is_balanced_and_small():
    images = files.open_images(None)
    assert (FIXTURES / "fashion-mnist.npz").stat().st_size < 600_000
    assert np.bincount(images.train_labels).tolist() == [90] * 10
    assert np.bincount(images.test_labels).tolist() == [25] * 10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [[3], [0, 4, 29], list(range(30)), []], ids=str)
def test_a_part_is_the_same_rows_of_the_whole(layout, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_opened", {})
    monkeypatch.setattr(files, "load_images", lambda place, load=files.load_images: load(place, DIGESTS))
    LAYOUTS[layout](tmp_path)
    place = files.find_images(tmp_path, tmp_path / "debian")
    seen = []

    def choose(labels):
        seen.append(labels.tolist())
        return np.array(rows, np.int64)

    images, labels = files.open_training_part(place, choose, DIGESTS)
    np.testing.assert_array_equal(images, PARTS["train-images"][rows])
    np.testing.assert_array_equal(labels, PARTS["train-labels"][rows])
    assert seen == [PARTS["train-labels"].tolist()]
    is_kept = place.suffix == ".npz" or len(rows) > 30 / 4
    assert list(files._opened) == ([place] if is_kept else [])


def test_a_part_of_other_data_is_refused(tmp_path):
    write_idx(tmp_path)
    place = files.find_images(tmp_path)
    with pytest.raises(DataError, match=r"train-labels.*SHA-256"):
        files.open_training_part(place, lambda labels: np.array([1]))
    with pytest.raises(DataError, match=r"train-images.*SHA-256"):
        files.open_training_part(place, lambda labels: np.array([1]), {**DIGESTS, "train-images": "0" * 64})


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
