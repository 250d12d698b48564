"""From updates that were not shared to their sums (docs/protocol.md §5.10): what sharing is compared with. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import structlog

from coordinator.answers import Opened
from fedpruneshare.errors import ProtocolError, SharingError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import Contribution, Freeze
from fedpruneshare.plain import PlainSegment
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.field import from_bytes

_log = structlog.get_logger()


def open_plain(view: PlanView, freeze: Freeze, answers: Mapping[int, bytes]) -> Opened:
    """Read every update the aggregator passed on, and add them up in the Freeze's order, as float64.

    What no device may send is left out of the sum, and named. Nothing tells whether the aggregator passed on what it
    was sent, so the result is unverified. Raises `ProtocolError` if too few updates are sound.
    """
    [answer] = answers.values()
    updates: dict[Contribution, list[PlainSegment]] = {}
    refused, start = [], 0
    for contributor in freeze.contributors:
        end = start + view.share_bytes(contributor.rung, 1)
        try:
            updates[contributor] = _read_update(view, contributor.rung, answer[start:end])
        except SharingError as error:
            _log.warning("update-refused", device=contributor.device_id, reason=str(error))
            refused.append(contributor.device_id)
        start = end
    rungs = [contributor.rung for contributor in updates]
    segments = open_segments(rungs, view.rungs, view.plan.min_devices, view.plan.min_devices_segment)
    if not segments:
        expected = f"expected min_devices = {view.plan.min_devices}; not those of {', '.join(refused)}"
        raise ProtocolError(f"{len(updates)} updates are sound, {expected}")
    sums = {
        index: _weighted_sum([parts[index] for parts in updates.values() if len(parts) > index]) for index in segments
    }
    return Opened({}, tuple(updates), tuple(answers), "", left_out_devices=tuple(refused), plain=sums)


def _read_update(view: PlanView, rung: int, data: bytes) -> list[PlainSegment]:
    """The segments of one update. Raises `SharingError` for a weight or number that no device may send."""
    words, parts, start = from_bytes(data, view.upload_words(rung), view.field), [], 0
    for segment in view.plan.segments[: rung + 1]:
        own = words[start : start + segment.words]
        parts.append(view.plain_layout.unpack(own, segment.vectors, segment.weights))
        start += segment.words
    return parts


def _weighted_sum(parts: Sequence[PlainSegment]) -> PlainSegment:
    """Σw, Σw·v of one segment over those who sent it."""
    vectors, values = np.zeros(parts[0].vectors.size), np.zeros(parts[0].values.size)
    for part in parts:
        vectors += part.weight * part.vectors
        values += part.weight * part.values
    return PlainSegment(sum(part.weight for part in parts), vectors, values)
