"""From sums to the next model: open, decode, average, evaluate (docs/protocol.md §4.6). No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.ledger import RoundLedger
from coordinator.planning import ModelState, PublishedModel
from coordinator.settings import CoordinatorSettings
from coordinator.workbench import Workbench


@dataclass(frozen=True)
class Round:
    """A frozen round with the model it was planned on."""

    ledger: RoundLedger
    state: ModelState
    published: PublishedModel


@dataclass(frozen=True)
class Opening:
    """What came of a round. `is_verified`: more than k sums agreed."""

    model: ModelState = field(repr=False)
    aggregators: tuple[str, ...]
    is_verified: bool
    accuracy: float
    loss: float | None


def open_and_apply(current: Round, bench: Workbench, settings: CoordinatorSettings) -> Opening:
    """Open the sums of a round and make the next model.

    Raises `PeerError`: `InconsistentSharesError` if more than k sums disagree, others for sums that do not decode or
    a model that is not finite.
    """
    view, sums = current.ledger.view, current.ledger.sums()
    words = view.scheme.open(sums)
    opened = open_segments_words(current, bench, words)
    model = _next_model(current, bench, settings, opened)
    evaluation = bench.score(model)
    names = {x: name for name, x in view.plan.points.items()}
    return Opening(
        model=model,
        aggregators=tuple(sorted(names[x] for x in sums)),
        is_verified=len(sums) > view.plan.sharing.k,
        accuracy=evaluation.metric,
        loss=evaluation.loss,
    )
