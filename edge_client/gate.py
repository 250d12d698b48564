"""The model gate: what a device refuses to train on, before it trains (docs/protocol.md §4.2, docs/threat-model.md).

A published model can be made so that the sum of updates tells more of single devices than it should: layers blown up
until few examples matter, units switched off so that the others' gradients stand alone, norm parameters that pick
examples out. The gate compares a model with the last one this device took. It is a partial defence: a change spread
over enough rounds passes. Its bounds lie far outside of what averaging with clipped updates does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.receiving import ReceivedModel
from edge_client.settings import GateSettings
from edge_client.training import count_steps
from fedpruneshare.errors import GateError
from fedpruneshare.messages import Training
from fedpruneshare.sparse.parameters import Parameter, ParameterTable, Role

Floats = NDArray[np.float32]

#: Root mean squares below these may grow freely: small weights, and vectors, which begin at zero.
_WEIGHT_FLOOR, _VECTOR_FLOOR = 0.1, 1.0
#: A unit of inputs about 1 is off for good where its bias is below this many times the sum of its weights' sizes.
_OFF_FACTOR: Final = 10.0
_MOST_GROWTH: Final = 1e6


@dataclass(frozen=True)
class Known:
    """A model that was taken: weights float32[d] and vectors float32[v], zero where there was nothing."""

    version: int
    weights: Floats
    vectors: Floats


def check_model(
    received: ReceivedModel,
    version: int,
    table: ParameterTable,
    settings: GateSettings,
    before: Known | None,
    has_probe: bool = False,
) -> Known:
    """Take a model, or raise `GateError` with what was found and expected.

    `version`: its number of applied rounds; `before`: the last model that was taken, None at first. `has_probe`: its
    last segment is a probe, whose weights begin at zero again when another one is drawn (docs/protocol.md §6.3).
    """
    weights, vectors = received.full_size(table)
    if not (np.isfinite(weights).all() and np.isfinite(vectors).all()):
        raise GateError("model gate: a value of the model is not finite")
    found = Known(version, weights, vectors)
    is_there = np.zeros(weights.size, dtype=bool)
    is_there[np.concatenate(received.positions[: max(1, len(received.positions) - has_probe)])] = True
    _check_sizes(found, table, settings)
    if before is not None:
        _check_growth(found, before, table, settings)
    _check_units(found, before, is_there, (table, settings))
    return found


def _check_sizes(found: Known, table: ParameterTable, settings: GateSettings) -> None:
    """Scales and variances of norms, and everything else, stay within absolute bounds."""
    weights = ((parameter, values, settings.value_max) for parameter, values in _each(table.weights(), found.weights))
    vectors = (
        (parameter, values, settings.scale_max if _is_scale(parameter) else settings.value_max)
        for parameter, values in _each(table.vectors(), found.vectors)
    )
    for parameter, values, most in (*weights, *vectors):
        largest = float(np.abs(values).max(initial=0.0))
        if largest > most:
            raise GateError(f"model gate: {parameter.name!r} reaches {largest:.4g}, expected at most {most:g}")
        if parameter.role is Role.VARIANCE and float(values.min(initial=0.0)) < 0:
            raise GateError(f"model gate: {parameter.name!r} has a variance below zero")


def _check_growth(found: Known, before: Known, table: ParameterTable, settings: GateSettings) -> None:
    """No tensor's root mean square grows faster than `growth` a round, over what both models have of it."""
    rounds = max(1, found.version - before.version)
    with np.errstate(over="ignore"):
        growth = min(float(np.float64(settings.growth) ** rounds), _MOST_GROWTH)
    sides = (
        (table.weights(), before.weights, found.weights, _WEIGHT_FLOOR),
        (table.vectors(), before.vectors, found.vectors, _VECTOR_FLOOR),
    )
    for parameters, old, new, floor in sides:
        for (parameter, was), (_, now) in zip(_each(parameters, old), _each(parameters, new), strict=True):
            is_common = was != 0 if parameter.role is Role.WEIGHT else np.ones(was.size, dtype=bool)
            was_rms, now_rms = _rms(was[is_common]), _rms(now[is_common])
            most = growth * max(was_rms, floor)
            if now_rms > most:
                raise GateError(
                    f"model gate: {parameter.name!r} went from {was_rms:.4g} to {now_rms:.4g} (root mean square) in "
                    f"{rounds} rounds, expected at most {most:.4g} (gate.growth = {settings.growth:g} a round)"
                )


