"""What the image tasks share: pixels to what a net takes, and the part of one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import Dataset, data_folder
from edge_client.datasets.image_places import data_form, open_images, open_training_part
from edge_client.datasets.image_sets import ImageSet
from edge_client.datasets.splits import deal
from edge_client.settings import SplitSettings

OWN_SPLIT = SplitSettings("dirichlet", alpha=0.5)
"""How images are dealt where nothing else is asked for: skewed class shares."""


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


@dataclass(frozen=True)
class ImageData:
    """The data of an image task: its three functions by the names that the task door asks for."""

    of: ImageSet
    normal: Normal

    def load_train(
        self,
        device: int,
        devices: int,
        rng: np.random.Generator,
        data_dir: Path | None = None,
        split: SplitSettings | None = None,
    ) -> Dataset:
        """The images of one device, dealt as `split` says (None: `OWN_SPLIT`); `rng` is equal on all devices.

        Raises `DataError` where there are none, `TaskError` where they cannot be dealt so.
        """

        def own(labels: NDArray[np.integer]) -> NDArray[np.int64]:
            return deal(labels, devices, split or OWN_SPLIT, rng)[device]

        images, labels = open_training_part(self.of, data_folder(data_dir), own)
        return Dataset(self.normal.apply(images), labels.astype(np.int64))

    def load_test(self, data_dir: Path | None = None) -> Dataset:
        """The common test images."""
        images = open_images(self.of, data_folder(data_dir))
        return Dataset(self.normal.apply(images.test_images), images.test_labels.astype(np.int64))

    def data_form(self, data_dir: Path | None) -> str:
        """What the images were read from, if not from the published files."""
        return data_form(self.of, data_folder(data_dir))
