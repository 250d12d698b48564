from __future__ import annotations

import image_data
import pytest

from edge_client.datasets import fetching_images
from fedpruneshare.bundle import Bundle
from fedpruneshare.cli import run


def test_task_export_writes_a_bundle_and_says_what_it_is(tmp_path, capsys):
    path = tmp_path / "hapt.bundle"
    assert run(["task", "export", "hapt", "--out", str(path), "--seed", "3", "--data-dir", str(tmp_path)]) == 0
    bundle = Bundle.open(path)
    out = capsys.readouterr().out
    assert "hapt (fixture data)" in out and bundle.digest.hex() in out
    assert bundle.manifest.seed == 3


TASK = """
import numpy as np
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv1d(2, 4, 3), nn.Linear(24, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.last(self.hidden(self.conv(x).view(-1, 24)).relu())
def build_model(): return MODEL
def load_train(device, devices, rng): return load_test()
def load_test(): return np.ones((3, 2, 8), np.float32), np.arange(3)
"""


@pytest.mark.parametrize(
    ("model", "told", "channels"),
    [
        ("Net()", ["8 channels may be cut", "the 4 channels of 'conv' stay whole: the narrowed model fails"], [8]),
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(16, 3))",
            ["none: the model cannot be cut", "none of its channels"],
            [],
        ),
    ],
)
def test_task_export_says_which_channels_stay_whole_and_why(model, told, channels, tmp_path, capsys):
    (tmp_path / "t.py").write_text(TASK.replace("MODEL", model))
    assert run(["task", "export", str(tmp_path / "t.py"), "--out", str(tmp_path / "b"), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    manifest = Bundle.open(tmp_path / "b").manifest
    assert all(text in out for text in told)
    assert [group.channels for group in manifest.channel_groups] == channels
    assert told[1] in manifest.uncut_reason


def test_mistakes_end_with_code_2_and_a_message(tmp_path, capsys):
    assert run(["task", "export", "hatp", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'hapt'" in capsys.readouterr().err
    assert run(["data", "get", "emnist"]) == 2
    assert "'hapt', 'fashion-mnist', 'mnist', 'cifar10'" in capsys.readouterr().err


def test_data_that_cannot_be_had_end_with_code_1_and_the_commands(tmp_path, capsys):
    (tmp_path / "hapt").mkdir()
    (tmp_path / "hapt" / "hapt.npz").write_bytes(b"damaged")
    assert run(["data", "get", "hapt", "--to", str(tmp_path)]) == 1
    assert "not a readable file" in capsys.readouterr().err


def test_data_are_imported_from_an_archive(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetching_images, "CIFAR10", image_data.CIFAR10)
    archive = image_data.write_tar(tmp_path / "images.tar.gz", image_data.image_files("JPEG"))
    command = ["data", "get", "cifar10", "--to", str(tmp_path / "data"), "--from"]
    assert run([*command, str(archive)]) == 0
    out = capsys.readouterr().out
    assert f"cifar10: {tmp_path / 'data' / 'cifar10' / 'cifar10.npz'} (from {archive}, read from JPEG files" in out
    archive.write_bytes(archive.read_bytes()[:1000])
    assert run([*command, str(archive)]) == 1
    assert "not a readable archive" in capsys.readouterr().err
