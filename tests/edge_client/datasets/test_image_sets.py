from __future__ import annotations

import numpy as np
import pytest
from image_data import FASHION_MNIST, GREY, write_npz

from edge_client.datasets.image_sets import Images, load_npz, npz_form, save_npz
from fedpruneshare.errors import DataError


@pytest.mark.parametrize(
    "changed",
    [
        {"train_labels": GREY["train-labels"][:-1]},
        {"train_labels": GREY["train-labels"] + np.uint8(1)},
        {"train_images": GREY["train-images"].astype(object)},
        {"train_images": GREY["train-images"].astype(np.float32)},
        {"train_images": GREY["train-images"][:, :27]},
        {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, np.uint8)},
        {"form": np.array("GIF")},
        {"more": np.zeros(2 << 20, np.uint8)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_refuses_bad_npz(changed, tmp_path):
    path = tmp_path / "fashion-mnist.npz"
    write_npz(path, **changed)
    with pytest.raises(DataError):
        load_npz(path, FASHION_MNIST)


def test_refuses_what_is_no_npz(tmp_path):
    path = tmp_path / "fashion-mnist.npz"
    write_npz(path)
    path.write_bytes(path.read_bytes()[:-50])
    for read in (lambda: load_npz(path, FASHION_MNIST), lambda: npz_form(path)):
        with pytest.raises(DataError, match="not a readable"):
            read()


def test_what_is_saved_is_read_back_and_no_half_file_stays(tmp_path):
    images = Images(*GREY.values(), form="JPEG")
    path = tmp_path / "new" / "fashion-mnist.npz"
    save_npz(path, images)
    found = load_npz(path, FASHION_MNIST)
    assert found.form == npz_form(path) == "JPEG"
    np.testing.assert_array_equal(found.train_images, images.train_images)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    save_npz(path, images)  # in place of an old one
    (tmp_path / "taken.npz").mkdir()
    with pytest.raises(OSError):
        save_npz(tmp_path / "taken.npz", images)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "taken.npz"]
