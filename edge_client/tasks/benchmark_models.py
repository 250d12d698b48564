"""The nets that `bench width` measures, at any width, ready to train and as the ONNX file a device would keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from edge_client.datasets import Dataset
from edge_client.exporting import export_template
from edge_client.tasks import cifar10, fashion_mnist, hapt
from edge_client.tasks.model import parameter_table, read_state
from edge_client.training import TrainingSettings, fit
from edge_client.width.groups import find_groups
from edge_client.width.narrowing import narrow
from fedpruneshare.sparse.channels import nested_channels, rank_channels
from fedpruneshare.sparse.onnx_codec import build_model

BATCH_SIZE, STEPS = 32, 4


def cnn4() -> nn.Module:
    """float32[B, 3, 32, 32] -> logits float32[B, 10]; 545,098 parameters, as in many studies of federated CIFAR-10."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # [B, 32, 16, 16]
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),  # [B, 4096]
        nn.Linear(4096, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


@dataclass(frozen=True)
class Net:
    """How a net is built, the shape of one input, and how many scores it gives."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    classes: int


NETS = MappingProxyType(
    {
        "CNN4": Net(cnn4, (3, 32, 32), 10),
        "LeNet-5": Net(fashion_mnist.build_model, (1, 28, 28), 10),
        "HAPT 1-D CNN": Net(hapt.build_model, (6, 128), 6),
        "ResNet-8, GroupNorm": Net(cifar10.build_model, (3, 32, 32), 10),
    }
)


@dataclass(frozen=True)
class Prepared:
    """A net at a width. `train()` takes `STEPS` steps on batches of `BATCH_SIZE`; `onnx` is the whole file."""

    width: float
    parameters: int
    train: Callable[[], object]
    onnx: bytes


def prepare(name: str, widths: tuple[float, ...], seed: int) -> list[Prepared]:
    """One of `NETS` at rising widths, cut as devices cut it; torch computes in one thread from here on."""
    torch.set_num_threads(1)
    net = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = net.build()
    table = parameter_table(model)
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((STEPS * BATCH_SIZE, *net.input_shape)).astype(np.float32)
    dataset = Dataset(inputs, rng.integers(0, net.classes, len(inputs)))
    groups = find_groups(model, table, torch.from_numpy(inputs[:2]))
    scores = rank_channels(np.abs(read_state(model, table)[0]), table, groups)
    nested = nested_channels(scores, groups, widths)
    return [
        _prepared(narrow(model, table, groups, kept), dataset, width)
        for width, kept in zip(widths, nested, strict=True)
    ]


def _prepared(model: nn.Module, dataset: Dataset, width: float) -> Prepared:
    table = parameter_table(model)
    template = export_template(model, table, dataset.inputs.shape[1:])
    rng, settings = np.random.default_rng(0), TrainingSettings(1, BATCH_SIZE, 1e-3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    onnx = build_model(template, table.unflatten(*read_state(model, table)))
    return Prepared(width, parameters, lambda: fit(model, dataset, None, settings, rng), onnx)
