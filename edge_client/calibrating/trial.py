"""Training steps for measurement: the device's own model and data at a width and a density, nothing kept of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.local_round import Workplace
from edge_client.pruning import mask_from_positions
from edge_client.tasks import read_state
from edge_client.training import Masks, TrainingSettings, fit
from edge_client.width.groups import find_groups
from edge_client.width.narrowing import narrow, narrow_masks
from fedpruneshare.sparse.channels import Groups, Kept, coordinates, nested_channels, rank_channels

#: Small enough that no model diverges, whatever its task.
_LEARNING_RATE = 1e-6


@dataclass
class Trial:
    """A model at `width` (as the plan's channels would be cut) with masks of `density`; batches of this device's data.

    The workplace's own model is left as it is. Raises `TaskError` for a model that cannot be made so narrow.
    """

    work: Workplace
    groups: Groups
    width: float
    batch_size: int
    density: float = 1.0
    _model: nn.Module = field(init=False, repr=False)
    _masks: Masks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        work, table = self.work, self.work.table
        weights, _ = read_state(work.model, table)
        kept = _kept(self, np.abs(weights)) if self.width < 1 else None
        inside = coordinates(table, self.groups, kept)[0] if kept else np.ones(table.weight_count, np.bool_)
        positions = np.flatnonzero(inside & (np.arange(table.weight_count) % 100 < 100 * self.density))
        if kept is None:
            # A model of its own, as narrow ones are, so that trials do not train one another's.
            self._model = work.task.build_model()
            self._masks = mask_from_positions(table, positions)
        else:
            self._model = narrow(work.model, table, self.groups, kept)
            self._masks = narrow_masks(table, self.groups, kept, positions)

    def train(self, steps: int) -> float:
        """Train so many steps; seconds of one, the mean. Raises `TaskError`."""
        task, count = self.work.task, len(self.work.dataset)
        epochs = -(-steps * self.batch_size // count) + 1
        settings = TrainingSettings(epochs, self.batch_size, _LEARNING_RATE, optimiser=task.optimiser, max_steps=steps)
        result = fit(self._model, self.work.dataset, self._masks, settings, np.random.default_rng(0), task.loss)
        return result.seconds / result.steps


def groups_of(work: Workplace) -> Groups:
    """The channel groups of the device's own model, as `task export` finds them. Raises `TaskError` with the reason."""
    return find_groups(work.model, work.table, torch.from_numpy(work.dataset.inputs[:4]))


def _kept(trial: Trial, magnitudes: NDArray[np.float32]) -> Kept:
    scores = rank_channels(magnitudes, trial.work.table, trial.groups)
    return nested_channels(scores, trial.groups, [trial.width])[0]
