"""From sums to the next model: open, decode, average, evaluate (docs/protocol.md §4.6). No I/O."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.answers import Opened, open_answers
from coordinator.averaging import SegmentSum, apply_update, server_step
from coordinator.gate import check_bounds, check_score
from coordinator.ledger import RoundLedger
from coordinator.plain_updates import open_plain
from coordinator.planning import ModelState, PublishedModel
from coordinator.settings import CoordinatorSettings
from coordinator.workbench import Workbench
from fedpruneshare.floors import contributor_counts
from fedpruneshare.sharing.digits import Digits, unshift, zero_point
from fedpruneshare.sparse.support import code_values, decode_values
from fedpruneshare.sparse.update import ClipRule, dequantise_sum, per_element_clips


@dataclass(frozen=True)
class Round:
    """A frozen round with the model it was planned on.

    `seed`: that of its checksum, if it has one. `score_before`: what the last applied model scored, if any.
    """

    ledger: RoundLedger
    state: ModelState
    published: PublishedModel
    seed: bytes | None = field(default=None, repr=False)
    score_before: float | None = None


@dataclass(frozen=True)
class Opening:
    """What came of a round: the next model, how good it is, and the sum it was made from."""

    model: ModelState = field(repr=False)
    opened: Opened
    accuracy: float
    loss: float | None


def open_and_apply(current: Round, bench: Workbench, settings: CoordinatorSettings) -> Opening:
    """Open the answers of a round and make the next model.

    Raises `PeerError`: `InconsistentSharesError` if more than k sums disagree and it cannot be told which are right,
    others for a wrong checksum, answers that do not decode, and a model that no honest devices can have led to, is not
    finite, or scores too much worse than the last. The old model then stays.
    """
    ledger = current.ledger
    if ledger.view.is_plain:
        opened = open_plain(ledger.view, ledger.frozen, ledger.answers())
    else:
        opened = open_answers(ledger.view, ledger.frozen, ledger.answers(), current.seed)
    sums = decode_sums(current, bench, opened)
    model = next_model(current, bench, settings, sums)
    evaluation = bench.score(model)
    check_score(evaluation.metric, current.score_before, bench.bundle.manifest.metric, settings.averaging)
    return Opening(model, opened, evaluation.metric, evaluation.loss)


def decode_sums(current: Round, bench: Workbench, opened: Opened) -> dict[int, SegmentSum]:
    """Opened words -> Σw and folded sums by segment. Raises `ProtocolError` for sums beyond their clips."""
    view, coding = current.ledger.view, current.ledger.view.plan.coding
    counts = contributor_counts([c.rung for c in opened.contributors], view.rungs)
    if view.is_plain:
        folded = 1 / coding.max_weight
        return {
            index: SegmentSum(part.weight, counts[index], part.values * folded, part.vectors * folded)
            for index, part in opened.plain.items()
        }
    vector_bounds = bench.table.vector_bounds()
    sums = {}
    for index, words in opened.words.items():
        segment = view.plan.segments[index]
        part = view.layout.unpack(words, segment.vectors, segment.weights)
        positions = current.published.support.segments[index]
        elements = current.published.support.vectors[index]
        clips = per_element_clips(bench.table.weight_bounds(), positions, coding.weight_clips)
        vector_clips = per_element_clips(vector_bounds, elements, coding.vector_clips)
        count = counts[index]
        sums[index] = SegmentSum(
            weight=part.weight,
            contributors=count,
            values=_folded_sums(part.values, clips, coding.value_bits, count),
            vectors=_folded_sums(part.vectors, vector_clips, coding.vector_bits, count),
        )
        check_bounds(index, sums[index], (clips, vector_clips))
    return sums


def _folded_sums(digits: Digits, clips: NDArray[np.float32], bits: int, contributors: int) -> NDArray[np.float64]:
    return dequantise_sum(unshift(digits, bits, contributors), clips, zero_point(bits))


def next_model(
    current: Round, bench: Workbench, settings: CoordinatorSettings, opened: dict[int, SegmentSum]
) -> ModelState:
    """Average, code and set the next clips."""
    state, max_weight = current.state, current.ledger.view.plan.coding.max_weight
    published = current.published
    before, support = (decode_values(published.coded), state.vectors), published.support
    stepped, moments = server_step(opened, support, bench.table, max_weight, state.moments, settings.averaging)
    weights, vectors = apply_update(before, support, stepped, bench.table, max_weight)
    rule, coding = ClipRule(settings.coding.clip_factor), current.ledger.view.plan.coding
    values = {index: (part.values, part.contributors) for index, part in opened.items()}
    vectors_of = {index: (part.vectors, part.contributors) for index, part in opened.items()}
    return ModelState(
        coded=code_values(weights),
        vectors=vectors,
        weight_clips=_next_clips(coding.weight_clips, bench.table.weight_bounds(), support.segments, values, rule),
        vector_clips=_next_clips(coding.vector_clips, bench.table.vector_bounds(), support.vectors, vectors_of, rule),
        applied=state.applied + 1,
        moments=moments,
        last_rungs=support.rung_of(),
        last_channels=published.channels,
    )


def _next_clips(
    clips: tuple[float, ...],
    bounds: NDArray[np.int64],
    places: tuple[NDArray[np.int64], ...],
    opened: dict[int, tuple[NDArray[np.float64], int]],
    rule: ClipRule,
) -> tuple[float, ...]:
    """By tensor, over all its opened elements; N is the number of contributors most of them had.

    `places`: elements of each segment; `opened`: by segment its folded sums and the number of contributors.
    """
    if not opened:
        return clips
    elements = np.concatenate([places[index] for index in opened])
    means = np.concatenate([sums / count for sums, count in opened.values()])
    counts = np.concatenate([np.full(sums.size, count) for sums, count in opened.values()])
    tensors = np.searchsorted(bounds, elements, side="right") - 1
    order = np.argsort(tensors, kind="stable")
    starts = np.searchsorted(tensors[order], np.arange(len(clips) + 1))
    own = [order[start:end] for start, end in itertools.pairwise(starts)]
    return tuple(
        rule.next_clip(clip, means[found], int(np.median(counts[found])) if found.size else 1)
        for clip, found in zip(clips, own, strict=True)
    )
