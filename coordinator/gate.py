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
from fedpruneshare.messages import Coding
from fedpruneshare.metrics import METRICS
from fedpruneshare.sharing.digits import zero_point


def check_norms(
    index: int, found: SegmentSum, clips: tuple[NDArray[np.float32], NDArray[np.float32]], coding: Coding
) -> None:
    """Raise `ProtocolError` if an opened sum is longer than clipped updates of those weights can make it.

    `clips`: of each value and each vector element. A device of weight w may send at most the clip times w/max_weight,
    and rounds by less than one step. So the Euclidean norm of the sum is at most (Σw/max_weight + N/Q) times that of
    the clips.
    """
    for name, sums, own, bits in (
        ("values", found.values, clips[0], coding.value_bits),
        ("vector elements", found.vectors, clips[1], coding.vector_bits),
    ):
        devices = found.weight / coding.max_weight + found.contributors / zero_point(bits)
        norm, most = float(np.linalg.norm(sums)), devices * float(np.linalg.norm(own.astype(np.float64)))
        if not norm <= most * (1 + 1e-6):
            raise ProtocolError(
                f"segment {index}: the sum of the {name} has norm {norm:.4g}, expected at most {most:.4g}: more than"
                " clipped updates of these weights add up to"
            )


def check_score(score: float, before: float | None, metric: str, settings: AveragingSettings) -> None:
    """Raise `ProtocolError` if a model scores worse than the last applied one by more than the settings allow."""
    if not settings.max_accuracy_drop or before is None:
        return
    known = METRICS[metric]
    drop = before - score if known.is_higher_better else score - before
    if not drop <= settings.max_accuracy_drop:
        raise ProtocolError(
            f"the new model's {metric} is {known.show(score)} after {known.show(before)}, expected a drop of at most"
            f" averaging.max_accuracy_drop = {settings.max_accuracy_drop}; the old model stays"
        )
