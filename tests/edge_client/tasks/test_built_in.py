"""The two built-in tasks, on the fixtures."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.datasets import DATA_VARIABLE, fashion_mnist_files, hapt_recordings
from edge_client.tasks import hapt, load_task, parameter_table
from edge_client.training import TrainingSettings, accuracy, fit
from fedpruneshare.errors import DataError, TaskError


@pytest.fixture(autouse=True)
def fixture_data(tmp_path, monkeypatch):
    """No full data set is found, wherever this machine may have one."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    monkeypatch.setattr(fashion_mnist_files.find_images, "__defaults__", (tmp_path / "none",))


def split(name, devices, seed=0):
    task = load_task(name)
    return [task.load_train(device, devices, np.random.default_rng(seed)) for device in range(devices)]


@pytest.mark.parametrize(("name", "weights", "vectors"), [("hapt", 23_872, 486), ("fashion-mnist", 44_190, 236)])
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
