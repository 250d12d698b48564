"""A task whose answer is a number, not a class: how much hotter a battery's core is than its skin, in kelvin.

Run with `--task examples/battery_temperature.py`. The signals are synthetic (the formula below, no measurements), so
errors say nothing about real cells. Against `tool_wear.py` it differs in two lines: `metric` names an error, which is
better when it is lower, and the targets are float32. The loss is then the mean squared error, unless a task brings its
own.

Each device stands for one vehicle with its own pack resistance, heat path and habit of driving.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset

name = "battery-temperature"
metric = "rmse"

SAMPLES, PERIOD_S = 64, 10.0
WINDOWS_PER_VEHICLE, TEST_VEHICLES, TEST_SEED = 200, 12, 1


def build_model() -> nn.Module:
    """float32[B, 2, 64] (current in C, heating of the skin above the air in K / 5) -> kelvin, float32[B, 1]."""
    return nn.Sequential(
        nn.Conv1d(2, 12, 9, stride=2, padding=4),  # [B, 12, 32]
        nn.ReLU(),
        nn.Conv1d(12, 24, 9, stride=4, padding=4),  # [B, 24, 8]
        nn.ReLU(),
        nn.Flatten(),  # [B, 192]
        nn.Linear(192, 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )


def load_train(device: int, devices: int, rng: np.random.Generator) -> Dataset:
    """One vehicle's windows. All devices get an equal `rng`; each takes its own branch of it."""
    return _drive(rng.spawn(devices)[device])


def load_test() -> Dataset:
    """Windows of vehicles that no device trains on."""
    vehicles = [_drive(rng) for rng in np.random.default_rng(TEST_SEED).spawn(TEST_VEHICLES)]
    return Dataset(np.concatenate([v.inputs for v in vehicles]), np.concatenate([v.targets for v in vehicles]))


def _drive(rng: np.random.Generator) -> Dataset:
    resistance, path_s, load = rng.uniform(0.8, 1.2), rng.uniform(150, 250), rng.uniform(0.5, 1.2)
    count = WINDOWS_PER_VEHICLE * SAMPLES
    current = load * np.repeat(rng.normal(0.0, 1.0, count // 16), 16) + 0.05 * rng.standard_normal(count)
    core, skin = _heat(resistance * current**2, path_s)
    seen = skin / 5 + 0.02 * rng.standard_normal(count)
    windows = np.stack([current, seen]).reshape(2, WINDOWS_PER_VEHICLE, SAMPLES).transpose(1, 0, 2)
    hotter = (core - skin).reshape(WINDOWS_PER_VEHICLE, SAMPLES)[:, -1]
    return Dataset(windows.astype(np.float32), hotter.astype(np.float32))


def _heat(power: NDArray[np.float64], path_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two heat stores in a row: the core heats the skin, the skin the air. Temperatures above the air in K."""
    core, skin = np.zeros(len(power)), np.zeros(len(power))
    for now in range(1, len(power)):
        flow = (core[now - 1] - skin[now - 1]) * PERIOD_S / path_s
        core[now] = core[now - 1] + 0.1 * power[now] - flow
        skin[now] = skin[now - 1] + flow - skin[now - 1] * PERIOD_S / 600
    return core, skin
