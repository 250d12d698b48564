"""Which channels of a model exist only together, as torch-pruning's dependency graph sees them.

Used by `task export` alone. The graph is read off one forward pass; what it says is taken apart into single elements
(place i along one axis of one array) and those that go together are joined. `edge_client/width/groups.py` makes
groups of them and proves each on the model itself, so a wrong guess here costs a cut, never a wrong model.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedpruneshare.errors import TaskError

Key = tuple[str, int]
"""An axis of an array: its name in the state dict, and the axis. Names that start with a NUL are marks of our own."""
Element = tuple[Key, int]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BY_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
_FROZEN: Element = (("\0frozen", 0), 0)


@dataclass
class Ties:
    """Sets of elements that go together, and axes whose equal runs must keep as many (norm groups, conv groups)."""

    classes: list[list[Element]] = field(default_factory=list)
    limits: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Of an axis: its length and into how many equal runs it is divided."""
    frozen: dict[str, str] = field(default_factory=dict)
    """Layers whose channels cannot be cut, and why."""


def trace_ties(model: nn.Module, inputs: torch.Tensor) -> Ties:
    """Join what one forward pass of `model` on `inputs` float32[B, ...] shows to go together.

    Inputs, class scores and layers of unknown inner make are left out. Raises `TaskError` where the forward pass or
    the tracing fails, or torch-pruning is not installed.
    """
    try:
        pruning = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise TaskError(f"torch-pruning is not installed ({error}): pip install 'fedpruneshare[export]'") from None
    # A layer that changes nothing stands for the inputs, so that what meets them shows.
    entry = nn.PReLU(inputs.shape[1] if inputs.ndim > 1 else 1, init=1.0)
    scores: list[torch.Tensor] = []

    def forward(whole: nn.Module, example: torch.Tensor) -> torch.Tensor:
        scores.append(whole(example))
        return scores[0]

    graph = pruning.DependencyGraph()
    joined = _Joined()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                nn.Sequential(entry, model), example_inputs=inputs, forward_fn=forward, verbose=False
            )
            reader = _Reader(graph, joined, model, (entry, scores[0].grad_fn))
            reader.read()
    except Exception as error:  # the user's forward(), or a graph the library was not made for
        text = next(iter(str(error).strip().splitlines()), "no message")
        raise TaskError(f"model cannot be traced: {type(error).__name__}: {text}") from error
    return Ties(joined.classes(), reader.limits, reader.frozen)


class _Joined:
    """Disjoint sets of elements."""

    def __init__(self) -> None:
        self._parent: dict[Element, Element] = {_FROZEN: _FROZEN}

    def find(self, element: Element) -> Element:
        parent = self._parent.setdefault(element, element)
        while parent != element:
            grandparent = self._parent[parent]
            self._parent[element] = grandparent
            element, parent = parent, grandparent
        return element

    def knows(self, element: Element) -> bool:
        return element in self._parent

    def join(self, one: Element, other: Element) -> None:
        self._parent[self.find(one)] = self.find(other)

    def classes(self) -> list[list[Element]]:
        """All sets but the frozen one, each sorted."""
        sets: dict[Element, list[Element]] = {}
        for element in sorted(self._parent):
            sets.setdefault(self.find(element), []).append(element)
        sets.pop(self.find(_FROZEN))
        return list(sets.values())


