"""What bars a new model: sums no clipped updates add up to, and a score that falls too far (docs/protocol.md §4.6)."""

from __future__ import annotations

import numpy as np
import pytest
from builders import plan

from coordinator.averaging import SegmentSum
from coordinator.gate import check_bounds, check_score
from coordinator.settings import AveragingSettings
from fedpruneshare.errors import ProtocolError
from fedpruneshare.sparse.update import quantise

CODING = plan().coding  # 4 bits (Q = 7) and 16 bits, weights up to 512
RNG = np.random.default_rng(4)
CLIPS = np.full(400, 0.1, np.float32)
SMALL = np.full(20, 0.05, np.float32)


def summed(weights: list[int], values: float, vectors: float) -> SegmentSum:
    """Honest devices whose values all have the given size, before clipping."""
    folded = []
    for weight in weights:
        fold = (weight, CODING.max_weight)
        digits = quantise(np.full(400, values, np.float32), CLIPS, 7, fold, RNG)
        longer = quantise(np.full(20, vectors, np.float32), SMALL, 32767, fold, RNG)
        folded.append((digits / 7 * 0.1, longer / 32767 * 0.05))
    return SegmentSum(
        sum(weights), len(weights), *(np.sum(part, axis=0, dtype=np.float64) for part in zip(*folded, strict=True))
    )


@pytest.mark.parametrize("weights", [[512] * 10, [1, 1, 1], [3, 512, 77, 140]])
@pytest.mark.parametrize("size", [0.0, 0.01, 0.1, 1e6, -1e6])
def test_whatever_honest_devices_send_passes(weights: list[int], size: float) -> None:
    check_bounds(0, summed(weights, size, size), (CLIPS, SMALL))


def test_more_than_clipped_updates_add_up_to_is_refused() -> None:
    most = summed([512] * 4, 1.0, 1.0)
    check_bounds(1, most, (CLIPS, SMALL))
    too_large = most.values.copy()
    too_large[[7, 9]] += 0.1 / 7
    with pytest.raises(ProtocolError, match=r"segment 1: 2 sums of the values are larger than 4 .*, at 7 0.4143"):
        check_bounds(1, SegmentSum(most.weight, 4, too_large, most.vectors), (CLIPS, SMALL))
    for vectors in (-most.vectors * 1.01, np.full(20, np.nan)):
        with pytest.raises(ProtocolError, match="vector elements"):
            check_bounds(1, SegmentSum(most.weight, 4, most.values, vectors), (CLIPS, SMALL))


@pytest.mark.parametrize(
    ("metric", "before", "score", "is_refused"),
    [
        ("accuracy", 0.80, 0.71, False),
        ("accuracy", 0.80, 0.69, True),
        ("accuracy", None, 0.01, False),
        ("accuracy", 0.80, 0.99, False),
        ("accuracy", 0.80, float("nan"), True),
        ("mse", 0.50, 0.59, False),
        ("mse", 0.50, 0.61, True),
        ("mse", 0.50, 0.01, False),
    ],
)
def test_a_model_that_scores_too_much_worse_is_refused(
    metric: str, before: float | None, score: float, is_refused: bool
) -> None:
    check_score(score, before, metric, AveragingSettings())  # off by default
    settings = AveragingSettings(max_score_drop=0.1)
    if not is_refused:
        check_score(score, before, metric, settings)
        return
    with pytest.raises(ProtocolError, match=f"the new model's {metric} is .* the old model stays"):
        check_score(score, before, metric, settings)
