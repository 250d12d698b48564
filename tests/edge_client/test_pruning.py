from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_client.pruning import apply, mask_from_positions
from edge_client.tasks.model import parameter_table, read_state
from fedpruneshare.errors import SupportMismatchError, TaskError


def net():
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, 4))  # 12 + 24 weights


@given(st.sets(st.integers(0, 35)))
def test_masks_keep_exactly_the_positions(kept):
    model = net()
    table = parameter_table(model)
    weights, vectors = read_state(model, table)
    apply(model, table, mask_from_positions(table, np.array(sorted(kept), dtype=np.int64)))
    pruned, untouched = read_state(model, table)
    expected = np.where(np.isin(np.arange(36), list(kept)), weights, np.float32(0))
    np.testing.assert_array_equal(pruned, expected)
    np.testing.assert_array_equal(untouched, vectors)


def test_order_of_positions_does_not_matter():
    table = parameter_table(net())
    first, second = (mask_from_positions(table, np.array(p)) for p in ([3, 14, 1], [1, 3, 14]))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tuple(mask.shape) for mask in first] == [(3, 2, 2), (4, 6)]


@pytest.mark.parametrize("position", [-1, 36])
def test_positions_outside_are_refused(position):
    with pytest.raises(SupportMismatchError, match="expected 0 to 35"):
        mask_from_positions(parameter_table(net()), np.array([0, position]))


def test_too_few_masks_are_refused():
    model = net()
    table = parameter_table(model)
    with pytest.raises(TaskError, match="found 1 masks, expected 2"):
        apply(model, table, mask_from_positions(table, np.array([0]))[:1])
