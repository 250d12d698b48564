"""Local data as plain numpy arrays, and where on disk it is looked for.

Nothing here imports torch. `hapt_recordings` reads HAPT; `image_places` finds and opens images, whose layouts `idx`,
`cifar_batches` and `image_folders` read; `splits` deals examples to devices; `fetching` and `fetching_images` get the
full data sets.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.errors import DataError
from fedpruneshare.metrics import Targets

DATA_VARIABLE = "FEDPRUNESHARE_DATA"
"""Environment variable that names the data folder where no `data_dir` is passed."""

FIXTURES = Path(__file__).parent / "fixtures"
"""Small licensed slices that ship with the project; see `fixtures/README.md` for their attribution."""

DataSource = Literal["full", "fixture"]

#: What reading a damaged .npz or .gz raises: bits that do not inflate, a header that numpy cannot parse or that says
#: more than there is memory for, packing that `zipfile` does not know (`NotImplementedError`, a `RuntimeError`).
DAMAGE: Final = (
    OSError, EOFError, ValueError, KeyError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile,
    tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Examples of one device, or the test set.

    `inputs` float32[N, ...] is what the model takes; `targets` is the class of each example, int64[N], or the values
    the model should give for it, float32[N] or float32[N, m].
    Raises `DataError` where they are not of these types, disagree in length, or hold a value that is not finite.
    """

    inputs: NDArray[np.float32]
    targets: Targets

    def __post_init__(self) -> None:
        if self.inputs.dtype != np.float32 or self.inputs.ndim < 2:
            raise DataError(f"inputs are {_describe(self.inputs)}, expected float32[N, ...]")
        if not (self.targets.ndim == 1 and self.targets.dtype == np.int64) and not (
            self.targets.ndim in (1, 2) and self.targets.dtype == np.float32
        ):
            raise DataError(f"targets are {_describe(self.targets)}, expected int64[N] or float32[N] or [N, m]")
        if len(self.inputs) != len(self.targets) or not len(self.targets):
            raise DataError(f"found {len(self.inputs)} inputs and {len(self.targets)} targets, expected as many, not 0")
        if not np.isfinite(self.inputs).all():
            raise DataError("inputs hold a value that is not finite")
        if not np.isfinite(self.targets).all():
            raise DataError("targets hold a value that is not finite")
        if self.has_classes and int(self.targets.min()) < 0:
            raise DataError(f"targets hold {int(self.targets.min())}, expected class numbers from 0 up")

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class numbers, and not values."""
        return self.targets.dtype == np.int64

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at `indices` int64[M], in that order."""
        return Dataset(self.inputs[indices], self.targets[indices])


def data_folder(data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where full data sets lie: `data_dir`, else $FEDPRUNESHARE_DATA, else `data/` under the current folder."""
    return data_dir or Path(environment.get(DATA_VARIABLE) or "data")


def _describe(array: NDArray[np.generic]) -> str:
    return f"{array.dtype}{list(array.shape)}"
