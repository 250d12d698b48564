"""Masks on a torch model. Which positions are kept is decided elsewhere: the support is public (docs/protocol.md §6.2).

Masks live outside the module: masks attached to it would double the state dict and the exported file.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpruneshare.errors import SupportMismatchError, TaskError
from fedpruneshare.sparse.parameters import ParameterTable


def mask_from_positions(table: ParameterTable, positions: NDArray[np.int64]) -> list[torch.Tensor]:
    """Kept flat coordinates int64[m] -> one 0/1 float32 tensor per prunable weight, in the table's order.

    Raises `SupportMismatchError` where a position lies outside 0..d-1.
    """
    count = table.weight_count
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < count:
        found = f"{int(positions.min())} to {int(positions.max())}"
        raise SupportMismatchError(f"support reaches from {found}, expected 0 to {count - 1}")
    flat = np.zeros(count, dtype=np.float32)
    flat[positions] = 1.0
    bounds = table.weight_bounds()
    return [
        torch.from_numpy(flat[bounds[i] : bounds[i + 1]].reshape(weight.shape))
        for i, weight in enumerate(table.weights())
    ]


def apply(model: nn.Module, table: ParameterTable, masks: list[torch.Tensor]) -> None:
    """Set every pruned weight to exactly zero, in place."""
    weights = table.weights()
    if len(masks) != len(weights):
        raise TaskError(f"found {len(masks)} masks, expected {len(weights)}: one per prunable weight")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            parameters[weight.name].mul_(mask)
