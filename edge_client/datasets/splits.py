"""Deal examples to devices: by person, evenly, by skewed class shares, or by shards.

Every function returns one int64 index array per device; together they hold each example once. All devices of a fleet
must pass *equal* generators, or their parts would overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.settings import SplitSettings
from fedpruneshare.errors import TaskError

Split = list[NDArray[np.int64]]


def deal(labels: NDArray[np.integer], devices: int, split: SplitSettings, rng: np.random.Generator) -> Split:
    """Examples of the classes `labels` dealt as `split` says. Raises `TaskError` where they cannot be."""
    if split.kind == "dirichlet":
        return dirichlet(labels, devices, split.alpha, rng)
    if split.kind == "shards":
        return shards(labels, devices, split.shards, rng)
    if split.kind == "iid":
        return iid(len(labels), devices, rng)
    expected = "expected dirichlet, iid or shards: nothing says whose the examples are"
    raise TaskError(f"task.split is {split.kind!r}, {expected}")


def by_group(groups: NDArray[np.integer], devices: int) -> Split:
    """Whole groups (people, machines): group i in ascending order goes to device i mod `devices`.

    Raises `TaskError` where there are fewer groups than devices: a group is never cut in two.
    """
    names = np.unique(groups)
    if devices > len(names):
        raise TaskError(f"{devices} devices asked for, expected at most {len(names)}: one group of data each")
    owner = np.arange(len(names)) % devices
    return [np.flatnonzero(np.isin(groups, names[owner == device])) for device in range(devices)]


def iid(count: int, devices: int, rng: np.random.Generator) -> Split:
    """`count` examples shuffled and dealt evenly (sizes differ by at most one)."""
    _require(count, devices)
    return [np.sort(part) for part in np.array_split(rng.permutation(count), devices)]


def dirichlet(labels: NDArray[np.integer], devices: int, alpha: float, rng: np.random.Generator) -> Split:
    """Each class is cut by shares drawn from Dirichlet(alpha); small alpha means skewed devices.

    No device stays empty: one without examples gets one from the largest.
    Source: Hsu, Qi, Brown (2019), arXiv:1909.06335.
    """
    _require_classes(labels)
    _require(len(labels), devices)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1]
        for part, cut in zip(parts, np.split(members, (shares * len(members)).astype(np.int64)), strict=True):
            part.append(cut)
    split = [np.sort(np.concatenate(part)) for part in parts]
    for device in range(devices):
        while not len(split[device]):
            largest = max(range(devices), key=lambda i: len(split[i]))
            split[device], split[largest] = split[largest][:1], split[largest][1:]
    return split


def shards(labels: NDArray[np.integer], devices: int, per_device: int, rng: np.random.Generator) -> Split:
    """Sorted by class, cut into `devices * per_device` shards, `per_device` of them to each device at random.

    Source: McMahan et al. (2017), arXiv:1602.05629, section 3.
    """
    _require_classes(labels)
    _require(len(labels), devices * per_device)
    pieces = np.array_split(np.argsort(labels, kind="stable"), devices * per_device)
    dealt = rng.permutation(len(pieces)).reshape(devices, per_device)
    return [np.sort(np.concatenate([pieces[i] for i in row])) for row in dealt]


def _require_classes(labels: NDArray[np.integer]) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise TaskError(f"labels are {labels.dtype}, expected class numbers; values can be split by group or evenly")


def _require(count: int, parts: int) -> None:
    if parts < 1 or count < parts:
        raise TaskError(f"{count} examples cannot be dealt into {parts} parts, expected at least one part and example")
