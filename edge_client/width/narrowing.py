"""A physically smaller model: the channels a width keeps, as a model of its own (docs/protocol.md §6.7).

The small model trains and exports like any other; its arrays are gathered from the full flat vectors, and what it
learnt is scattered back to their places. Which channels go together was found by `task export`
(`edge_client/width/groups.py`); nothing here needs more than torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.training import Masks
from fedpruneshare.errors import SupportMismatchError, TaskError
from fedpruneshare.sparse.channels import Groups, Kept, kept_indices
from fedpruneshare.sparse.parameters import ParameterTable, Role

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NUMBERED_FEATURES = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_REFUSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
"""Modules whose arrays stack several axes of channels into one, or hold their sizes in many places."""


# --------------------------------------------------------------------------- the model


def narrow(model: nn.Module, table: ParameterTable, groups: Groups, kept: Kept) -> nn.Module:
    """A copy of `model` with only the kept channels, its weights gathered and its modules' sizes set.

    `table` is that of the full model, which stays as it is; its arrays are never copied whole, so the memory taken is
    that of the small model. Raises `TaskError` for a module whose sizes are not known, naming it.
    """
    tensors = model.state_dict(keep_vars=True)
    shared: dict[int, Any] = {}
    before: dict[str, tuple[int, ...]] = {}
    for number, parameter in enumerate(table.parameters):
        indices = kept_indices(number, table, groups, kept)
        shape = tuple(len(axis) for axis in indices)
        if shape != parameter.shape:
            # deepcopy takes what its memo holds for the copy: so the full array is not copied first.
            shared[id(tensors[parameter.name])] = _gathered(tensors[parameter.name], indices)
            before[parameter.name] = parameter.shape
    small = copy.deepcopy(model, shared)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in before):
        own = {name.rpartition(".")[2]: shape for name, shape in before.items() if name.rpartition(".")[0] == path}
        _set_sizes(small.get_submodule(path), path, own)
    return small


def _gathered(tensor: torch.Tensor, indices: tuple[NDArray[np.int64], ...]) -> torch.Tensor:
    small = torch.from_numpy(tensor.detach().cpu().numpy()[np.ix_(*indices)]).to(tensor.device)
    return nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def _set_sizes(module: Any, path: str, before: dict[str, tuple[int, ...]]) -> None:
    """Make the attributes of a module agree with its arrays, of which those in `before` had another shape."""
    if isinstance(module, _CONV + _TRANSPOSED):
        _set_conv_sizes(module, path)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NUMBERED_FEATURES):
        module.num_features = len(module.weight if module.weight is not None else module.running_mean)
    elif isinstance(module, nn.GroupNorm):
        if len(module.weight) % module.num_groups:
            raise TaskError(f"{_named(module, path)} keeps {len(module.weight)} channels in {module.num_groups} groups")
        module.num_channels = len(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, _REFUSED):
        raise TaskError(f"{_named(module, path)} cannot be narrowed: expected layers of one array per direction")
    else:
        _refuse_unknown_sizes(module, path, before)


def _set_conv_sizes(module: Any, path: str) -> None:
    """Depthwise convolutions lose groups with their channels; others keep their groups, each with fewer channels."""
    is_transposed = isinstance(module, _TRANSPOSED)
    first, second = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:
        per_input = module.out_channels // module.in_channels
        module.groups = first if is_transposed else first // per_input
        outputs = module.groups * per_input
    else:
        outputs = second * module.groups if is_transposed else first
    module.in_channels = first if is_transposed else second * module.groups
    module.out_channels = outputs
    wanted = (first, outputs // module.groups) if is_transposed else (outputs, module.in_channels // module.groups)
    is_biased_rightly = module.bias is None or len(module.bias) == outputs
    if (first, second) != wanted or module.in_channels % module.groups or outputs % module.groups:
        raise TaskError(f"{_named(module, path)}: weight {tuple(module.weight.shape)} fits no {module.groups} groups")
    if not is_biased_rightly:
        raise TaskError(f"{_named(module, path)}: {len(module.bias)} biases, expected {outputs}")


def _refuse_unknown_sizes(module: nn.Module, path: str, before: dict[str, tuple[int, ...]]) -> None:
    """A module of the user's own may hold arrays, but no number that could be the length of a cut axis."""
    lengths = {
        old
        for name, shape in before.items()
        for old, new in zip(shape, getattr(module, name).shape, strict=True)
        if old != new
    }
    for name, value in vars(module).items():
        numbers = value if isinstance(value, (tuple, list)) else [value]
        if any(type(number) is int and number in lengths for number in numbers):
            raise TaskError(
                f"{_named(module, path)} cannot be narrowed: its attribute {name!r} may hold a number of channels"
                f" ({value}), expected plain arrays or layers of torch.nn"
            )


def _named(module: nn.Module, path: str) -> str:
    return f"layer {path!r} ({type(module).__name__})"


# --------------------------------------------------------------------------- its arrays, in the full model's places


def read_narrow(
    model: nn.Module, table: ParameterTable, groups: Groups, kept: Kept
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copy a narrowed model out to the full model's places: (weights float32[d], vectors float32[v]), else zero."""
    weights = np.zeros(table.weight_count, dtype=np.float32)
    vectors = np.zeros(table.vector_count, dtype=np.float32)
    state = model.state_dict()
    for name, full, places in _places(table, groups, kept, weights, vectors):
        full[places] = state[name].detach().cpu().numpy()
    return weights, vectors


def write_narrow(
    model: nn.Module,
    table: ParameterTable,
    groups: Groups,
    kept: Kept,
    weights: NDArray[np.float32],
    vectors: NDArray[np.float32],
) -> None:
    """Copy the kept channels of (weights float32[d], vectors float32[v]) into a narrowed model."""
    state = model.state_dict()
    with torch.no_grad():
        for name, full, places in _places(table, groups, kept, weights, vectors):
            state[name].copy_(torch.from_numpy(np.asarray(full[places])))


def _places(
    table: ParameterTable, groups: Groups, kept: Kept, weights: NDArray[np.float32], vectors: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32], Any]]:
    """(name, view of the full array, index of the kept part) of every array that travels."""
    full = table.unflatten(weights, vectors)
    for number, parameter in enumerate(table.parameters):
        if parameter.role is not Role.COUNTER:
            yield parameter.name, full[parameter.name], np.ix_(*kept_indices(number, table, groups, kept))


def narrow_masks(table: ParameterTable, groups: Groups, kept: Kept, positions: NDArray[np.int64]) -> Masks:
    """Masks of a narrowed model's weights for `fit`, 1 at each flat coordinate in `positions` (of the full model).

    Those of channels that are not kept have no place in the small model and are passed over. Raises
    `SupportMismatchError` where a position lies outside 0..d-1.
    """
    count = table.weight_count
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < count:
        found = f"{int(positions.min())} to {int(positions.max())}"
        raise SupportMismatchError(f"support reaches from {found}, expected 0 to {count - 1}")
    marked = np.zeros(count, dtype=np.bool_)
    marked[positions] = True
    names = {weight.name: index for index, weight in enumerate(table.weights())}
    bounds = table.weight_bounds()
    masks = []
    for number, parameter in enumerate(table.parameters):
        if parameter.name in names:
            start, end = bounds[names[parameter.name] : names[parameter.name] + 2]
            small = marked[start:end].reshape(parameter.shape)[np.ix_(*kept_indices(number, table, groups, kept))]
            masks.append(torch.from_numpy(small.astype(np.float32)))
    return masks
