"""Human activity recordings (UCI HAPT): from raw recordings to labelled windows, and how they lie on disk.

Thirty people carried a smartphone at the waist: acceleration (g) and rotation (rad/s), three axes each, 50 Hz.
A window is 128 samples (2.56 s), every 64 samples, kept where all its samples carry one and the same of six
activities. Source: Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using Smartphones",
Neurocomputing 171 (2016). Licence of the data: CC BY 4.0 (UCI Machine Learning Repository).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.datasets import DAMAGE, FIXTURES
from edge_client.datasets.allow_list_pickle import PickledArray, PickledObject, load_allow_listed
from fedpruneshare.errors import DataError

ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying")
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
WINDOW, STEP, PEOPLE = 128, 64, 30

RECORDINGS_SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"
"""SHA-256 of `HAPT.pkl.gz`, compressed as published."""
RECORDINGS_BYTES, RECORDINGS_UNPACKED_BYTES = 20_522_442, 100_526_008

WINDOWS_SHA256 = "5461dd0327a0f391db5aeb52cd0de529dcd33ecda6c6d6ff23df684dc128d5e8"
"""SHA-256 over the arrays of `Windows` made from these recordings (see `Windows.digest`)."""
WINDOWS_LIMIT_BYTES = 64 << 20

_PANDAS_CLASSES = frozenset(
    {
        ("pandas.core.frame", "DataFrame"),
        ("pandas.core.internals.managers", "BlockManager"),
        ("pandas.core.indexes.base", "_new_Index"),
        ("pandas.core.indexes.base", "Index"),
        ("pandas.core.indexes.range", "RangeIndex"),
    }
)


@dataclass(frozen=True)
class Windows:
    """All labelled windows.

    `signals` float16[N, 6, 128] in g and rad/s, `activity` uint8[N] (0..5, index of `ACTIVITIES`), `person` uint8[N]
    (1..30). Half precision: its step at 1 g, 0.001 g, is below the sensor's noise.
    """

    signals: NDArray[np.float16]
    activity: NDArray[np.uint8]
    person: NDArray[np.uint8]

    def __post_init__(self) -> None:
        count = len(self.signals)
        found = [(a.dtype.name, a.shape) for a in (self.signals, self.activity, self.person)]
        wanted = [("float16", (count, len(CHANNELS), WINDOW)), ("uint8", (count,)), ("uint8", (count,))]
        if found != wanted:
            raise DataError(f"activity windows are {found}, expected {wanted}")
        if (
            not count
            or self.activity.max() >= len(ACTIVITIES)
            or not 1 <= self.person.min() <= self.person.max() <= PEOPLE
        ):
            raise DataError("activity windows hold no window, an unknown activity or an unknown person")

    def digest(self) -> str:
        """SHA-256 (hex) over signals, activity and person, little-endian, row-major."""
        state = hashlib.sha256()
        for array in (self.signals, self.activity, self.person):
            state.update(np.ascontiguousarray(array).view(np.uint8).data)
        return state.hexdigest()


def read_recordings(packed: bytes, sha256: str = RECORDINGS_SHA256) -> Windows:
    """Cut the windows out of the bytes of `HAPT.pkl.gz`.

    Raises `DataError` unless the bytes have this SHA-256 and unpack to at most `RECORDINGS_UNPACKED_BYTES`.
    """
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise DataError(f"HAPT.pkl.gz has SHA-256 {found}, expected {sha256}")
    people = load_allow_listed(_gunzip(packed, RECORDINGS_UNPACKED_BYTES), _PANDAS_CLASSES)
    if not isinstance(people, dict) or not all(isinstance(frames, list) for frames in people.values()):
        raise DataError(f"HAPT.pkl.gz holds a {type(people).__name__}, expected person -> list of recordings")
    cut = [(*_cut_windows(*_columns(frame)), person) for person, frames in sorted(people.items()) for frame in frames]
    return Windows(
        np.concatenate([signals for signals, _, _ in cut]).astype(np.float16),
        np.concatenate([activity for _, activity, _ in cut]),
        np.concatenate([np.full(len(activity), person, np.uint8) for _, activity, person in cut]),
    )


def save_windows(windows: Windows, path: Path) -> None:
    """Write the project's own file: a compressed .npz of the three arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, signals=windows.signals, activity=windows.activity, person=windows.person)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)  # whole or not at all, also after a power cut


