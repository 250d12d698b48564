"""A round that ends while the device still trains: the training ends too, and what it took has been learnt."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import view
from torch import nn

from edge_client import local_round
from edge_client.datasets import Dataset
from edge_client.service import Device
from edge_client.training import TrainingSettings, fit

STEP_S = 0.05


class _Slow(nn.Linear):
    steps = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        type(self).steps += 1
        time.sleep(STEP_S)
        return super().forward(inputs)


def _train(ready: Any, _view: Any, rng: Any, steps: int, pace: Any) -> None:
    inputs = np.zeros((400, 3), dtype=np.float32)
    data = Dataset(inputs, np.zeros(400, dtype=np.int64))
    fit(_Slow(3, 2), data, None, TrainingSettings(1, 4, 0.1, max_steps=steps, pace=pace), rng)


async def test_steps_of_a_round_that_ended_in_mid_training_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "train", _train)
    device, learnt = object.__new__(Device), []
    device._worker = ThreadPoolExecutor(max_workers=1)
    device._adapter = SimpleNamespace(trained=lambda *figures: learnt.append(figures))  # type: ignore[assignment]
    decision: Any = SimpleNamespace(width=0.5, local_steps=100)
    monkeypatch.setattr(_Slow, "steps", 0)
    began_s = time.perf_counter()
    part = asyncio.create_task(device._train(None, view(), np.random.default_rng(0), decision))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while _Slow.steps < 6:
            await asyncio.sleep(STEP_S)
    part.cancel()
    with pytest.raises(asyncio.CancelledError):
        await part
    (width, step_s), took_s = learnt[0], time.perf_counter() - began_s
    device._worker.shutdown(wait=True)
    assert width == 0.5
    assert STEP_S <= step_s <= took_s / 5  # five at least were whole
    assert _Slow.steps < 50  # of 100: the next round need not wait for them
