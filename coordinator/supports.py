"""What a round publishes of the model: densities, widths, supports, probes (docs/protocol.md §6.2, §6.3, §6.7).

Deterministic: after a restart the same state gives the same supports and blobs.
"""

from __future__ import annotations

import asyncio
import math

import numpy as np
from numpy.typing import NDArray

from coordinator.planning import ModelState, PublishedModel, TaskFacts
from coordinator.settings import CoordinatorSettings
from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.messages import SupportRule
from fedpruneshare.sparse.channels import (
    Groups,
    Kept,
    coordinates,
    nested_channels,
    pack_channels,
    rank_channels,
    unpack_channels,
)
from fedpruneshare.sparse.model_coding import SegmentWriter
from fedpruneshare.sparse.support import DensitySchedule, Frame, Support, decode_values, derive_support, rung_counts

#: float16 codes of one doubling: what a churn tolerance is measured in.
_CODES_PER_DOUBLING = 1024


def density_of(settings: CoordinatorSettings, applied: int) -> float:
    """Density of the round after so many applied ones."""
    p = settings.pruning
    schedule = DensitySchedule(p.start_density, p.target_density, p.dense_rounds, p.final_round)
    return schedule.density(applied)


def probe_count(settings: CoordinatorSettings, applied: int, d: int) -> int:
    """Coordinates of the probe segment of the round after so many applied ones; 0 once probing is over."""
    p = settings.pruning
    end = p.probe_until or math.floor(0.75 * settings.rounds.count)
    return math.floor(p.probe * d + 0.5) if applied < end else 0


def check_widths(settings: CoordinatorSettings, groups: Groups, why_not: str) -> None:
    """Raise `SettingsError` where narrower rungs are wanted of a model without channel groups, for a reason."""
    widths = settings.pruning.widths
    if widths and widths[0] < 1.0 and not groups:
        fault = Fault("pruning.widths", str(list(widths)), "none: this model cannot be cut", why_not)
        raise SettingsError("settings do not fit the task", (fault,))


def publish_model(state: ModelState, round_id: int, settings: CoordinatorSettings, facts: TaskFacts) -> PublishedModel:
    """Derive the supports of a round and code the model along them. Widths need channel groups (`check_widths`)."""
    pruning, table, d = settings.pruning, facts.table, state.coded.size
    widths = pruning.widths or (1.0,) * len(pruning.rungs)
    kept = _channels(state, widths, facts, pruning.churn_tolerance)
    counts = rung_counts(d, pruning.rungs, density_of(settings, state.applied))
    probes = min(probe_count(settings, state.applied, d), d - counts[-1])
    if probes:
        widths, kept = (*widths, 1.0), (*kept, None)
    churn = round(_CODES_PER_DOUBLING * math.log2(1.0 + pruning.churn_tolerance))
    rule = SupportRule(pruning.allocation, churn, bool(probes))
    exist = [coordinates(table, facts.groups, own) if own else _everything(facts) for own in kept]
    frame = Frame(table, rule, tuple(weights for weights, _ in exist) if widths[0] < 1.0 else ())
    is_fresh = state.applied % pruning.probe_every == 0
    coded, support = _support(state, round_id, (counts, probes), frame, is_fresh=is_fresh)
    support = Support(d, support.segments, _added([vectors for _, vectors in exist]))
    return PublishedModel(
        support=support,
        densities=tuple((np.cumsum([part.size for part in support.segments]) / d).tolist()),
        widths=widths,
        rule=rule,
        blobs=_blobs(coded, state.vectors, support, facts, tuple(zip(widths, kept, strict=True))),
        coded=coded,
        channels=tuple(pack_channels(own) if own else b"" for own in kept),
    )


class Press:
    """Publishes the model of a round once, however often it is asked for, and in a thread.

    With 11 million weights that takes seconds, in which the coordinator would hear nobody and the round's time ran out.
    """

    def __init__(self, settings: CoordinatorSettings, facts: TaskFacts) -> None:
        self._settings, self._facts = settings, facts
        self._newest: tuple[int, PublishedModel] | None = None

    async def publish(self, state: ModelState, round_id: int) -> PublishedModel:
        """As `publish_model`; a round's state is always the same."""
        if self._newest is None or self._newest[0] != round_id:
            published = await asyncio.to_thread(publish_model, state, round_id, self._settings, self._facts)
            self._newest = (round_id, published)
        return self._newest[1]


def _channels(
    state: ModelState, widths: tuple[float, ...], facts: TaskFacts, tolerance: float
) -> tuple[Kept | None, ...]:
    """The channels of every rung; None where all are kept."""
    narrow = [width for width in widths if width < 1.0]
    if not narrow:
        return (None,) * len(widths)
    magnitudes = np.abs(decode_values(state.coded))
    scores = rank_channels(magnitudes, facts.table, facts.groups)
    last = tuple(unpack_channels(bitmap, facts.groups) for bitmap in state.last_channels[: len(narrow)] if bitmap)
    kept = nested_channels(scores, facts.groups, narrow, last, tolerance)
    return (*kept, *(None,) * (len(widths) - len(narrow)))


def _everything(facts: TaskFacts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return np.ones(facts.table.weight_count, dtype=np.bool_), np.ones(facts.table.vector_count, dtype=np.bool_)


def _support(
    state: ModelState, round_id: int, sizes: tuple[tuple[int, ...], int], frame: Frame, *, is_fresh: bool
) -> tuple[NDArray[np.uint16], Support]:
    """The values to publish and their supports. A fresh probe starts from zeros that the round's hash draws."""
    counts, probes = sizes
    if not probes:
        return state.coded, derive_support(state.coded, round_id, counts, frame, state.last_rungs)
    rungs = Frame(frame.table, SupportRule(frame.rule.allocation, frame.rule.churn_codes), frame.coordinates[:-1])
    inner = derive_support(state.coded, round_id, counts, rungs, state.last_rungs)
    coded = state.coded.copy()
    if is_fresh:
        coded[inner.rung_of() >= len(counts)] = 0
    held = sum(part.size for part in inner.segments)
    return coded, derive_support(coded, round_id, (*counts, max(held, counts[-1]) + probes), frame, state.last_rungs)


def _added(exist: list[NDArray[np.bool_]]) -> tuple[NDArray[np.int64], ...]:
    """Vector elements that each segment adds to the ones before."""
    before = [np.zeros_like(exist[0]), *exist[:-1]]
    return tuple(np.flatnonzero(now & ~then).astype(np.int64) for now, then in zip(exist, before, strict=True))


def _blobs(
    coded: NDArray[np.uint16],
    vectors: NDArray[np.float32],
    support: Support,
    facts: TaskFacts,
    rungs: tuple[tuple[float, Kept | None], ...],
) -> tuple[bytes, ...]:
    writer = SegmentWriter(facts.table, facts.groups if rungs[0][0] < 1.0 else ())
    return tuple(
        writer.write(positions, coded[positions], vectors[elements], width, kept or ())
        for positions, elements, (width, kept) in zip(support.segments, support.vectors, rungs, strict=True)
    )
