"""What a parent of many devices does before it forks them."""

from __future__ import annotations

import pytest
import torch

from edge_client import running
from edge_client.running import warm_up, workplace_of
from edge_client.settings import DeviceTask
from fedpruneshare.errors import TaskError

TASK = """
import numpy as np
from torch import nn
def build_model():
    return nn.Linear(4, 3)
def load_train(device, devices, rng{split}):
    return rng.standard_normal((100, 4)) + {shift}, np.arange(100) % 3
def load_test():
    return np.zeros((3, 4)), np.arange(3)
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    running._task.cache_clear()


def test_the_warm_up_takes_one_small_step(tmp_path, monkeypatch):
    (tmp_path / "t.py").write_text(TASK.format(split="", shift=0))
    seen = []
    monkeypatch.setattr(running, "fit", lambda model, dataset, masks, settings, *_: seen.append((dataset, settings)))
    warm_up(str(tmp_path / "t.py"), str(tmp_path))
    ((dataset, settings),) = seen
    assert len(dataset) == settings.batch_size == 32  # of 100: half of a large data set would need gigabytes
    assert settings.local_epochs == 1


def test_a_split_is_tried_before_any_device_starts(tmp_path):
    (tmp_path / "t.py").write_text(TASK.format(split="", shift=0))
    with pytest.raises(TaskError, match="no parameter `split`"):
        warm_up(str(tmp_path / "t.py"), str(tmp_path), "iid")
    with pytest.raises(TaskError, match="expected dirichlet, iid or shards"):
        warm_up("fashion-mnist", str(tmp_path), "person")


def test_a_device_deals_as_its_settings_say(tmp_path):
    (tmp_path / "t.py").write_text(TASK.format(split=", split=None", shift="(100 * split.alpha if split else 0)"))
    own = workplace_of(DeviceTask(str(tmp_path / "t.py"), 0, 2, str(tmp_path)), 1).dataset
    dealt = workplace_of(DeviceTask(str(tmp_path / "t.py"), 0, 2, str(tmp_path), split="dirichlet", alpha=2), 1).dataset
    assert abs(own.inputs.mean()) < 1
    assert abs(dealt.inputs.mean() - 200) < 1
