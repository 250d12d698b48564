"""Built-in task `fashion-mnist`: ten kinds of clothing, LeNet-5 with 44,426 parameters.

The 60,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. Source of the model: LeCun et al. (1998), with ReLU and max pooling as is usual today.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edge_client.datasets import DataSource, data_folder, image_places
from edge_client.datasets.image_sets import FASHION_MNIST
from edge_client.tasks.images import ImageData, Normal

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


_data = ImageData(FASHION_MNIST, NORMAL)
load_train, load_test, data_form = _data.load_train, _data.load_test, _data.data_form


def data_source(data_dir: Path | None) -> DataSource:
    """Whether the full images are there or the fixture is used."""
    return image_places.data_source(FASHION_MNIST, data_folder(data_dir))
