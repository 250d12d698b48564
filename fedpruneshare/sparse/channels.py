"""Channel groups: which axes of which arrays must be cut together, and what is left of a model at a width.

A group is a set of channels that only exist as a whole: the output filters of one layer, what reads them in the next,
their biases and norm parameters. Groups are found once, by `task export`; the plan carries them (docs/protocol.md
§6.7). Kept channels are nested: a wider rung keeps all channels of a narrower one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedpruneshare.errors import PlanError
from fedpruneshare.sparse.parameters import Parameter, ParameterTable

#: One bool array per group: which of its channels are kept.
Kept = tuple[NDArray[np.bool_], ...]

MAX_GROUPS: Final = 1024
MAX_CUTS: Final = 4096


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a group's channels lie in one array: channel c owns `offset + c·block` to `+ block − 1` along `axis`.

    `parameter` is the array's place in the parameter table. A block is larger than 1 where a feature map was flattened.
    """

    parameter: Annotated[int, Meta(ge=0, lt=2**16)]
    axis: Annotated[int, Meta(ge=0, le=7)]
    offset: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    block: Annotated[int, Meta(ge=1, lt=2**31)] = 1


class ChannelGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Channels that are kept or cut as wholes. Each of `parts` equal runs of them keeps as many (norm groups)."""

    channels: Annotated[int, Meta(ge=1, lt=2**24)]
    parts: Annotated[int, Meta(ge=1, lt=2**24)]
    cuts: Annotated[tuple[Cut, ...], Meta(min_length=1, max_length=MAX_CUTS)]


Groups = tuple[ChannelGroup, ...]


def check_groups(groups: Groups, table: ParameterTable) -> None:
    """Raise `PlanError` unless every cut lies within its array and no place is cut twice."""
    taken: dict[tuple[int, int], NDArray[np.bool_]] = {}
    for number, group in enumerate(groups):
        if group.channels % group.parts:
            raise PlanError(f"channel group {number}: {group.channels} channels, expected a multiple of {group.parts}")
        for cut in group.cuts:
            if cut.parameter >= len(table.parameters) or cut.axis >= len(table.parameters[cut.parameter].shape):
                raise PlanError(f"channel group {number}: no axis {cut.axis} of array {cut.parameter} in the table")
            length = table.parameters[cut.parameter].shape[cut.axis]
            end = cut.offset + group.channels * cut.block
            if end > length:
                name = table.parameters[cut.parameter].name
                raise PlanError(f"channel group {number} reaches {end} along axis {cut.axis} of {name!r}, not {length}")
            places = taken.setdefault((cut.parameter, cut.axis), np.zeros(length, dtype=np.bool_))
            if places[cut.offset : end].any():
                raise PlanError(f"channel group {number}: axis {cut.axis} of array {cut.parameter} is cut twice")
            places[cut.offset : end] = True


def channel_count(groups: Groups) -> int:
    """Channels of all groups together: the length of a channel bitmap."""
    return sum(group.channels for group in groups)


def kept_per_part(group: ChannelGroup, width: float) -> int:
    """Channels that each part of a group keeps at a width: ⌈width · channels/parts⌉, at least 1."""
    return max(1, min(group.channels // group.parts, math.ceil(width * group.channels / group.parts - 1e-9)))


def all_kept(groups: Groups) -> Kept:
    """The full model."""
    return tuple(np.ones(group.channels, dtype=np.bool_) for group in groups)


def rank_channels(
    magnitudes: NDArray[np.float32], table: ParameterTable, groups: Groups
) -> tuple[NDArray[np.float64], ...]:
    """Mean magnitude of the weights each channel owns, float64[channels] per group. `magnitudes` float32[d]."""
    bounds = table.weight_bounds()
    places = {index: number for number, index in enumerate(_weight_places(table))}
    scores = []
    for group in groups:
        total, count = np.zeros(group.channels), 0
        for cut in group.cuts:
            if cut.parameter not in places:
                continue
            own = places[cut.parameter]
            array = magnitudes[bounds[own] : bounds[own + 1]].reshape(table.parameters[cut.parameter].shape)
            along = np.moveaxis(array, cut.axis, 0)[cut.offset : cut.offset + group.channels * cut.block]
            total += along.reshape(group.channels, -1).sum(axis=1, dtype=np.float64)
            count += along.size // group.channels
        scores.append(total / max(count, 1))
    return tuple(scores)


def nested_channels(
    scores: Sequence[NDArray[np.float64]],
    groups: Groups,
    widths: Sequence[float],
    incumbents: tuple[Kept, ...] = (),
    hysteresis: float = 0.0,
) -> tuple[Kept, ...]:
    """Kept channels at each of the rising `widths`, nested; the highest scores first, the lower index on a tie.

    `incumbents`: those of the round before at the same widths; theirs score (1 + hysteresis) times as much, so that two
    channels of nearly equal weight do not change places in every round.
    """
    result: list[Kept] = []
    for index, width in enumerate(widths):
        before = result[-1] if result else tuple(np.zeros(group.channels, dtype=np.bool_) for group in groups)
        stay = incumbents[index] if index < len(incumbents) else before
        result.append(
            tuple(
                _best(score * (1.0 + hysteresis * was), group, width, kept)
                for score, group, kept, was in zip(scores, groups, before, stay, strict=True)
            )
        )
    return tuple(result)


def _best(score: NDArray[np.float64], group: ChannelGroup, width: float, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The channels of one group: those already kept, then the best, in equal numbers from every part."""
    wanted = kept_per_part(group, width)
    rows = np.where(kept, np.inf, score).reshape(group.parts, -1)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :wanted]
    best = np.zeros(rows.shape, dtype=np.bool_)
    np.put_along_axis(best, order, True, axis=1)
    return best.reshape(-1)


