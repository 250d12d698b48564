"""How much of one device is looked at in a round, counted before any signature (docs/protocol.md §4.2). Rules only.

A signature costs more than counting does. What is above the quota, of nobody on the roster, or longer than the plan
allows is dropped unanswered, so that a device gone wrong, or somebody on a broker that checks no names, takes from
nobody but that device.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import ENVELOPE_BYTES
from fedpruneshare.wire_types import MAX_SEAL_BYTES

#: Header of a `ShareUpload` around what is sealed, at most.
_HEADER_BYTES: Final = 512
#: Questions a device may ask beyond its uploads (each is one chunk sent again): some at once, then one a second.
_QUESTIONS: Final = 64
#: Messages of a device while no round has been open yet.
_MESSAGES_WITHOUT_A_ROUND: Final = 256


@dataclass(frozen=True)
class Allowance:
    """What one device may send in a round. `longest_bytes`: of one message."""

    messages: int
    total_bytes: int
    longest_bytes: int


def allowance(view: PlanView, x: int, uploads: int) -> Allowance:
    """So many whole uploads at the highest rung, and the questions of a device that waits for its receipt."""
    share_bytes = view.share_bytes(view.plan.rungs[-1], x)
    chunks = view.chunks(share_bytes)
    around = ENVELOPE_BYTES + _HEADER_BYTES + MAX_SEAL_BYTES
    longest = min(view.plan.chunk_bytes, share_bytes) + around
    questions = _QUESTIONS + int(view.plan.deadline_s)
    return Allowance(
        uploads * chunks + questions, uploads * (share_bytes + chunks * around) + questions * longest, longest
    )


class Quota:
    """Counts what each device has sent since the open round began."""

    def __init__(self, longest_bytes: int) -> None:
        """`longest_bytes`: of a message while no round has been open yet."""
        messages = _MESSAGES_WITHOUT_A_ROUND
        self._allowed = Allowance(messages, messages * longest_bytes, longest_bytes)
        self._messages: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def open_round(self, allowed: Allowance) -> None:
        """Begin to count anew."""
        self._allowed = allowed
        self._messages, self._bytes = {}, {}

    def refuse(self, device_id: str, size_bytes: int, roster: Container[str]) -> str:
        """Count one message of a device; why it is not to be looked at, empty if it may be."""
        if device_id not in roster:
            return "not on the roster"
        messages, total = self._messages.get(device_id, 0) + 1, self._bytes.get(device_id, 0) + size_bytes
        self._messages[device_id], self._bytes[device_id] = messages, total
        if size_bytes > self._allowed.longest_bytes:
            return f"message of {size_bytes} bytes, expected at most {self._allowed.longest_bytes}"
        if messages > self._allowed.messages:
            return f"message {messages} of this round, expected at most {self._allowed.messages}"
        if total > self._allowed.total_bytes:
            return f"{total} bytes in this round, expected at most {self._allowed.total_bytes}"
        return ""
