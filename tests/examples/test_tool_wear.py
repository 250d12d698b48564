"""The bring-your-own example must really learn, federated and pruned, through the door a user's task takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_client.pruning import mask_from_positions
from edge_client.tasks import load_task, parameter_table, read_state, write_state
from edge_client.training import TrainingSettings, accuracy, fit

EXAMPLE = Path(__file__).parents[2] / "examples" / "tool_wear.py"


def rng(*seed):
    return np.random.default_rng(seed)


def test_machines_differ_and_are_the_same_each_time():
    task = load_task(EXAMPLE)
    parts = [task.load_train(device, 4, rng(0)) for device in range(4)]
    again = task.load_train(2, 4, rng(0))
    assert np.array_equal(parts[2].inputs, again.inputs)
    assert len({part.inputs.tobytes() for part in parts}) == 4
    np.testing.assert_allclose((parts[0].inputs ** 2).mean(axis=(1, 2)), 1, rtol=1e-4)  # transform() was applied


def test_federated_training_under_a_mask_learns_strangers_machines():
    task = load_task(EXAMPLE)
    model, test = task.seeded_model(0), task.load_test()
    table = parameter_table(model)
    parts = [task.load_train(device, 6, rng(0)) for device in range(6)]
    weights, vectors = read_state(model, table)
    settings = TrainingSettings(2, 20, 0.05)
    kept = np.argsort(-np.abs(weights))[: table.weight_count // 2]
    for round_number in range(8):
        results = []
        for device, part in enumerate(parts):
            write_state(model, table, weights, vectors)
            fit(model, part, mask_from_positions(table, kept), settings, rng(round_number, device), task.loss)
            results.append(read_state(model, table))
        weights, vectors = (np.mean([r[i] for r in results], axis=0, dtype=np.float32) for i in (0, 1))
    write_state(model, table, weights, vectors)
    assert np.count_nonzero(weights) <= table.weight_count // 2
    assert accuracy(model, test) > 0.75
