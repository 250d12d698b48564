from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle

import image_data
import numpy as np
import pytest
from image_data import BATCH, CIFAR10, COLOUR, python2_batch

from edge_client.datasets.cifar_batches import read_batch, read_batches
from fedpruneshare.errors import DataError


def pickled(folder, data, name="data_batch_1"):
    """A folder whose first batch is `data`, and the set with that file's checksum."""
    image_data.write_pickles(folder)
    (folder / name).write_bytes(data)
    md5 = {**CIFAR10.batch_md5, name: hashlib.md5(data, usedforsecurity=False).hexdigest()}
    return dataclasses.replace(CIFAR10, batch_md5=md5)


def test_pickles_by_newer_numpy_are_read_too(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    of = pickled(folder, python2_batch(*COLOUR[0], module="numpy._core.multiarray"))
    images, labels = read_batch(folder, "data_batch_1", of)
    np.testing.assert_array_equal(images, COLOUR[0][0])
    np.testing.assert_array_equal(labels, COLOUR[0][1])


class Runs:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps({"data": Runs(), "labels": [1] * BATCH}, protocol=2), "names posix.system"),
        (python2_batch(*COLOUR[0], module="os"), "names os._reconstruct"),
        (python2_batch(*COLOUR[0])[:-40], "damaged"),
        (python2_batch(COLOUR[0][0][:2], COLOUR[0][1][:2]), "expected 4 images"),
        (python2_batch(COLOUR[0][0], np.full(BATCH, 10)), "of known classes"),
        (python2_batch(COLOUR[0][0], np.full(BATCH, 300)), "class numbers"),
        (python2_batch(COLOUR[0][0], COLOUR[0][1][:3]), "expected 4 images"),
        (pickle.dumps({"data": [1], "labels": [1] * BATCH}, protocol=2), "no array 'data'"),
        (pickle.dumps([1], protocol=2), "no array 'data'"),
        (pickle.dumps({"data": np.zeros((BATCH, 3072)), "labels": [1] * BATCH}, protocol=2), "float64 pixels"),
    ],
)
def test_hostile_and_damaged_pickles_are_refused(data, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    of = pickled(folder, data)
    with pytest.raises(DataError, match=reason):
        read_batches(folder, of)
    assert not (tmp_path / "PWNED").exists()


def test_other_pickles_are_refused_unread(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    pickled(folder, pickle.dumps(Runs(), protocol=2))
    with pytest.raises(DataError, match="has MD5"):
        read_batches(folder, CIFAR10)
    (folder / "data_batch_1").write_bytes(bytes(6 << 20))
    with pytest.raises(DataError, match="holds more than"):
        read_batches(folder, CIFAR10)
    (folder / "data_batch_1").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_batches(folder, CIFAR10)


@pytest.mark.parametrize("size", [0, 3073 * BATCH - 1, 3073 * BATCH + 1])
def test_records_of_another_size_are_refused(size, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    image_data.write_records(folder)
    (folder / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"{3073 * BATCH}"):
        read_batches(folder, CIFAR10)


def test_records_of_an_unknown_class_are_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    image_data.write_records(folder)
    (folder / "test_batch.bin").write_bytes(bytes([10] * 3073 * BATCH))
    with pytest.raises(DataError, match="known classes"):
        read_batches(folder, CIFAR10)
