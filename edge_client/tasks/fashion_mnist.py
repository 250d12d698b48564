"""Built-in task `fashion-mnist`: ten kinds of clothing, LeNet-5 with 44,426 parameters.

The 60,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. Source of the model: LeCun et al. (1998), with ReLU and max pooling as is usual today.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from edge_client.datasets import Dataset, DataSource, data_folder, image_places
from edge_client.datasets.image_sets import FASHION_MNIST
from edge_client.settings import SplitSettings
from edge_client.tasks.images import Normal, test_examples, training_examples

name = "fashion-mnist"

# Mean and standard deviation of all training pixels, scaled to 0..1.
NORMAL = Normal((0.2860,), (0.3530,))


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
        nn.Linear(84, len(FASHION_MNIST.classes)),
    )


def load_train(
    device: int,
    devices: int,
    rng: np.random.Generator,
    data_dir: Path | None = None,
    split: SplitSettings | None = None,
) -> Dataset:
    """The images of one device, unless `split` says otherwise from Dirichlet(0.5)."""
    part = (device, devices, rng, split)
    return training_examples(FASHION_MNIST, data_folder(data_dir), part, NORMAL)


def load_test(data_dir: Path | None = None) -> Dataset:
    """The common test images."""
    return test_examples(FASHION_MNIST, data_folder(data_dir), NORMAL)


def data_source(data_dir: Path | None) -> DataSource:
    """Whether the full images are there or the fixture is used."""
    return image_places.data_source(FASHION_MNIST, data_folder(data_dir))


def data_form(data_dir: Path | None) -> str:
    """What the images were read from, if not from the published files."""
    return image_places.data_form(FASHION_MNIST, data_folder(data_dir))
