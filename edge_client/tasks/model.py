"""A torch model as the rest of the system sees it: a parameter table and two flat vectors (docs/protocol.md §6.1)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parameter import is_lazy

from fedpruneshare.errors import TaskError
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding)
"""Modules whose output channels are the *second* axis of their weight."""


def parameter_table(model: nn.Module) -> ParameterTable:
    """The table of a model, in the order of its state dict.

    Parameters of two or more axes are prunable weights, others vectors; float buffers are averaged, integer and
    boolean ones stay on the device. Raises `TaskError` for a model that cannot be handled: lazy, shared, complex or
    half-precision parameters, parametrised or already pruned modules, or nothing to prune.
    """
    _refuse_unsupported(model)
    trained = {name for name, _ in model.named_parameters()}
    rows = []
    for name, tensor in model.state_dict().items():
        role = _role(name, tensor, name in trained)
        transposed = isinstance(model.get_submodule(name.rpartition(".")[0]), _TRANSPOSED)
        axis = int(transposed) if role is Role.WEIGHT else None
        rows.append(Parameter(name, tuple(tensor.shape), role, axis))
    table = ParameterTable(tuple(rows))
    if not table.weight_count:
        raise TaskError(f"model {type(model).__name__} has no prunable weight: expected a parameter of 2 or more axes")
    return table


def read_state(model: nn.Module, table: ParameterTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copy the model out: (weights float32[d], vectors float32[v]) in the table's order."""
    return table.flatten({name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()})


def write_state(
    model: nn.Module, table: ParameterTable, weights: NDArray[np.float32], vectors: NDArray[np.float32]
) -> None:
    """Copy (weights float32[d], vectors float32[v]) into the model; integer buffers keep their values."""
    state = model.state_dict()
    with torch.no_grad():
        for name, array in table.unflatten(weights, vectors).items():
            # A copy in C order: torch cannot share memory with a read-only array.
            state[name].copy_(torch.from_numpy(np.array(array, dtype=np.float32, order="C")))


def _role(name: str, tensor: torch.Tensor, trained: bool) -> Role:
    if trained:
        return Role.WEIGHT if tensor.ndim > 1 else Role.VECTOR
    if not tensor.is_floating_point():
        return Role.COUNTER
    return Role.VARIANCE if name.rpartition(".")[2] == "running_var" else Role.BUFFER


def _refuse_unsupported(model: nn.Module) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise TaskError(f"parameter {name!r} has no shape yet (lazy module), expected an initialised model")
        if parameter.dtype != torch.float32:
            raise TaskError(f"parameter {name!r} is {parameter.dtype}, expected torch.float32")
        if name.startswith("parametrizations.") or ".parametrizations." in name or name.endswith("_orig"):
            raise TaskError(f"parameter {name!r} is pruned or parametrised in the module, expected plain parameters")
        shared = first.setdefault(parameter.data_ptr(), name) if parameter.numel() else name
        if shared != name:
            raise TaskError(f"parameters {shared!r} and {name!r} share one tensor, expected each once: untie it")
    for name, buffer in model.named_buffers():
        if buffer.is_complex() or (buffer.is_floating_point() and buffer.dtype != torch.float32):
            raise TaskError(f"buffer {name!r} is {buffer.dtype}, expected torch.float32 or whole numbers")
