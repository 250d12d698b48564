"""Every metric against its definition, worked out another way, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpruneshare.errors import ModelFileError, SettingsError
from fedpruneshare.metrics import METRICS, evaluation_loss, metric

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, 60)
SCORES = RNG.normal(size=(60, 4)).round(1)  # rounded: ties; the fourth class is never there
VALUES = RNG.normal(size=(50, 2)).astype(np.float32)
GUESSES = VALUES + RNG.normal(size=(50, 2))


def test_accuracy_counts_hits() -> None:
    hits = sum(int(np.argmax(row)) == target for row, target in zip(SCORES, CLASSES, strict=True))
    assert metric("accuracy").score(SCORES, CLASSES) == pytest.approx(hits / 60)


def test_macro_f1_is_the_mean_of_each_class() -> None:
    named, scores = SCORES.argmax(1), []
    for c in range(4):
        precision = np.mean(CLASSES[named == c] == c)
        recall = np.mean(named[c == CLASSES] == c) if c in CLASSES else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert metric("macro_f1").score(SCORES, CLASSES) == pytest.approx(np.mean(scores))
    assert (
        metric("macro_f1").score(np.eye(5)[[0, 1]], np.array([0, 1])) == 1.0
    )  # classes that nobody names do not count


def pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean(wins))


def test_auroc_is_the_share_of_pairs_ranked_rightly() -> None:
    odds = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
    areas = [pairs(odds[:, c], c == CLASSES) for c in range(3)]
    assert metric("auroc").score(SCORES, CLASSES) == pytest.approx(np.mean(areas))
    two = np.array([[0.0, 900.0], [0.0, 800.0], [0.0, 850.0], [0.0, 850.0]])  # all 1.0 after a softmax
    assert metric("auroc").score(two, np.array([1, 0, 1, 0])) == pytest.approx(3.5 / 4)


def test_errors_of_values() -> None:
    misses = [float(GUESSES[i, j]) - float(VALUES[i, j]) for i in range(50) for j in range(2)]
    mse = sum(miss * miss for miss in misses) / 100
    assert metric("mse").score(GUESSES, VALUES) == pytest.approx(mse)
    assert metric("rmse").score(GUESSES, VALUES) == pytest.approx(mse**0.5)
    assert metric("mae").score(GUESSES, VALUES) == pytest.approx(sum(map(abs, misses)) / 100)
    assert evaluation_loss(GUESSES, VALUES) == pytest.approx(mse)
    by_column = []
    for guess, truth in zip(GUESSES.T, VALUES.T, strict=True):
        by_column.append(1 - np.sum((guess - truth) ** 2) / np.sum((truth - truth.mean()) ** 2))
    assert metric("r2").score(GUESSES, VALUES) == pytest.approx(np.mean(by_column))


def test_r2_of_a_constant_and_of_the_mean() -> None:
    constant = np.full(4, 2.0, np.float32)
    assert metric("r2").score(constant, constant) == 1.0
    assert metric("r2").score(constant + 1, constant) == 0.0
    assert metric("r2").score(np.full(50, VALUES[:, 0].mean()), VALUES[:, 0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_a_column_is_no_matrix_of_pairs(shape: tuple[int, ...]) -> None:
    targets = VALUES[:, 0]
    expected = float(np.mean((GUESSES[:, 0] - targets) ** 2))
    assert metric("mse").score(GUESSES[:, 0].reshape(shape), targets) == pytest.approx(expected)
    assert metric("mse").score(GUESSES[:, 0], targets.reshape(shape)) == pytest.approx(expected)


@given(st.sampled_from(["mse", "rmse", "mae", "r2"]), st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=9))
def test_nothing_beats_the_truth(name: str, values: list[float]) -> None:
    truth = np.array(values, np.float32)
    one = metric(name)
    right, wrong = one.score(truth, truth), one.score(truth + np.arange(1, len(truth) + 1), truth)
    assert one.best([wrong, right]) == right != wrong
    assert one.best([0.25, 0.75]) == (0.75 if one.is_higher_better else 0.25)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "reason"),
    [
        ("accuracy", np.zeros((3, 2)), np.array([0, 1, 2]), r"\(3, 2\), expected 3 rows of at least 3 classes"),
        ("accuracy", np.zeros(3), np.array([0, 0, 0]), r"\(3,\)"),
        ("mse", np.zeros((3, 2)), np.zeros(3, np.float32), r"\(3, 2\), expected \(3,\)"),
        ("mse", np.zeros((2, 3)), np.zeros((3, 2), np.float32), r"expected \(3, 2\)"),
        ("mae", np.array([1.0, np.nan]), np.zeros(2, np.float32), "not finite"),
        ("auroc", np.zeros((3, 2)), np.array([1, 1, 1]), r"one class \(1\), expected at least two"),
    ],
)
def test_what_cannot_be_compared_is_named(name: str, outputs: np.ndarray, targets: np.ndarray, reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        metric(name).score(outputs, targets)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"metric is 'rsme', expected one of .* did you mean 'rmse'"):
        metric("rsme")


def test_how_a_reader_sees_it() -> None:
    assert (metric("accuracy").show(0.8762), metric("accuracy").show(0.8762, 2)) == ("87.6 %", "87.62 %")
    assert (metric("rmse").show(12.34567), metric("rmse").show(None)) == ("12.35", "")


def test_names_are_those_they_are_found_by() -> None:
    assert [one.name for one in METRICS.values()] == list(METRICS)
