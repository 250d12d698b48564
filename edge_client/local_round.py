"""What a device computes in a round: model in, masked training, quantised words out (docs/protocol.md §4.2, §6.4).

No I/O and no clock: `service.py` calls this in a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset
from edge_client.gate import batch_size
from edge_client.pruning import mask_from_positions
from edge_client.receiving import ReceivedModel
from edge_client.settings import GateSettings
from edge_client.tasks import Task, read_state, write_state
from edge_client.torch_device import TorchDevice
from edge_client.training import Masks, Pace, TrainingResult, TrainingSettings, fit
from edge_client.width.narrowing import narrow, narrow_masks, read_narrow, write_narrow
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.digits import shift, zero_point
from fedpruneshare.sharing.field import Words
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import decode_values
from fedpruneshare.sparse.update import SparseUpdate, clamp_weight, per_element_clips, quantise
from fedpruneshare.words import SegmentWords


@dataclass(frozen=True)
class Workplace:
    """What a device trains with: the task, its model, the table and this device's data."""

    task: Task
    model: nn.Module
    table: ParameterTable
    dataset: Dataset
    torch_device: TorchDevice = "cpu"
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass(frozen=True)
class LocalResult:
    """What came of a local round. The update is secret."""

    update: SparseUpdate
    training: TrainingResult
    is_clamped: bool


@dataclass(frozen=True)
class Prepared:
    """A model with what the coordinator published in it, cut to its rung's width, and the masks of its density."""

    work: Workplace
    received: ReceivedModel
    model: nn.Module
    masks: Masks


def prepare(work: Workplace, received: ReceivedModel) -> Prepared:
    """Put the public model of a rung in place. Raises `TaskError` if the model cannot be made as narrow as the rung."""
    positions = np.concatenate(received.positions)
    weights, vectors = received.full_size(work.table)
    if received.kept is None:
        write_state(work.model, work.table, weights, vectors)
        return Prepared(work, received, work.model, mask_from_positions(work.table, positions))
    channels = (work.table, received.groups, received.kept)
    model = narrow(work.model, *channels)
    write_narrow(model, *channels, weights, vectors)
    return Prepared(work, received, model, narrow_masks(*channels, positions))


def train(
    ready: Prepared, view: PlanView, rng: np.random.Generator, steps: int | None = None, pace: Pace | None = None
) -> LocalResult:
    """Train what `prepare` gave, and return what it learnt on the rung's support.

    `steps`: of the plan's local steps only so many (None: all). `pace`: how far it is. Raises `TaskError` if training
    diverges, or was ended.
    """
    work, received = ready.work, ready.received
    result = fit(
        ready.model, work.dataset, ready.masks, _settings(work, view, steps, pace or Pace()), rng, work.task.loss
    )
    if received.kept is None:
        after, vectors = read_state(ready.model, work.table)
    else:
        after, vectors = read_narrow(ready.model, work.table, received.groups, received.kept)
    positions, elements = np.concatenate(received.positions), received.vector_positions
    before = decode_values(np.concatenate(received.codes))
    weight, is_clamped = clamp_weight(result.examples, view.plan.coding.max_weight)
    update = SparseUpdate(
        round_id=view.plan.round_id,
        table=view.plan.table,
        rung=received.rung,
        weight=weight,
        positions=positions,
        values=after[positions] - before,
        vector_positions=elements,
        vectors=vectors[elements] - received.vectors,
    )
    return LocalResult(update, result, is_clamped)


def _settings(work: Workplace, view: PlanView, steps: int | None, pace: Pace) -> TrainingSettings:
    t = view.plan.training
    size = batch_size(len(work.dataset), t, work.gate)
    return TrainingSettings(
        t.local_epochs, size, t.learning_rate, t.momentum, t.weight_decay, work.task.optimiser, t.proximal_mu,
        max_steps=steps, torch_device=work.torch_device, pace=pace,
    )  # fmt: skip


def encode_words(view: PlanView, table: ParameterTable, update: SparseUpdate, rng: np.random.Generator) -> Words:
    """Quantise an update and pack it, segment by segment: the words of the whole upload."""
    if view.is_plain:
        return _plain_words(view, update)
    coding = view.plan.coding
    value_clips = per_element_clips(table.weight_bounds(), update.positions, coding.weight_clips)
    vector_clips = per_element_clips(table.vector_bounds(), update.vector_positions, coding.vector_clips)
    fold = (update.weight, coding.max_weight)
    value_bits, vector_bits = coding.value_bits, coding.vector_bits
    values = shift(quantise(update.values, value_clips, zero_point(value_bits), fold, rng), value_bits)
    vectors = shift(quantise(update.vectors, vector_clips, zero_point(vector_bits), fold, rng), vector_bits)
    parts = _by_segment(view, update.rung, vectors, values)
    words = [view.layout.pack(SegmentWords(update.weight, own_vectors, own)) for own_vectors, own in parts]
    return np.concatenate(words)


def _plain_words(view: PlanView, update: SparseUpdate) -> Words:
    """The numbers as they are, for a round without sharing (docs/protocol.md §5.10)."""
    parts = _by_segment(view, update.rung, update.vectors, update.values)
    return np.concatenate([view.plain_layout.pack(update.weight, vectors, values) for vectors, values in parts])


def _by_segment(
    view: PlanView, rung: int, vectors: NDArray[Any], values: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Vector elements and values of an update, cut where its segments end."""
    segments = view.plan.segments[: rung + 1]
    ends = np.cumsum([[segment.vectors, segment.weights] for segment in segments], axis=0)
    return zip(np.split(vectors, ends[:-1, 0]), np.split(values, ends[:-1, 1]), strict=True)
