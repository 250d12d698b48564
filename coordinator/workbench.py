"""What the coordinator works on: task bundle, evaluator, and the folder of results (docs/protocol.md §6.6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluation import Evaluation, Evaluator
from coordinator.planning import ModelState, TaskFacts
from coordinator.settings import CodingSettings
from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import ModelFileError, SettingsError
from fedpruneshare.sparse.contained_model import ContainedModel
from fedpruneshare.sparse.onnx_codec import build_model
from fedpruneshare.sparse.parameters import ParameterTable
from fedpruneshare.sparse.support import code_values, decode_values
from fedpruneshare.storage import write_atomically


@dataclass(frozen=True)
class Workbench:
    """A task bundle with its evaluator, and the folder of `model.onnx`. No torch is needed anywhere here."""

    bundle: Bundle
    evaluator: Evaluator
    folder: Path
    coding: CodingSettings

    @classmethod
    def open(cls, bundle_path: Path, folder: Path, coding: CodingSettings) -> Workbench:
        """Read a bundle. Raises `SettingsError` for a file that is none: an operator has put it there, or has not."""
        try:
            bundle = Bundle.open(bundle_path)
        except ModelFileError as error:
            raise SettingsError(
                f"{error}; expected what `fedpruneshare task export TASK --out {bundle_path}` writes"
            ) from None
        metric, contained = bundle.manifest.metric, ContainedModel()
        evaluator = Evaluator(bundle.template, bundle.test_inputs, bundle.test_targets, metric, contained)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(bundle, evaluator, folder, coding)

    @property
    def table(self) -> ParameterTable:
        """The parameter table of the model."""
        return self.bundle.manifest.table

    @property
    def facts(self) -> TaskFacts:
        """What plans say of the task."""
        return TaskFacts(self.bundle.manifest.task, self.bundle.digest, self.table, self.bundle.manifest.channel_groups)

    def first_model(self) -> ModelState:
        """The bundle's initial weights, coded as they will be published."""
        clip = self.coding.clip_initial
        return ModelState(
            coded=code_values(self.bundle.weights),
            vectors=self.bundle.vectors,
            weight_clips=(clip,) * len(self.table.weights()),
            vector_clips=(clip,) * len(self.table.vectors()),
            applied=0,
        )

    def arrays(self, model: ModelState) -> dict[str, NDArray[np.float32]]:
        """The named arrays of a model."""
        return self.table.unflatten(decode_values(model.coded), model.vectors)

    def score(self, model: ModelState) -> Evaluation:
        """Evaluate a model on the bundle's test arrays."""
        return self.evaluator.score(self.arrays(model))

    def render(self, model: ModelState) -> None:
        """Write `model.onnx`, whole or not at all."""
        write_atomically(self.folder / "model.onnx", build_model(self.bundle.template, self.arrays(model)))