def load_windows(path: Path) -> Windows:
    """Read the project's .npz. Raises `DataError` where it is missing, damaged or larger than expected."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > WINDOWS_LIMIT_BYTES:
            raise DataError(f"{path} unpacks to {unpacked} bytes, expected at most {WINDOWS_LIMIT_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return Windows(arrays["signals"], arrays["activity"], arrays["person"])
    except DAMAGE as error:
        raise DataError(f"{path} is not a readable file of activity windows: {error}") from error


def find_windows(folder: Path) -> Path | None:
    """The file of the full data set below the data folder, or None: `hapt/` or the folder itself."""
    names = ("hapt.npz", "HAPT.pkl.gz")
    candidates = [place / name for place in (folder / "hapt", folder / "HAPT", folder) for name in names]
    return next((path for path in candidates if path.is_file()), None)


@lru_cache(maxsize=1)
def open_windows(path: Path | None, sha256: str = WINDOWS_SHA256) -> Windows:
    """The full data set at `path`, checked, or the fixture where `path` is None.

    Kept in memory, so devices forked from one process share one copy. Raises `DataError` where the windows have
    another SHA-256 than `sha256`.
    """
    if path is None:
        return load_windows(FIXTURES / "hapt.npz")
    windows = read_recordings(path.read_bytes()) if path.name.endswith(".pkl.gz") else load_windows(path)
    if windows.digest() != sha256:
        raise DataError(f"{path}: windows have SHA-256 {windows.digest()}, expected {sha256}")
    return windows


def _gunzip(packed: bytes, limit: int) -> bytes:
    try:
        with gzip.open(io.BytesIO(packed)) as stream:
            data = stream.read(limit + 1)
    except DAMAGE as error:
        raise DataError(f"gzip data are damaged: {error}") from error
    if len(data) > limit:
        raise DataError(f"gzip data unpack to more than {limit} bytes")
    return data


def _columns(frame: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """One pickled recording -> (signals float64[6, T], labels int64[T]); label -1 means none, 7 to 12 a transition."""
    try:
        if not isinstance(frame, PickledObject):
            raise TypeError(f"a {type(frame).__name__}, expected a pickled frame")
        manager: PickledObject = frame.state["_data"]
        blocks = manager.state[3]["0.14.1"]["blocks"]
        names = manager.state[3]["0.14.1"]["axes"][0].state["data"].values
        rows: dict[str, NDArray[Any]] = {}
        for block in blocks:
            values: PickledArray = block["values"]
            rows |= dict(zip(names[block["mgr_locs"]], values.values, strict=True))
        return np.stack([rows[name] for name in CHANNELS]), rows["label"]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"a recording has another layout than expected: {error!r}") from error


def _cut_windows(
    signals: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """(float64[6, T], int64[T]) -> (windows float64[M, 6, 128], activity uint8[M])."""
    if labels.size < WINDOW:
        return np.empty((0, len(CHANNELS), WINDOW)), np.empty(0, np.uint8)
    runs = np.lib.stride_tricks.sliding_window_view(labels, WINDOW)[::STEP]  # [M', 128]
    single = (runs == runs[:, :1]).all(axis=1) & (runs[:, 0] >= 1) & (runs[:, 0] <= len(ACTIVITIES))
    cut = np.lib.stride_tricks.sliding_window_view(signals, WINDOW, axis=1)[:, ::STEP]  # [6, M', 128]
    return cut[:, single].transpose(1, 0, 2), (runs[single, 0] - 1).astype(np.uint8)
