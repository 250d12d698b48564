"""What a device computes in a round: model in, masked training, quantised words out (docs/protocol.md §4.2, §6.4).

No I/O and no clock: `service.py` calls this in a worker thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from torch import nn

from edge_client.datasets import Dataset
from edge_client.outbox import Upload
from edge_client.pruning import mask_from_positions
from edge_client.receiving import ReceivedModel
from edge_client.tasks import Task, read_state, write_state
from edge_client.training import TrainingResult, TrainingSettings, fit
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.digits import shift, zero_point
from fedpruneshare.sharing.dispersal import KEY_BYTES
from fedpruneshare.sharing.field import Words
from fedpruneshare.sharing.prg import Prg, Seed, fill_elements
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


@dataclass(frozen=True)
class LocalResult:
    """What came of a local round. The update is secret."""

    update: SparseUpdate
    training: TrainingResult
    is_clamped: bool


def train(work: Workplace, view: PlanView, received: ReceivedModel, rng: np.random.Generator) -> LocalResult:
    """Load the public model, train under its support, return the difference on the support.

    Raises `TaskError` if training diverges.
    """
    table, plan = work.table, view.plan
    positions = np.concatenate(received.positions)
    before = np.zeros(table.weight_count, dtype=np.float32)
    before[positions] = decode_values(np.concatenate(received.coded))
    write_state(work.model, table, before, received.vectors)
    masks = mask_from_positions(table, positions)
    result = fit(work.model, work.dataset, masks, _settings(work.task, view), rng, work.task.loss)
    after, vectors = read_state(work.model, table)
    weight, is_clamped = clamp_weight(result.examples, plan.coding.max_weight)
    update = SparseUpdate(
        round_id=plan.round_id,
        table=plan.table,
        rung=len(received.positions) - 1,
        weight=weight,
        positions=positions,
        values=after[positions] - before[positions],
        vectors=vectors - received.vectors,
    )
    return LocalResult(update, result, is_clamped)


def _settings(task: Task, view: PlanView) -> TrainingSettings:
    t = view.plan.training
    return TrainingSettings(
        t.local_epochs, t.batch_size, t.learning_rate, t.momentum, t.weight_decay, task.optimiser, t.proximal_mu
    )


def encode_words(view: PlanView, table: ParameterTable, update: SparseUpdate, rng: np.random.Generator) -> Words:
    """Quantise an update and pack it, segment by segment: the words of the whole upload."""
    coding = view.plan.coding
    value_clips = per_element_clips(table.weight_bounds(), update.positions, coding.weight_clips)
    everything = np.arange(table.vector_count, dtype=np.int64)
    vector_clips = per_element_clips(table.vector_bounds(), everything, coding.vector_clips)
    fold = (update.weight, coding.max_weight)
    value_bits, vector_bits = coding.value_bits, coding.vector_bits
    values = shift(quantise(update.values, value_clips, zero_point(value_bits), fold, rng), value_bits)
    vectors = shift(quantise(update.vectors, vector_clips, zero_point(vector_bits), fold, rng), vector_bits)
    words, start = [], 0
    for segment in view.plan.segments[: update.rung + 1]:
        end = start + segment.weights
        own_vectors = vectors[: segment.vectors]
        words.append(view.layout.pack(SegmentWords(update.weight, own_vectors, values[start:end])))
        start = end
    return np.concatenate(words)


def new_upload(view: PlanView, update: SparseUpdate, words: Words, prg: Prg) -> Upload:
    """Give an update its upload id and sharing secrets, from the operating system's generator only."""
    is_each = view.is_each_revealed
    return Upload(
        plan=view.digest,
        round_id=update.round_id,
        upload_id=os.urandom(16),
        rung=update.rung,
        weight=update.weight,
        prg=prg,
        seeds={} if is_each else {x: Seed.fresh().reveal() for x in range(1, view.scheme.t + 1)},
        masks=_masks(view, prg),
        key=os.urandom(KEY_BYTES) if is_each else b"",
        words=words,
    )


def _masks(view: PlanView, prg: Prg) -> Words:
    """Uniform words of the mask elements, as many as those carry (docs/protocol.md §5.7)."""
    masks = np.empty(view.checks * view.scheme.secrets, dtype=view.field.word_type)
    return fill_elements(prg, Seed.fresh(), b"dealer masks", masks, view.field)