def _check_units(
    found: Known, before: Known | None, is_there: NDArray[np.bool_], by: tuple[ParameterTable, GateSettings]
) -> None:
    """No layer loses most of its units at once: to zeros, or to biases that no input outweighs."""
    table, settings = by
    biases = dict(_named_biases(table, found.vectors))
    old_biases = dict(_named_biases(table, before.vectors)) if before else {}
    old = before.weights if before else found.weights
    sides = [_each(table.weights(), flat) for flat in (found.weights, old, is_there)]
    for (parameter, now), (_, was), (_, there) in zip(*sides, strict=True):
        if parameter.channel_axis is None:
            continue
        mass, old_mass, present = (_by_unit(parameter, np.abs(part)) for part in (now, was * there, there))
        counted = (present > 0) & (old_mass > 0)
        is_off = mass == 0
        bias, old_bias = biases.get(parameter.name), old_biases.get(parameter.name)
        if bias is not None and bias.size == mass.size:
            is_off |= _is_switched_off(bias, mass)
            if old_bias is not None:
                counted &= ~_is_switched_off(old_bias, old_mass)
        off, of = int((is_off & counted).sum()), int(counted.sum())
        if off > 1 and off > settings.dead_share * of:
            raise GateError(
                f"model gate: {off} of {of} units of {parameter.name!r} went dead at once, expected at most "
                f"{settings.dead_share:.0%} (gate.dead_share)"
            )


def _is_switched_off(bias: Floats, mass: Floats) -> NDArray[np.bool_]:
    off: NDArray[np.bool_] = (bias < -1.0) & (bias < -_OFF_FACTOR * mass)
    return off


def _each(parameters: list[Parameter], flat: NDArray[Any]) -> Iterator[tuple[Parameter, NDArray[Any]]]:
    ends = np.cumsum([parameter.size for parameter in parameters])
    return zip(parameters, np.split(flat, ends[:-1]) if parameters else [], strict=True)


def _by_unit(parameter: Parameter, values: NDArray[Any]) -> Floats:
    """The sum over each unit of a layer, [C]."""
    axes = tuple(axis for axis in range(len(parameter.shape)) if axis != parameter.channel_axis)
    sums: Floats = values.reshape(parameter.shape).astype(np.float32, copy=False).sum(axis=axes)
    return sums


def _named_biases(table: ParameterTable, vectors: Floats) -> Iterator[tuple[str, Floats]]:
    """Biases by the name of the weight they belong to."""
    for parameter, values in _each(table.vectors(), vectors):
        head, _, tail = parameter.name.rpartition(".")
        if tail == "bias":
            yield (f"{head}.weight" if head else "weight"), values


def _is_scale(parameter: Parameter) -> bool:
    """A vector called weight scales a norm."""
    return parameter.role is Role.VECTOR and parameter.name.rpartition(".")[2] == "weight"


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


# --------------------------------------------------------------------------- steps


def batch_size(examples: int, training: Training, settings: GateSettings) -> int:
    """The plan's batch size; where all it asks for is one step, half of the examples.

    One step is one gradient, from which examples can be computed back; with two, the second one starts elsewhere.
    """
    steps = count_steps(examples, training.batch_size) * training.local_epochs
    return training.batch_size if steps >= settings.least_steps else max(1, -(-examples // 2))


def check_steps(steps: int, settings: GateSettings) -> None:
    """Raises `GateError` where fewer steps than `least_steps` would be trained."""
    if steps < settings.least_steps:
        raise GateError(f"model gate: {steps} local steps, expected at least {settings.least_steps} (gate.least_steps)")