def kept_indices(parameter: int, table: ParameterTable, groups: Groups, kept: Kept) -> tuple[NDArray[np.int64], ...]:
    """Kept indices int64 along every axis of one array: `array[np.ix_(*kept_indices(...))]` is what is left of it."""
    shape = table.parameters[parameter].shape
    along = [np.ones(length, dtype=np.bool_) for length in shape]
    for group, own in zip(groups, kept, strict=True):
        for cut in group.cuts:
            if cut.parameter == parameter:
                end = cut.offset + group.channels * cut.block
                along[cut.axis][cut.offset : end] = np.repeat(own, cut.block)
    return tuple(np.flatnonzero(axis).astype(np.int64) for axis in along)


def coordinates(table: ParameterTable, groups: Groups, kept: Kept) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which flat coordinates a cut model has: bool[d] of the weights and bool[v] of the vectors (§6.1)."""
    parts: dict[str, NDArray[np.bool_]] = {}
    for number, parameter in enumerate(table.parameters):
        mask = np.zeros(parameter.shape, dtype=np.bool_)
        mask[np.ix_(*kept_indices(number, table, groups, kept))] = True
        parts[parameter.name] = mask.reshape(-1)
    return _joined(table.weights(), parts), _joined(table.vectors(), parts)


def _joined(parameters: list[Parameter], parts: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.concatenate([np.empty(0, dtype=np.bool_), *(parts[parameter.name] for parameter in parameters)])


def _weight_places(table: ParameterTable) -> list[int]:
    """Places in the table of the prunable weights, in order."""
    names = {weight.name for weight in table.weights()}
    return [index for index, parameter in enumerate(table.parameters) if parameter.name in names]


def pack_channels(kept: Kept) -> bytes:
    """A channel bitmap: bit i%8 (least significant first) of byte i//8 is channel i, group after group."""
    return np.packbits(np.concatenate([np.empty(0, dtype=np.bool_), *kept]), bitorder="little").tobytes()


def unpack_channels(data: bytes, groups: Groups) -> Kept:
    """The reverse of `pack_channels`. Raises `PlanError` for another length or bits beyond the last channel."""
    total = channel_count(groups)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").astype(np.bool_)
    if len(data) != -(-total // 8) or bits[total:].any():
        raise PlanError(f"channel bitmap of {len(data)} bytes, expected one of {total} channels")
    bounds = np.cumsum([0, *(group.channels for group in groups)])
    return tuple(bits[start:end] for start, end in itertools.pairwise(bounds))
