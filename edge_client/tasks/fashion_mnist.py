"""Built-in task `fashion-mnist`: ten kinds of clothing, LeNet-5 with 44,426 parameters.

The 60,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. Source of the model: LeCun et al. (1998), with ReLU and max pooling as is usual today.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset, DataSource, data_folder
from edge_client.datasets.fashion_mnist_files import CLASSES, find_images, open_images, open_training_part
from edge_client.datasets.splits import dirichlet

name = "fashion-mnist"

ALPHA = 0.5

# Mean and standard deviation of all training pixels, scaled to 0..1.
MEAN, DEVIATION = np.float32(0.2860), np.float32(0.3530)


def build_model() -> nn.Module:
    """float32[B, 1, 28, 28] -> logits float32[B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),  # [B, 6, 24, 24]
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),  # [B, 16, 8, 8]
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),  # [B, 256]
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def load_train(device: int, devices: int, rng: np.random.Generator, data_dir: Path | None = None) -> Dataset:
    """The images of one device. Every device must pass an equal `rng`: the split is drawn from it."""
    place = find_images(data_folder(data_dir))
    return _examples(*open_training_part(place, lambda labels: dirichlet(labels, devices, ALPHA, rng)[device]))


def load_test(data_dir: Path | None = None) -> Dataset:
    """The common test images."""
    images = open_images(find_images(data_folder(data_dir)))
    return _examples(images.test_images, images.test_labels)


def data_source(data_dir: Path | None) -> DataSource:
    """Whether the full images are there or the fixture is used."""
    return "full" if find_images(data_folder(data_dir)) else "fixture"


def _examples(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Dataset:
    pixels = images[:, None].astype(np.float32)  # [N, 1, 28, 28]
    pixels /= 255
    pixels -= MEAN
    pixels /= DEVIATION
    return Dataset(pixels, labels.astype(np.int64))
