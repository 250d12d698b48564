"""Bring your own task: how worn is a milling tool, told from vibration. Run with `--task examples/tool_wear.py`.

The signals are synthetic: a plain formula below, not measurements, so accuracies say nothing about real tools. What
the example shows is the whole of what a task needs: a model, each device's data, a test set.

Each device stands for one machine with its own spindle speed, pick-up gain and habit of wear, so devices differ as
machines do; the test machines are none of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset

name = "tool-wear"

STATES = ("sharp", "worn", "chipped")
RATE_HZ, SAMPLES, TEETH = 5000, 256, 4
WINDOWS_PER_MACHINE, TEST_MACHINES, TEST_SEED = 200, 12, 1


def build_model() -> nn.Module:
    """float32[B, 2, 256] (two axes of acceleration) -> one score per state, float32[B, 3]."""
    return nn.Sequential(
        nn.Conv1d(2, 16, 9, stride=2, padding=4),  # [B, 16, 128]
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 9, stride=2, padding=4),  # [B, 32, 64]
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),  # [B, 128]
        nn.Linear(128, len(STATES)),
    )


def load_train(device: int, devices: int, rng: np.random.Generator) -> Dataset:
    """One machine's windows. All devices get an equal `rng`; each takes its own branch of it."""
    return _record_machine(rng.spawn(devices)[device])


def load_test() -> Dataset:
    """Windows of machines that no device trains on."""
    machines = [_record_machine(rng) for rng in np.random.default_rng(TEST_SEED).spawn(TEST_MACHINES)]
    return Dataset(np.concatenate([m.inputs for m in machines]), np.concatenate([m.targets for m in machines]))


def transform(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Optional: applied to training and test inputs alike. Here it takes out each window's own gain."""
    rms: NDArray[np.float32] = np.sqrt(np.mean(inputs**2, axis=(1, 2), keepdims=True, dtype=np.float32))
    return inputs / rms


def _record_machine(rng: np.random.Generator) -> Dataset:
    turn_hz, gain = rng.uniform(45, 75), rng.uniform(0.5, 2.0)
    states = rng.choice(len(STATES), WINDOWS_PER_MACHINE, p=rng.dirichlet([2.0, 2.0, 2.0]))
    windows = [gain * _vibration(int(state), turn_hz, rng) for state in states]
    return Dataset(np.stack(windows).astype(np.float32), states.astype(np.int64))


def _vibration(state: int, turn_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """One window float64[2, 256]: the teeth's hum; wear adds overtones and hiss, a chipped tooth a beat per turn."""
    turns = turn_hz * rng.uniform(0.97, 1.03) * np.arange(SAMPLES) / RATE_HZ + rng.random()
    hum = np.sin(2 * np.pi * TEETH * turns)
    overtones = np.sin(4 * np.pi * TEETH * turns + 0.7) + np.sin(6 * np.pi * TEETH * turns + 1.9)
    worn, chipped = state == STATES.index("worn"), state == STATES.index("chipped")
    signal = hum + rng.uniform(0.1, 0.3) * overtones
    if worn:
        signal += rng.uniform(0.1, 0.5) * overtones
    if chipped:
        signal *= 1 + rng.uniform(0.3, 0.8) * np.cos(2 * np.pi * turns)
    hiss = rng.uniform(0.2, 0.4) + (rng.uniform(0.1, 0.3) if worn else 0.0)
    return np.stack([signal, 0.6 * np.roll(signal, 3)]) + hiss * rng.standard_normal((2, SAMPLES))
