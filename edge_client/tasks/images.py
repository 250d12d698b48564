"""What the image tasks share: pixels to what a net takes, and the part of one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import Dataset
from edge_client.datasets.image_places import open_images, open_training_part
from edge_client.datasets.image_sets import ImageSet
from edge_client.datasets.splits import deal
from edge_client.settings import SplitSettings

OWN_SPLIT = SplitSettings("dirichlet", alpha=0.5)
"""How images are dealt where nothing else is asked for: skewed class shares."""

Part = tuple[int, int, np.random.Generator, SplitSettings | None]
"""Device, devices, equal generator of all devices, and how to deal (None: `OWN_SPLIT`)."""


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation of each colour over all training pixels, scaled to 0..1."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8[N, H, W] or [N, H, W, C] -> float32[N, C, H, W]."""
        planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        pixels = planes.astype(np.float32, order="C")
        pixels /= 255
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.deviation, np.float32)[:, None, None]
        return pixels


def training_examples(of: ImageSet, folder: Path, part: Part, normal: Normal) -> Dataset:
    """The images of one device. Raises `DataError` where there are none, `TaskError` where they cannot be dealt so."""
    device, devices, rng, split = part
    images, labels = open_training_part(of, folder, lambda all_: deal(all_, devices, split or OWN_SPLIT, rng)[device])
    return Dataset(normal.apply(images), labels.astype(np.int64))


def test_examples(of: ImageSet, folder: Path, normal: Normal) -> Dataset:
    """The common test images."""
    images = open_images(of, folder)
    return Dataset(normal.apply(images.test_images), images.test_labels.astype(np.int64))
