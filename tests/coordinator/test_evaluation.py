"""Scores are those of the model, and a model that does not run is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import arrays, forward, template

from coordinator.evaluation import Evaluator
from fedpruneshare.errors import ModelFileError
from fedpruneshare.sparse.contained_model import ContainedModel

RNG = np.random.default_rng(4)
INPUTS = RNG.normal(size=(700, 8)).astype(np.float32)
TARGETS = RNG.integers(0, 4, 700)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_accuracy_and_loss(zeros: float) -> None:
    named = arrays(zeros=zeros)
    logits = forward(named, INPUTS).astype(np.float64)
    found = Evaluator(template(), INPUTS, TARGETS).score(named)
    assert found.metric == pytest.approx((logits.argmax(1) == TARGETS).mean())
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found.loss == pytest.approx(-np.log(odds[np.arange(700), TARGETS]).mean(), rel=1e-4)


def test_a_model_that_does_not_run_is_named() -> None:
    evaluator = Evaluator(template(), INPUTS, TARGETS)
    named = arrays()
    with pytest.raises(ModelFileError, match="does not run"):
        evaluator.score({**named, "first.weight": named["first.weight"][:5]})
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        evaluator.score_file(b"no model")


def test_a_contained_model_scores_the_same() -> None:
    named = arrays(zeros=0.9)
    with ContainedModel() as contained:
        evaluator = Evaluator(template(), INPUTS, TARGETS, "accuracy", contained)
        assert evaluator.score(named) == Evaluator(template(), INPUTS, TARGETS).score(named)
        with pytest.raises(ModelFileError, match="does not run"):
            evaluator.score({**named, "first.weight": named["first.weight"][:5]})
        assert evaluator.score(named) == Evaluator(template(), INPUTS, TARGETS).score(named)


def test_a_process_that_is_killed_in_mid_evaluation_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory is short: the round is not lost by it."""
    named, run, batches = arrays(zeros=0.9), ContainedModel.run, []

    def struck(contained: ContainedModel, inputs: np.ndarray) -> np.ndarray:
        batches.append(len(inputs))
        if len(batches) == 2:
            assert contained._child is not None
            contained._child.kill()
        return run(contained, inputs)

    monkeypatch.setattr(ContainedModel, "run", struck)
    with ContainedModel() as contained:
        found = Evaluator(template(), INPUTS, TARGETS, "accuracy", contained).score(named)
    assert batches == [256, 256, 188]
    assert found == Evaluator(template(), INPUTS, TARGETS).score(named)


def test_output_that_is_not_finite_is_named() -> None:
    named = arrays()
    named["norm.running_var"] = np.zeros_like(named["norm.running_var"])
    with pytest.raises(ModelFileError, match="not finite"):
        Evaluator(template(), INPUTS, TARGETS).score(named)


@pytest.mark.parametrize("metric", ["mse", "rmse", "mae", "r2"])
def test_values_are_compared_with_values(metric: str) -> None:
    named, wanted = arrays(), RNG.normal(size=(700, 4)).astype(np.float32)
    found = Evaluator(template(), INPUTS, wanted, metric).score(named)
    missed = forward(named, INPUTS).astype(np.float64) - wanted
    spread = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=0)
    expected = {
        "mse": np.mean(missed**2),
        "rmse": np.mean(missed**2) ** 0.5,
        "mae": np.mean(np.abs(missed)),
        "r2": np.mean(1 - (missed**2).sum(axis=0) / spread),
    }
    assert found.metric == pytest.approx(expected[metric], rel=1e-5)
    assert found.loss == pytest.approx(expected["mse"], rel=1e-5)


def test_targets_of_the_other_kind_are_named() -> None:
    with pytest.raises(ModelFileError, match="int64, but metric 'mae' is one of values"):
        Evaluator(template(), INPUTS, TARGETS, "mae")
    with pytest.raises(ModelFileError, match="float32, but metric 'accuracy' is one of classes"):
        Evaluator(template(), INPUTS, TARGETS.astype(np.float32))
    with pytest.raises(ModelFileError, match=r"\(700, 4\), expected \(700,\) as the targets"):
        Evaluator(template(), INPUTS, TARGETS.astype(np.float32), "mae").score(arrays())


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ModelFileError, match="metric 'f1'"):
        Evaluator(template(), INPUTS, TARGETS, "f1")


@pytest.mark.parametrize("targets", [0, 4, 6])
def test_a_test_set_without_pairs_is_named(targets: int) -> None:
    with pytest.raises(ModelFileError, match=f"and {targets} targets"):
        Evaluator(template(), INPUTS[: 5 if targets else 0], np.zeros(targets, dtype=np.int64))


def test_scores_of_too_few_classes_are_named() -> None:
    with pytest.raises(ModelFileError, match=r"\(5, 4\), expected 5 rows of at least 10 classes"):
        Evaluator(template(), INPUTS[:5], np.full(5, 9)).score(arrays())
