"""The example of a task of values must really learn, federated and pruned, through the door a user's task takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edge_client.pruning import mask_from_positions
from edge_client.tasks import load_task, parameter_table, read_state, write_state
from edge_client.training import TrainingSettings, fit
from fedpruneshare.metrics import metric

EXAMPLE = Path(__file__).parents[2] / "examples" / "battery_temperature.py"


def test_federated_training_under_a_mask_learns_strangers_vehicles():
    task = load_task(EXAMPLE)
    model, test = task.seeded_model(0), task.load_test()
    table = parameter_table(model)
    parts = [task.load_train(device, 6, np.random.default_rng(0)) for device in range(6)]
    weights, vectors = read_state(model, table)
    kept = np.argsort(-np.abs(weights))[: table.weight_count // 2]
    for round_number in range(8):
        results = []
        for device, part in enumerate(parts):
            write_state(model, table, weights, vectors)
            rng = np.random.default_rng([round_number, device])
            fit(model, part, mask_from_positions(table, kept), TrainingSettings(2, 20, 0.02), rng, task.loss)
            results.append(read_state(model, table))
        weights, vectors = (np.mean([r[i] for r in results], axis=0, dtype=np.float32) for i in (0, 1))
    write_state(model, table, weights, vectors)
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(test.inputs)).numpy()
    assert metric(task.metric).score(outputs, test.targets) < 0.5 * np.std(test.targets)
