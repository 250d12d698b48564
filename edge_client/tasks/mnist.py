"""Built-in task `mnist`: handwritten digits, LeNet-5 with 44,426 parameters.

The 60,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. No sample ships with the project: `fedpruneshare data get mnist` brings the data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_client.datasets import Dataset, data_folder, image_places
from edge_client.datasets.image_sets import MNIST
from edge_client.settings import SplitSettings
from edge_client.tasks import fashion_mnist
from edge_client.tasks.images import Normal, test_examples, training_examples

name = "mnist"

# Mean and standard deviation of all training pixels, scaled to 0..1.
NORMAL = Normal((0.1307,), (0.3081,))

build_model = fashion_mnist.build_model


def load_train(
    device: int,
    devices: int,
    rng: np.random.Generator,
    data_dir: Path | None = None,
    split: SplitSettings | None = None,
) -> Dataset:
    """The images of one device, unless `split` says otherwise from Dirichlet(0.5)."""
    part = (device, devices, rng, split)
    return training_examples(MNIST, data_folder(data_dir), part, NORMAL)


def load_test(data_dir: Path | None = None) -> Dataset:
    """The common test images."""
    return test_examples(MNIST, data_folder(data_dir), NORMAL)


def data_form(data_dir: Path | None) -> str:
    """What the images were read from, if not from the published files."""
    return image_places.data_form(MNIST, data_folder(data_dir))
