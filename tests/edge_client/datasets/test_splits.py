from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.datasets import splits
from edge_client.settings import SplitSettings
from fedpruneshare.errors import TaskError

LABELS = np.repeat(np.arange(10), 60)


def assert_partition(split, count, devices):
    assert len(split) == devices
    assert all(len(part) for part in split)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(count))


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0.01, 0.1, 0.5, 100.0]))
def test_dirichlet_is_a_partition_without_empty_devices(devices, seed, alpha):
    split = splits.dirichlet(LABELS, devices, alpha, np.random.default_rng(seed))
    assert_partition(split, len(LABELS), devices)


def test_dirichlet_with_as_many_devices_as_examples():
    assert_partition(splits.dirichlet(LABELS, 600, 0.05, np.random.default_rng(0)), 600, 600)


@pytest.mark.parametrize(
    "deal",
    [
        lambda rng: splits.dirichlet(LABELS, 7, 0.5, rng),
        lambda rng: splits.iid(len(LABELS), 7, rng),
        lambda rng: splits.shards(LABELS, 7, 2, rng),
    ],
)
def test_equal_generators_give_equal_splits(deal):
    first, again, other = (deal(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert_partition(first, len(LABELS), 7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_small_alpha_is_more_skewed_than_large():
    def largest_share(alpha):
        split = splits.dirichlet(LABELS, 10, alpha, np.random.default_rng(0))
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in split])

    assert largest_share(0.1) > largest_share(1.0) > largest_share(100.0)


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(part) for part in splits.iid(100, 7, np.random.default_rng(0))]
    assert max(sizes) - min(sizes) <= 1


def test_shards_hold_few_classes():
    split = splits.shards(LABELS, 10, 2, np.random.default_rng(0))
    assert max(len(np.unique(LABELS[part])) for part in split) <= 4


def test_groups_stay_whole():
    groups = np.array([3, 3, 7, 9, 9, 9, 7, 1])
    split = splits.by_group(groups, 3)
    assert [sorted(set(groups[part].tolist())) for part in split] == [[1, 9], [3], [7]]
    assert_partition(split, len(groups), 3)


@pytest.mark.parametrize(
    "deal",
    [
        lambda rng: splits.by_group(np.array([1, 1, 2]), 3),
        lambda rng: splits.iid(3, 4, rng),
        lambda rng: splits.iid(3, 0, rng),
        lambda rng: splits.dirichlet(np.array([0, 1]), 3, 0.5, rng),
        lambda rng: splits.shards(np.array([0, 1, 1]), 2, 2, rng),
    ],
)
def test_refuses_more_devices_than_data(deal):
    with pytest.raises(TaskError):
        deal(np.random.default_rng(0))


@pytest.mark.parametrize("split", [lambda v, r: splits.dirichlet(v, 2, 0.5, r), lambda v, r: splits.shards(v, 2, 1, r)])
def test_values_have_no_classes_to_split_by(split):
    with pytest.raises(TaskError, match="labels are float32, expected class numbers"):
        split(np.ones(8, np.float32), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("how", "same"),
    [
        (SplitSettings("iid"), lambda rng: splits.iid(len(LABELS), 7, rng)),
        (SplitSettings("dirichlet", alpha=0.1), lambda rng: splits.dirichlet(LABELS, 7, 0.1, rng)),
        (SplitSettings("shards", shards=3), lambda rng: splits.shards(LABELS, 7, 3, rng)),
    ],
)
def test_settings_choose_the_way_to_deal(how, same):
    dealt = splits.deal(LABELS, 7, how, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(dealt, same(np.random.default_rng(3)), strict=True))


@pytest.mark.parametrize("kind", ["", "person"])
def test_what_labels_alone_cannot_be_dealt_by_is_refused(kind):
    with pytest.raises(TaskError, match=f"task.split is '{kind}', expected dirichlet, iid or shards"):
        splits.deal(LABELS, 7, SplitSettings(kind), np.random.default_rng(0))


def test_equal_seeds_give_equal_splits_in_every_process():
    script = (
        "import hashlib, numpy as np; from edge_client.datasets import splits;"
        "from edge_client.settings import SplitSettings; labels = np.repeat(np.arange(10), 60)\n"
        "for kind in ('iid', 'dirichlet', 'shards'):\n"
        "    parts = splits.deal(labels, 7, SplitSettings(kind), np.random.default_rng(3))\n"
        "    print(hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest())"
    )
    outputs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0].split())) == 3
