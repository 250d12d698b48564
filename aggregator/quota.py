"""How much of one device's uploads an aggregator looks at in a round (docs/protocol.md §4.2). Rules only."""

from __future__ import annotations

from typing import Final

from fedpruneshare.plan import PlanView
from fedpruneshare.quota import Allowance
from fedpruneshare.sealing import ENVELOPE_BYTES
from fedpruneshare.wire_types import MAX_SEAL_BYTES

#: Header of a `ShareUpload` around what is sealed, at most.
_HEADER_BYTES: Final = 512
#: Questions a device may ask beyond its uploads (each is one chunk sent again): some at once, then one a second.
_QUESTIONS: Final = 64


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
