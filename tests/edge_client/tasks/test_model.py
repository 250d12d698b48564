from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edge_client.tasks.model import parameter_table, read_state, write_state
from fedpruneshare.sparse.parameters import Role


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.up = nn.ConvTranspose1d(4, 3, 2)
        self.words = nn.Embedding(7, 5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("window", torch.ones(3))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))


def test_roles_order_and_channels():
    table = parameter_table(Mixed())
    rows = [(p.name, p.shape, p.role, p.channel_axis) for p in table.parameters]
    assert rows == [
        ("scale", (), Role.VECTOR, None),
        ("window", (3,), Role.BUFFER, None),
        ("seen", (2,), Role.COUNTER, None),
        ("conv.weight", (4, 2, 3), Role.WEIGHT, 0),
        ("conv.bias", (4,), Role.VECTOR, None),
        ("norm.weight", (4,), Role.VECTOR, None),
        ("norm.bias", (4,), Role.VECTOR, None),
        ("norm.running_mean", (4,), Role.BUFFER, None),
        ("norm.running_var", (4,), Role.VARIANCE, None),
        ("norm.num_batches_tracked", (), Role.COUNTER, None),
        ("up.weight", (4, 3, 2), Role.WEIGHT, 1),
        ("up.bias", (3,), Role.VECTOR, None),
        ("words.weight", (7, 5), Role.WEIGHT, 1),
    ]
    assert (table.weight_count, table.vector_count) == (24 + 24 + 35, 1 + 3 + 4 * 5 + 3)


def test_state_goes_out_and_in_unchanged():
    torch.manual_seed(0)
    source, target = Mixed(), Mixed()
    source.norm.running_var.fill_(3)
    source.norm.num_batches_tracked.fill_(9)
    table = parameter_table(source)
    weights, vectors = read_state(source, table)
    assert weights.dtype == vectors.dtype == np.float32
    weights.flags.writeable = vectors.flags.writeable = False  # as they come out of a message
    write_state(target, table, weights, vectors)
    for name, tensor in target.state_dict().items():
        if name != "norm.num_batches_tracked":
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert int(target.norm.num_batches_tracked) == 0


def test_flat_vectors_are_copies():
    model = nn.Linear(2, 2)
    table = parameter_table(model)
    weights, vectors = read_state(model, table)
    weights += 1
    assert not np.array_equal(read_state(model, table)[0], weights)
    write_state(model, table, weights, vectors)
    weights += 1
    assert not np.array_equal(read_state(model, table)[0], weights)


def test_a_bare_layer_has_a_table():
    assert [p.name for p in parameter_table(nn.Linear(3, 2)).parameters] == ["weight", "bias"]
