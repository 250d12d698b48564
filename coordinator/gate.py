"""What a new model must satisfy before it takes the place of the old one (docs/protocol.md §4.6). No I/O.

That it is finite, `coordinator.averaging` sees to. None of this proves that updates were honest: it bounds what
dishonest ones can do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coordinator.averaging import SegmentSum
from coordinator.settings import AveragingSettings
from fedpruneshare.errors import ProtocolError
from fedpruneshare.metrics import METRICS


def check_bounds(index: int, found: SegmentSum, clips: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Raise `ProtocolError` if an opened sum is larger somewhere than N clipped updates can make it.

    `clips`: of each value and each vector element, as it was quantised, the weight folded in: no device may send more.
    So neither the sum nor its norm exceeds N times that of the clips. Padding and powers of two as radix leave room for
    more.
    """
    for name, sums, own in (("values", found.values, clips[0]), ("vector elements", found.vectors, clips[1])):
        over = ~(np.abs(sums) <= found.contributors * own.astype(np.float64) * (1 + 1e-6))
        if over.any():
            place, most = int(np.argmax(over)), found.contributors * own
            raise ProtocolError(
                f"segment {index}: {np.count_nonzero(over)} sums of the {name} are larger than"
                f" {found.contributors} clipped updates add up to, at {place} {sums[place]:.4g},"
                f" expected at most {most[place]:.4g}"
            )


def check_score(score: float, before: float | None, metric: str, settings: AveragingSettings) -> None:
    """Raise `ProtocolError` if a model scores worse than the last applied one by more than the settings allow."""
    if not settings.max_score_drop or before is None:
        return
    known = METRICS[metric]
    drop = before - score if known.is_higher_better else score - before
    if not drop <= settings.max_score_drop:
        raise ProtocolError(
            f"the new model's {metric} is {known.show(score)} after {known.show(before)}, expected a drop of at most"
            f" averaging.max_score_drop = {settings.max_score_drop}; the old model stays"
        )