class _Reader:
    """Walks the graph from the outputs of every layer and joins what each channel passes through.

    The library's own walk would do where channels never meet again; here every place is visited once, so that a graph
    the library has misread ends too, and two channels that meet are one.
    """

    def __init__(self, graph: Any, joined: _Joined, model: nn.Module, ends: tuple[nn.Module, Any]) -> None:
        self._graph, self._joined = graph, joined
        self._input, self._output = ends
        self._nodes = {id(node): number for number, node in enumerate(graph.module2node.values())}
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._arrays = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._longest = max((length for shape in self._arrays.values() for length in shape), default=0)
        self._index = importlib.import_module("torch_pruning._helpers")._HybridIndex
        self.limits: dict[Key, tuple[int, int]] = {}
        self.frozen: dict[str, str] = {}

    def read(self) -> None:
        """Join everything that hangs together, from all layers that make channels."""
        for layer, node in list(self._graph.module2node.items()):
            if isinstance(layer, (*_CONVOLUTIONS, nn.Linear, nn.Embedding)):
                make = self._graph.get_pruner_of_module(layer).prune_out_channels
                places = range(self._graph.get_out_channels(node))
                try:
                    self._walk(node, make, [place for place in places if self._visit(node, make, place)])
                except (IndexError, TypeError, ValueError) as error:  # the library lost its way behind this layer
                    self.frozen[self._modules[id(layer)]] = f"its outputs cannot be followed ({error})"
                    for place in places:
                        self._joined.join(_FROZEN, self._place(node, make, place))

    def _walk(self, node: Any, side: Any, places: list[int]) -> None:
        """Follow places from one side of a node to wherever the graph takes them."""
        waiting = [(node, side, places)]
        while waiting:
            node, side, places = waiting.pop()
            for way in node.dependencies:
                if way.is_triggered_by(side):
                    there = [self._index(idx=place, root_idx=place) for place in places]
                    for mapping in way.index_mapping:
                        there = there if mapping is None else mapping(there)
                    # Visited first, whatever was joined before: each place of a side is followed once.
                    new = [one.idx for one in there if self._visit(way.target, way.handler, one.idx)]
                    for one in there:
                        target = self._place(way.target, way.handler, one.idx)
                        self._joined.join(self._place(node, side, one.root_idx), target)
                    if new:
                        waiting.append((way.target, way.handler, new))

    def _place(self, node: Any, side: Any, place: int) -> Element:
        """The mark of a place on one side of a node; sides that are one and the same function are one."""
        return (f"\0node {self._nodes[id(node)]}", int(side.__name__ == "prune_out_channels")), place

    def _visit(self, node: Any, side: Any, place: int) -> bool:
        """Join a place with the arrays it stands for; False if this was done before, or the place cannot be."""
        mark = self._place(node, side, place)
        if self._joined.knows(mark):
            return False
        is_output = side.__name__ == "prune_out_channels"
        self._joined.join(mark, mark)
        if not 0 <= place <= self._longest:
            self._joined.join(_FROZEN, mark)
            return False
        if self._is_end(node, is_output):
            self._joined.join(_FROZEN, mark)
        for name, axis, start, count in self._places(node, is_output, place):
            if name in self._arrays and start + count > self._arrays[name][axis]:
                # As behind two flattened branches that are joined.
                self.frozen[name.rpartition(".")[0]] = "the library takes its channels for others"
                self._joined.join(_FROZEN, mark)
            elif name in self._arrays or name.startswith("\0"):  # there is a bias, there are running statistics
                for along in range(start, start + count):
                    self._joined.join(((name, axis), along), mark)
        return True

    def _is_end(self, node: Any, is_output: bool) -> bool:
        """Whether this side of a node carries the model's inputs or its class scores."""
        if node.module is self._input:
            return True
        is_layer = id(node.module) in self._modules and isinstance(node.module, (*_CONVOLUTIONS, nn.Linear))
        return node.grad_fn is self._output and (is_output or not is_layer)

    def _places(self, node: Any, is_output: bool, index: int) -> Iterator[tuple[str, int, int, int]]:
        """(array, axis, start, count) of one channel on one side of a layer."""
        layer = node.module
        if isinstance(layer, nn.Parameter):
            axis = node.pruning_dim % layer.ndim
            yield self._parameters[id(layer)], axis, index, 1
            return
        if id(layer) not in self._modules:
            return  # an operation without arrays: addition, concatenation, reshaping
        path = self._modules[id(layer)]
        own = f"{path}." if path else ""
        if isinstance(layer, _CONVOLUTIONS):
            yield from self._conv_places(layer, own, is_output, index)
        elif isinstance(layer, nn.Linear):
            yield f"{own}weight", 0 if is_output else 1, index, 1
            if is_output:
                yield f"{own}bias", 0, index, 1
        elif isinstance(layer, nn.Embedding):
            yield f"{own}weight", 1, index, 1
        elif isinstance(layer, _BY_CHANNEL):
            yield from self._norm_places(layer, own, index)
        elif isinstance(layer, nn.PReLU) or (isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1):
            if layer.weight is not None and len(layer.weight) > 1:
                yield f"{own}weight", 0, index, 1
                yield f"{own}bias", 0, index, 1
        else:
            self.frozen[path] = f"the make of {type(layer).__name__} is not known"
            yield _FROZEN[0][0], _FROZEN[0][1], _FROZEN[1], 1

    def _norm_places(self, layer: Any, own: str, index: int) -> Iterator[tuple[str, int, int, int]]:
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"{own}{name}", 0, index, 1
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
            mark = f"\0norm {own}"
            self.limits[mark, 0] = layer.num_channels, layer.num_groups
            yield mark, 0, index, 1

    def _conv_places(self, layer: Any, own: str, is_output: bool, index: int) -> Iterator[tuple[str, int, int, int]]:
        """Weights are [out, in/groups, ...], transposed ones [in, out/groups, ...]."""
        is_transposed, groups = isinstance(layer, _TRANSPOSED), layer.groups
        is_first = is_output != is_transposed  # this side is the weight's first axis
        is_depthwise = 1 < groups == layer.in_channels
        if is_depthwise and not is_output and not is_transposed:
            # Each input owns the filters that read it, and so their outputs.
            each = layer.out_channels // groups
            yield f"{own}weight", 0, index * each, each
            return
        if is_depthwise and is_output and is_transposed:
            yield f"{own}weight", 0, index // (layer.out_channels // groups), 1
        elif is_first:
            yield f"{own}weight", 0, index, 1
        else:
            # An axis that all groups share: equal places of all of them go together.
            yield f"{own}weight", 1, index % layer.weight.shape[1], 1
        if is_output:
            yield f"{own}bias", 0, index, 1
        if groups > 1 and not is_depthwise:
            mark = f"\0{'out' if is_output else 'in'} {own}"
            self.limits[mark, 0] = (layer.out_channels if is_output else layer.in_channels), groups
            yield mark, 0, index, 1
