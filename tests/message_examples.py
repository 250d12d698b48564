"""One message of every kind."""

from __future__ import annotations

from builders import plan

from fedpruneshare.messages import (
    Acceptance,
    Attendance,
    CheckReply,
    ChecksumSeed,
    Contribution,
    DealerCheck,
    Decline,
    DirectoryChunk,
    Freeze,
    Heartbeat,
    Hello,
    Message,
    Missing,
    ModelChunk,
    Outcome,
    Receipt,
    Refusal,
    RoundPhase,
    ShareUpload,
    Suite,
    SumShare,
    Verdict,
)

_D = bytes(range(32))
_U = bytes(range(16))
EXAMPLES: dict[str, Message] = {
    "round-plan": plan(),
    "model-chunk": ModelChunk(1, _D, 2, 3, b"data"),
    "checksum-seed": ChecksumSeed(3, _D, Suite.X25519_AES256, bytes(8), bytes(80)),
    "directory-chunk": DirectoryChunk(2, _D, 0, 1, b"data"),
    "hello": Hello("0.1.0", 2),
    "heartbeat": Heartbeat(3, 1, "plan", 1.5, 0.25, 10_000, 20_000),
    "decline": Decline(3, _D, "too hot"),
    "share-upload": ShareUpload(3, _D, _U, 2, 1, "chacha20", 0, 4, Suite.X25519_CHACHA20, bytes(8), bytes(60)),
    "receipt": Receipt(3, _U, Verdict.ACCEPTED),
    "missing": Missing(3, _U, b"\x05"),
    "attendance": Attendance(3, _D, (Contribution("device-01", _U, 1),), ("device-02",)),
    "dealer-check": DealerCheck(3, _D, _D, ("a", "b", "c"), (Contribution("device-01", _U, 1),)),
    "check-reply": CheckReply(3, _D, 2, bytes(8)),
    "sum-share": SumShare(3, _D, 2, 0, 1, Suite.XWING_AES256, bytes(8), bytes(60)),
    "acceptance": Acceptance(3, _D),
    "refusal": Refusal(3, _D, "below the floor"),
    "freeze": Freeze(3, _D, ("a", "b"), (Contribution("device-01", _U, 1),), (0, 1)),
    "outcome": Outcome(3, RoundPhase.APPLIED),
}
