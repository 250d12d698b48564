"""Built-in task `hapt`: which of six activities a person is doing, from 2.56 s of a waist-worn phone's motion.

Devices are real people: 24 of the 30 train, and six (every fifth: 5, 10, 15, 20, 25, 30) are seen only in the test,
so the accuracy is that on strangers. The model is a small 1-D CNN of 24,358 parameters with GroupNorm, whose
statistics do not depend on other devices' data as BatchNorm's would.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset, DataSource, data_folder
from edge_client.datasets.hapt_recordings import ACTIVITIES, CHANNELS, PEOPLE, Windows, find_windows, open_windows
from edge_client.datasets.splits import by_group, deal
from edge_client.settings import SplitSettings

name = "hapt"

HELD_OUT = (5, 10, 15, 20, 25, 30)
TRAINING_PEOPLE = tuple(person for person in range(1, PEOPLE + 1) if person not in HELD_OUT)

# Mean and standard deviation of each channel over all windows of the 24 training people (g, then rad/s).
MEAN = np.array([0.8071, 0.0151, 0.0772, 0.0056, -0.0019, -0.0080], np.float32)
DEVIATION = np.array([0.4128, 0.3883, 0.3652, 0.4049, 0.3856, 0.2557], np.float32)


def build_model() -> nn.Module:
    """float32[B, 6, 128] -> logits float32[B, 6]."""
    return nn.Sequential(
        nn.Conv1d(len(CHANNELS), 32, 5, stride=2, padding=2),  # [B, 32, 64]
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, stride=2, padding=2),  # [B, 64, 32]
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.Conv1d(64, 64, 3, padding=1),  # [B, 64, 32]
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),  # [B, 64]
        nn.Linear(64, len(ACTIVITIES)),
    )


def load_train(
    device: int,
    devices: int,
    rng: np.random.Generator,
    data_dir: Path | None = None,
    split: SplitSettings | None = None,
) -> Dataset:
    """The windows of one device's people. With 24 devices each is one person.

    Fewer devices share the 24 people out in turn; more are refused, since a person is never cut in two. The split
    follows from the people alone: `rng` is not drawn from. Any other `split` mixes the 24 people's windows.
    """
    windows = _windows(data_dir)
    training = np.flatnonzero(np.isin(windows.person, TRAINING_PEOPLE))
    if split is None or split.kind == "person":
        part = by_group(windows.person[training], devices)[device]
    else:
        part = deal(windows.activity[training], devices, split, rng)[device]
    return _examples(windows, training[part])


def load_test(data_dir: Path | None = None) -> Dataset:
    """All windows of the six people no device holds."""
    windows = _windows(data_dir)
    return _examples(windows, np.flatnonzero(np.isin(windows.person, HELD_OUT)))


def data_source(data_dir: Path | None) -> DataSource:
    """Whether the full recordings are there or the fixture is used."""
    return "full" if find_windows(data_folder(data_dir)) else "fixture"


def _windows(data_dir: Path | None) -> Windows:
    return open_windows(find_windows(data_folder(data_dir)))


def _examples(windows: Windows, indices: NDArray[np.int64]) -> Dataset:
    signals = windows.signals[indices].astype(np.float32)
    signals -= MEAN[:, None]
    signals /= DEVIATION[:, None]
    return Dataset(signals, windows.activity[indices].astype(np.int64))
