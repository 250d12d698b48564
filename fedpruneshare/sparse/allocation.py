"""How many coordinates each tensor keeps: by one threshold over all of them, or by its Erdős–Rényi kernel quota.

ERK (Evci et al., "Rigging the lottery", ICML 2020, §3) gives tensor t a density in proportion to the sum of its
dimensions over their product, so small layers are thinned less than large ones. Numbers only: every party that knows
the table computes the same quotas (docs/protocol.md §6.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_HALVINGS = 200


def erk_quotas(total: int, dimension_sums: Counts, lowest: Counts, sizes: Counts) -> Counts:
    """Coordinates to keep of each tensor, int64[T], `total` of them: ε·(sum of its dimensions) within its bounds.

    `lowest`: what a smaller rung keeps already; `sizes`: all there are. `total` is brought into what these bounds
    allow. What rounding down leaves over goes to the tensors that lost most, to the first of equal ones.
    """
    total = int(min(max(total, lowest.sum()), sizes.sum()))
    exact = _bounded(total, dimension_sums.astype(np.float64), lowest, sizes)
    quotas = np.clip(np.floor(exact + 1e-9).astype(np.int64), lowest, sizes)
    while (left := total - int(quotas.sum())) != 0:
        is_open = quotas < sizes if left > 0 else quotas > lowest
        lost = np.where(is_open, (exact - quotas) * np.sign(left), -np.inf)
        chosen = np.argsort(-lost, kind="stable")[: min(abs(left), int(is_open.sum()))]
        quotas[chosen] += np.sign(left)
    return quotas


def _bounded(total: int, weights: NDArray[np.float64], lowest: Counts, sizes: Counts) -> NDArray[np.float64]:
    """clip(ε·weights, lowest, sizes) with the ε that makes them add up to `total`, found by halving."""
    low, high = 0.0, float((sizes / weights).max()) if weights.size else 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.clip(middle * weights, lowest, sizes).sum() < total:
            low = middle
        else:
            high = middle
    return np.clip(high * weights, lowest, sizes)
