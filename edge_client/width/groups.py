"""`task export`: find the channel groups of a model, and prove each on the model before it goes into the bundle.

A group that is right has interchangeable channels: their order may be shuffled, in every array at once, and the model
computes the same. This is tested with random weights, for each group and for all together; then the model is narrowed
and must run. Channels that fail stay whole, with the reason; a model of which nothing is left is refused, and its
devices adapt by density alone.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.width.narrowing import narrow
from edge_client.width.tracing import Element, Key, Ties, trace_ties
from fedpruneshare.errors import TaskError
from fedpruneshare.sparse.channels import (
    MAX_CUTS,
    MAX_GROUPS,
    ChannelGroup,
    Cut,
    Groups,
    Kept,
    check_groups,
    nested_channels,
)
from fedpruneshare.sparse.parameters import ParameterTable, Role

TRIED_WIDTHS = (0.25, 0.5, 0.75)
LARGEST_DEVIATION = 1e-9
"""Of outputs in float64 after the channels changed places, relative to the largest output."""
LARGEST_DEVIATION_SINGLE = 1e-4
"""The same for models that only run in float32."""
_MOST_REASONS = 10
_NOTHING_HIDDEN = "none of its channels lie between its inputs and its scores, in layers whose make is known"


@dataclass(frozen=True)
class Examined:
    """What can be cut of a model, and a line for each set of channels that stays whole."""

    groups: Groups
    reasons: tuple[str, ...]


def find_groups(model: nn.Module, table: ParameterTable, example_inputs: torch.Tensor) -> Groups:
    """The channel groups of `model`, proven on `example_inputs` float32[B, ...] (B of 2 or more).

    Raises `TaskError` with the reasons where nothing can be cut.
    """
    found = examine(model, table, example_inputs)
    if not found.groups:
        raise TaskError(f"model {type(model).__name__} cannot be cut: {'; '.join(found.reasons)}")
    return found.groups


def examine(model: nn.Module, table: ParameterTable, example_inputs: torch.Tensor) -> Examined:
    """As `find_groups`, with the reasons for what stays whole; nothing is raised for a model that cannot be cut."""
    try:
        trial = _Trial(model, table, example_inputs)
        ties = trace_ties(copy.deepcopy(trial.model).float(), example_inputs)
    except TaskError as error:
        return Examined((), (str(error),))
    reasons = [f"layer {path!r} stays whole: {reason}" for path, reason in ties.frozen.items()]
    level = _level(_regular(ties, table, reasons), ties, table, reasons)
    groups = _proven([_groups(linked, table) for linked in _linked(level, ties)], trial, table, reasons)
    if len(groups) > MAX_GROUPS or any(len(group.cuts) > MAX_CUTS for group in groups):
        reasons.append(f"{len(groups)} groups, expected {MAX_GROUPS} of {MAX_CUTS} cuts at most")
        groups = ()
    check_groups(groups, table)
    told = list(dict.fromkeys(reasons))
    if len(told) > _MOST_REASONS:
        told[_MOST_REASONS:] = [f"and {len(told) - _MOST_REASONS} more"]
    return Examined(groups, tuple(told) or (() if groups else (_NOTHING_HIDDEN,)))


def _proven(sets: list[Groups], trial: _Trial, table: ParameterTable, reasons: list[str]) -> Groups:
    """The groups that stand the trial: set by set, then together."""
    proven: list[ChannelGroup] = []
    for some in sets:
        if fault := trial.fault(some):
            reasons.append(f"{_described(table, some)} stay whole: {fault}")
        else:
            proven.extend(some)
    groups = tuple(sorted(proven, key=lambda group: [(cut.parameter, cut.axis, cut.offset) for cut in group.cuts]))
    if len(sets) > 1 and groups and (fault := trial.fault(groups)):
        reasons.append(f"all groups together: {fault}")
        return ()
    return groups


def _described(table: ParameterTable, groups: Iterable[ChannelGroup]) -> str:
    names = [table.parameters[group.cuts[0].parameter].name for group in groups]
    layers = ", ".join(repr(name.rpartition(".")[0] or name) for name in names)
    return f"the {' + '.join(str(group.channels) for group in groups)} channels of {layers}"


# --------------------------------------------------------------------------- ties -> groups


@dataclass(frozen=True)
class _Run:
    """Where the channels of a group lie along one axis: as `Cut`, for marks too."""

    key: Key
    offset: int
    block: int


@dataclass(frozen=True)
class _Candidate:
    channels: int
    runs: tuple[_Run, ...]
    size: int
    """Channels of each part."""


def _regular(ties: Ties, table: ParameterTable, reasons: list[str]) -> list[_Candidate]:
    """Channels that lie in the same arrays, at equal distances, are one group."""
    numbers = {parameter.name: number for number, parameter in enumerate(table.parameters)}
    alike: dict[tuple[tuple[Key, int], ...], list[dict[Key, list[int]]]] = {}
    for elements in ties.classes:
        places = _by_axis(elements, numbers, ties)
        if any(name in numbers for name, _ in places):
            alike.setdefault(tuple((key, len(places[key])) for key in places), []).append(places)
    candidates = []
    for pattern, channels in alike.items():
        keys = [key for key, _ in pattern]
        rows = np.array([[place for key in keys for place in channel[key]] for channel in channels], dtype=np.int64)
        counts = np.array([count for _, count in pattern])
        for some in _evenly_spaced(rows[np.lexsort(rows.T[::-1])], counts):
            runs = [run for key, part in zip(keys, _columns(some, counts), strict=True) for run in _runs(key, part)]
            if len(some) > 1 and runs and all(run.block for run in runs):
                candidates.append(_Candidate(len(some), tuple(runs), len(some)))
            elif len(some) > 1:
                reasons.append(f"{len(some)} channels of {keys[0][0]!r} stay whole: they lie at no even distances")
    return candidates


def _by_axis(elements: Iterable[Element], numbers: dict[str, int], ties: Ties) -> dict[Key, list[int]]:
    """The places of one channel along each axis; arrays in the table's order, then the marks that limit something."""
    places: dict[Key, list[int]] = {}
    for key, place in elements:
        if key[0] in numbers or key in ties.limits:
            places.setdefault(key, []).append(place)
    return dict(sorted(places.items(), key=lambda item: (numbers.get(item[0][0], len(numbers)), item[0])))


