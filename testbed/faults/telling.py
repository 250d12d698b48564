"""What messages and words mean as events of a history (docs/histories.md), in simulated and in real runs."""

from __future__ import annotations

from typing import Any, Final

from fedpruneshare.messages import Attendance, Contribution, Decline, Freeze, Message, RoundPlan, SumShare
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.digits import unshift

#: Kinds of messages that are events.
KINDS: Final = frozenset({"round-plan", "decline", "attendance", "freeze", "sum-share"})


def contributor(upload: Contribution) -> list[Any]:
    """A contributor as histories have it."""
    return [upload.device_id, upload.upload_id.hex(), upload.rung]


def told(sender: str, message: Message, name: bytes) -> tuple[str, dict[str, Any]]:
    """The event of a message of one of `KINDS`; `name`: digest of its body."""
    if isinstance(message, RoundPlan):
        return "plan", {
            "round": message.round_id, "plan": name.hex(), "version": message.model_version, "k": message.sharing.k,
            "points": dict(message.points), "cohort": list(message.cohort), "min_devices": message.min_devices,
            "min_devices_segment": message.min_devices_segment, "segments": len(message.segments),
            "model": [segment.blob.hex() for segment in message.segments], "deadline_s": message.deadline_s,
        }  # fmt: skip
    if isinstance(message, Decline):
        return "decline", {"round": message.round_id, "device": sender, "reason": message.reason}
    if isinstance(message, Attendance):
        uploads = [contributor(upload) for upload in message.uploads]
        return "attendance", {"round": message.round_id, "aggregator": sender, "uploads": uploads}
    if isinstance(message, Freeze):
        return "freeze-signed", {
            "round": message.round_id, "freeze": name.hex(), "aggregators": list(message.aggregators),
            "contributors": [contributor(upload) for upload in message.contributors],
            "segments": list(message.segments),
        }  # fmt: skip
    assert isinstance(message, SumShare)
    return "sum-released", {"round": message.round_id, "freeze": message.freeze.hex(), "aggregator": sender}


def values_of(view: PlanView, words: dict[int, Any], uploads: dict[int, int]) -> dict[int, list[int]]:
    """What words of so many uploads say, all by segment: values, vector elements and weight, as integers."""
    found, coding = {}, view.plan.coding
    for index, own in words.items():
        segment = view.plan.segments[index]
        part = view.layout.unpack(own, segment.vectors, segment.weights)
        values = unshift(part.values, coding.value_bits, uploads[index]).tolist()
        vectors = unshift(part.vectors, coding.vector_bits, uploads[index]).tolist()
        found[index] = [*map(int, values), *map(int, vectors), int(part.weight)]
    return found