def _evenly_spaced(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut sorted rows where the distance to the next changes, or differs within an axis."""
    steps = np.diff(rows, axis=0)
    starts = [0]
    for row in range(1, len(rows)):
        is_first = row - starts[-1] == 1
        uneven = any((part != part[0]).any() for part in _columns(steps[row - 1], counts))
        if uneven or (not is_first and (steps[row - 1] != steps[row - 2]).any()):
            starts.append(row)
    return [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _columns(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(rows, np.cumsum(counts)[:-1], axis=-1)


def _runs(key: Key, rows: NDArray[np.int64]) -> list[_Run]:
    """int64[channels, m] -> runs of blocks; one of block 0 where the places are no such runs."""
    if len(rows) < 2:
        return []
    block = int(rows[1, 0] - rows[0, 0])
    count = rows.shape[1]
    if block < 1 or count % block:
        return [_Run(key, 0, 0)]
    starts = rows[0, ::block]
    if (rows[0] != (starts[:, None] + np.arange(block)).reshape(-1)).any():
        return [_Run(key, 0, 0)]
    return [_Run(key, int(start), block) for start in starts]


# --------------------------------------------------------------------------- equal shares for norm and conv groups


def _level(candidates: list[_Candidate], ties: Ties, table: ParameterTable, reasons: list[str]) -> list[_Candidate]:
    """Divide groups into parts so that at every width each run of a limited axis keeps as many channels."""
    level = [replace(one, size=_part_size(one, ties)) for one in candidates]
    while True:
        uneven = {one for one in level if one.size < 2}
        for key, (length, parts) in ties.limits.items():
            if not uneven and not _is_even(level, key, length, parts):
                uneven = {one for one in level if any(run.key == key for run in one.runs)}
        if not uneven:
            break
        for one in (one for one in level if one in uneven):
            why = "its groups have one channel each" if one.size == 1 else "its groups would keep different numbers"
            reasons.append(f"{_described(table, _groups([one], table))} stay whole: {why}")
        level = [one for one in level if one not in uneven]
    return level


def _linked(level: list[_Candidate], ties: Ties) -> list[list[_Candidate]]:
    """Groups that share a limited axis can only be cut together, by the same width."""
    sets: list[tuple[list[_Candidate], set[Key]]] = []
    for one in level:
        keys = {run.key for run in one.runs if run.key in ties.limits}
        own = [some for some in sets if some[1] & keys]
        sets = [some for some in sets if not some[1] & keys]
        members = [member for some in own for member in some[0]]
        sets.append(([*members, one], keys.union(*(some[1] for some in own))))
    return [members for members, _ in sets]


def _part_size(one: _Candidate, ties: Ties) -> int:
    """Largest part that no boundary of a limited axis divides; 0 where a boundary divides a channel's own block."""
    size = one.channels
    for run in one.runs:
        if run.key in ties.limits:
            length, parts = ties.limits[run.key]
            end = run.offset + one.channels * run.block
            for boundary in range(0, length, length // parts):
                if run.offset < boundary < end:
                    if (boundary - run.offset) % run.block:
                        return 0
                    size = math.gcd(size, (boundary - run.offset) // run.block)
    return size


def _is_even(candidates: list[_Candidate], key: Key, length: int, parts: int) -> bool:
    """Whether all runs of an axis are made of as many parts of the same sizes, and as much that is never cut."""
    share = length // parts
    made_of: list[Counter[int]] = [Counter() for _ in range(parts)]
    whole = [share] * parts
    for one in candidates:
        for run in (run for run in one.runs if run.key == key):
            extent = one.size * run.block
            for start in range(run.offset, run.offset + one.channels * run.block, extent):
                made_of[start // share][one.size] += run.block
                whole[start // share] -= extent
    return all(some == made_of[0] for some in made_of) and len(set(whole)) == 1


def _groups(candidates: list[_Candidate], table: ParameterTable) -> Groups:
    numbers = {parameter.name: number for number, parameter in enumerate(table.parameters)}
    groups = []
    for one in candidates:
        cuts = [
            Cut(numbers[run.key[0]], run.key[1], run.offset, run.block) for run in one.runs if run.key[0] in numbers
        ]
        cuts.sort(key=lambda cut: (cut.parameter, cut.axis, cut.offset))
        groups.append(ChannelGroup(one.channels, one.channels // max(one.size, 1), tuple(cuts)))
    return tuple(groups)


# --------------------------------------------------------------------------- proof on the model


class _Trial:
    """A copy of the model with random weights, and what it computes."""

    def __init__(self, model: nn.Module, table: ParameterTable, inputs: torch.Tensor) -> None:
        self._table = table
        self.model, self.inputs, self._tolerance = (
            _randomised(model, table).double(),
            inputs.double(),
            LARGEST_DEVIATION,
        )
        try:
            # In float64 where the model can, so that rounding hides no small mistake.
            self._outputs = _run(self.model, self.inputs)
        except Exception:  # a forward() that makes float32 tensors of its own, or one that fails anyway
            self.model, self.inputs = self.model.float(), inputs
            self._tolerance = LARGEST_DEVIATION_SINGLE
            self._outputs = self._first_run()
        if not torch.isfinite(self._outputs).all():
            raise TaskError("model with random weights returns values that are not finite")

    def _first_run(self) -> torch.Tensor:
        try:
            return _run(self.model, self.inputs)
        except Exception as error:  # the user's forward()
            raise TaskError(f"model fails on the example inputs: {_first_line(error)}") from error

    def fault(self, groups: Groups) -> str:
        """Why these groups cannot be cut; empty if they can."""
        deviation = self._after_shuffling(groups)
        if not deviation <= self._tolerance:
            return f"in another order they change the outputs by {deviation:.1g}"
        rng = np.random.default_rng(1)
        scores = tuple(rng.random(group.channels) for group in groups)
        for kept in nested_channels(scores, groups, TRIED_WIDTHS):
            if fault := self._narrow_fault(groups, kept):
                return fault
        return ""

    def _after_shuffling(self, groups: Groups) -> float:
        """Relative change of the outputs when channels change places within their parts, in all arrays at once."""
        shuffled = copy.deepcopy(self.model)
        arrays = shuffled.state_dict()
        rng = np.random.default_rng(0)
        for group in groups:
            order = np.concatenate(
                [
                    start + _other_order(group.channels // group.parts, rng)
                    for start in range(0, group.channels, group.channels // group.parts)
                ]
            )
            for cut in group.cuts:
                array = arrays[self._table.parameters[cut.parameter].name]
                places = torch.from_numpy((cut.offset + order[:, None] * cut.block + np.arange(cut.block)).reshape(-1))
                array.narrow(cut.axis, cut.offset, len(places)).copy_(array.index_select(cut.axis, places))
        change = (_run(shuffled, self.inputs) - self._outputs).abs().max()
        return float(change / self._outputs.abs().max().clamp_min(1e-30))

    def _narrow_fault(self, groups: Groups, kept: Kept) -> str:
        try:
            small = narrow(self.model, self._table, groups, kept)
            found = tuple(_run(small, self.inputs).shape)
        except Exception as error:  # the user's forward(), most often with a size written into it
            return f"the narrowed model fails: {_first_line(error)}"
        wanted = tuple(self._outputs.shape)
        return "" if found == wanted else f"the narrowed model returns {found}, expected {wanted}"


def _randomised(model: nn.Module, table: ParameterTable) -> nn.Module:
    """A copy in which every channel differs: fresh norms and biases are all alike and would hide a mistake."""
    copied = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    draws: dict[Role, Callable[[torch.Tensor], torch.Tensor]] = {
        Role.WEIGHT: lambda t: torch.randn(t.shape, generator=generator) / math.sqrt(t[0].numel()),
        Role.VECTOR: lambda t: 0.5 + torch.rand(t.shape, generator=generator),
        Role.VARIANCE: lambda t: 0.5 + torch.rand(t.shape, generator=generator),
    }
    tensors = copied.state_dict()
    with torch.no_grad():
        for parameter in table.parameters:
            tensor = tensors[parameter.name]
            if parameter.role in draws:
                tensor.copy_(draws[parameter.role](tensor))
            elif parameter.name.rpartition(".")[2] == "running_mean":
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return copied.requires_grad_(True)


def _other_order(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of 0..count-1 in which nothing stays in its place."""
    chain = rng.permutation(count)
    order = np.empty(count, dtype=np.int64)
    order[chain] = np.roll(chain, 1)
    return order


def _run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(inputs)
    if not isinstance(outputs, torch.Tensor):
        raise TaskError(f"model returns {type(outputs).__name__}, expected a tensor of scores")
    return outputs


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
