"""Every wire message, one `encode`, one `decode` (docs/protocol.md §1.3, §4).

A message is a frozen struct that refuses unknown fields, the body of a signed `Envelope` (`fedpruneshare.sealing`). Who
sent it stands in the envelope only. Structs are coded as MessagePack arrays: field order is part of the protocol.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.errors import MessageError
from fedpruneshare.plan_messages import (
    Coding,
    ModelChunk,
    Reveal,
    RoundPlan,
    Segment,
    Sharing,
    SupportRule,
    Training,
    WireMessage,
)
from fedpruneshare.wire_types import (
    KEY_ID_BYTES,
    MAX_AGGREGATORS,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_DEVICES,
    MAX_SEAL_BYTES,
    MAX_SEGMENTS,
    MAX_TENSORS,
    SEAL_BYTES,
    Chunk,
    Chunks,
    Digest,
    Identifier,
    KeyId,
    Keystream,
    Point,
    Reason,
    RoundId,
    Rung,
    Sealed,
    Suite,
    UploadId,
)

__all__ = [
    "KEY_ID_BYTES",
    "KINDS",
    "KIND_OF",
    "MAX_AGGREGATORS",
    "MAX_CHUNKS",
    "MAX_CHUNK_BYTES",
    "MAX_DEVICES",
    "MAX_SEGMENTS",
    "MAX_TENSORS",
    "SEAL_BYTES",
    "Acceptance",
    "Attendance",
    "CheckReply",
    "ChecksumSeed",
    "Chunk",
    "Chunks",
    "Coding",
    "Contribution",
    "DealerCheck",
    "Decline",
    "Digest",
    "DirectoryChunk",
    "Freeze",
    "Heartbeat",
    "Hello",
    "Identifier",
    "KeyId",
    "Keystream",
    "Message",
    "Missing",
    "ModelChunk",
    "Outcome",
    "Point",
    "Reason",
    "Receipt",
    "Refusal",
    "Reveal",
    "RoundId",
    "RoundPhase",
    "RoundPlan",
    "Rung",
    "Segment",
    "ShareUpload",
    "Sharing",
    "Suite",
    "SumShare",
    "SupportRule",
    "Training",
    "UploadId",
    "Verdict",
    "decode",
    "digest",
    "encode",
]  # fmt: skip


# --------------------------------------------------------------------------- to every party


class ChecksumSeed(WireMessage, frozen=True):
    """The seed of the hidden checksum, sealed to one device of the cohort (docs/protocol.md §5.11)."""

    round_id: RoundId
    plan: Digest
    suite: Suite
    key: KeyId
    sealed: Annotated[bytes, Meta(max_length=32 + MAX_SEAL_BYTES)]


class DirectoryChunk(WireMessage, frozen=True):
    """One chunk of the newest directory file, which the root has signed (docs/protocol.md §7.1)."""

    version: Annotated[int, Meta(ge=1)]
    digest: Digest
    chunk: Chunk
    chunks: Annotated[int, Meta(ge=1, le=1024)]
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]


# --------------------------------------------------------------------------- the device


class Hello(WireMessage, frozen=True):
    """A device is there; `rung_limit` is the highest rung it says it can train."""

    software: Annotated[str, Meta(max_length=64)]
    rung_limit: Rung


class Heartbeat(WireMessage, frozen=True):
    """How a device fared in its last round; bytes are MQTT payload over all its brokers."""

    round_id: RoundId
    rung: Rung
    constraint: Annotated[str, Meta(max_length=64)]
    train_s: float
    upload_s: float
    sent_bytes: Annotated[int, Meta(ge=0)]
    received_bytes: Annotated[int, Meta(ge=0)]


class Decline(WireMessage, frozen=True):
    """A device will not upload in this round, and why."""

    round_id: RoundId
    plan: Digest
    reason: Reason


class ShareUpload(WireMessage, frozen=True):
    """One sealed chunk of one device's share for one aggregator (docs/protocol.md §4.2).

    `prg`: the keystream algorithm of this upload's seed shares, the device's choice, as is `suite` among the plan's.
    `key`: which of the aggregator's sealing keys. Everything but `sealed` is bound into the seal. No digest of the
    plaintext is in the clear: with t shares known it would confirm a guess.
    """

    round_id: RoundId
    plan: Digest
    upload_id: UploadId
    x: Point
    rung: Rung
    prg: Keystream
    chunk: Chunk
    chunks: Chunks
    suite: Suite
    key: KeyId
    sealed: Sealed


# --------------------------------------------------------------------------- the aggregator


class Verdict(StrEnum):
    """What an aggregator says of an upload."""

    ACCEPTED = "accepted"
    LATE = "late"
    WRONG_ROUND = "wrong-round"
    NOT_IN_COHORT = "not-in-cohort"
    TOO_MANY_UPLOADS = "too-many-uploads"
    MALFORMED = "malformed"
    STORE_FULL = "store-full"


class Receipt(WireMessage, frozen=True):
    """The aggregator has committed all chunks of an upload, or says why it will not (docs/protocol.md §3.2)."""

    round_id: RoundId
    upload_id: UploadId
    verdict: Verdict
    detail: Reason = ""


class Missing(WireMessage, frozen=True):
    """Which chunks of an upload the aggregator lacks: bit i of `bitmap` (little-endian) is chunk i."""

    round_id: RoundId
    upload_id: UploadId
    bitmap: Annotated[bytes, Meta(min_length=1, max_length=MAX_CHUNKS // 8)]


class Contribution(WireMessage, frozen=True):
    """One complete upload: of whom, which attempt, how far up the rungs."""

    device_id: Identifier
    upload_id: UploadId
    rung: Rung


class Attendance(WireMessage, frozen=True):
    """The complete uploads one aggregator holds (docs/protocol.md §4.3). Up to two attempts per device."""

    round_id: RoundId
    plan: Digest
    uploads: Annotated[tuple[Contribution, ...], Meta(max_length=2 * MAX_DEVICES)]
    declined: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_DEVICES)]


class CheckReply(WireMessage, frozen=True):
    """One aggregator's share of each contributor's masked combination (docs/protocol.md §5.7).

    `values`: field elements, little-endian, check by check of contributor by contributor, in the order of the
    `DealerCheck` whose digest is `check`.
    """

    round_id: RoundId
    check: Digest
    x: Point
    values: Annotated[bytes, Meta(min_length=4, max_length=MAX_DEVICES * 4 * 8)]


class SumShare(WireMessage, frozen=True):
    """One chunk of an aggregator's sum, sealed to the coordinator (docs/protocol.md §4.5)."""

    round_id: RoundId
    freeze: Digest
    x: Point
    chunk: Chunk
    chunks: Chunks
    suite: Suite
    key: KeyId
    sealed: Sealed


class Acceptance(WireMessage, frozen=True):
    """This aggregator has committed a Freeze or DealerCheck, and will accept no other one in this round (§4.5)."""

    round_id: RoundId
    of: Digest


class Refusal(WireMessage, frozen=True):
    """An aggregator will not serve this plan, or sum this Freeze, and why. `of`: digest of what it refuses."""

    round_id: RoundId
    of: Digest
    reason: Reason


# --------------------------------------------------------------------------- the coordinator's decisions


class DealerCheck(WireMessage, frozen=True):
    """Asks for combinations of the contributors' shares under a public challenge (docs/protocol.md §5.7).

    One per round, for ever: two challenges under the same masks would show a combination of a device's values.
    """

    round_id: RoundId
    plan: Digest
    challenge: Digest
    aggregators: Annotated[tuple[Identifier, ...], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    contributors: Annotated[tuple[Contribution, ...], Meta(min_length=1, max_length=MAX_DEVICES)]


class Freeze(WireMessage, frozen=True):
    """Who is summed, by whom, and which segments are opened (docs/protocol.md §4.4). One per round, for ever."""

    round_id: RoundId
    plan: Digest
    aggregators: Annotated[tuple[Identifier, ...], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    contributors: Annotated[tuple[Contribution, ...], Meta(min_length=1, max_length=MAX_DEVICES)]
    segments: Annotated[tuple[Rung, ...], Meta(min_length=1, max_length=MAX_SEGMENTS)]


class RoundPhase(StrEnum):
    """Where a round stands (docs/protocol.md §4)."""

    PLANNED = "PLANNED"
    COLLECTING = "COLLECTING"
    FROZEN = "FROZEN"
    APPLIED = "APPLIED"
    FAILED = "FAILED"


class Outcome(WireMessage, frozen=True):
    """The coordinator's authoritative close of a round (docs/protocol.md §4.7)."""

    round_id: RoundId
    phase: RoundPhase
    reason: Reason = ""


Message = (
    RoundPlan
    | ModelChunk
    | ChecksumSeed
    | DirectoryChunk
    | Hello
    | Heartbeat
    | Decline
    | ShareUpload
    | Receipt
    | Missing
    | Attendance
    | DealerCheck
    | CheckReply
    | SumShare
    | Acceptance
    | Refusal
    | Freeze
    | Outcome
)

# --------------------------------------------------------------------------- coding

_KIB: Final = 1024
#: kind -> (type, largest body in bytes). The bound is checked before a byte is decoded.
KINDS: Final[dict[str, tuple[type[Message], int]]] = {
    "round-plan": (RoundPlan, 224 * _KIB),
    "model-chunk": (ModelChunk, MAX_CHUNK_BYTES + 512),
    "checksum-seed": (ChecksumSeed, 2 * _KIB),
    "directory-chunk": (DirectoryChunk, MAX_CHUNK_BYTES + 512),
    "hello": (Hello, 512),
    "heartbeat": (Heartbeat, 512),
    "decline": (Decline, 2 * _KIB),
    "share-upload": (ShareUpload, MAX_CHUNK_BYTES + MAX_SEAL_BYTES + 512),
    "receipt": (Receipt, 2 * _KIB),
    "missing": (Missing, MAX_CHUNKS // 8 + 256),
    "attendance": (Attendance, 224 * _KIB),
    "dealer-check": (DealerCheck, 224 * _KIB),
    "check-reply": (CheckReply, MAX_DEVICES * 4 * 8 + 512),
    "sum-share": (SumShare, MAX_CHUNK_BYTES + MAX_SEAL_BYTES + 512),
    "acceptance": (Acceptance, 128),
    "refusal": (Refusal, 2 * _KIB),
    "freeze": (Freeze, 224 * _KIB),
    "outcome": (Outcome, 2 * _KIB),
}
KIND_OF: Final[dict[type, str]] = {message_type: kind for kind, (message_type, _) in KINDS.items()}

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoders = {kind: msgspec.msgpack.Decoder(message_type) for kind, (message_type, _) in KINDS.items()}


def encode(message: Message) -> bytes:
    """A message -> its body bytes (MessagePack array, fields in order)."""
    return _encoder.encode(message)


def decode(kind: str, body: bytes) -> Message:
    """Body bytes of a named kind -> the message.

    Raises `MessageError` for an unknown kind, a body over the kind's bound, or anything but exactly one
    well-formed message (unknown or missing fields, wrong types, values out of range, trailing bytes).
    """
    if kind not in KINDS:
        raise MessageError(f"unknown message kind {kind[:40]!r}, expected one of {', '.join(KINDS)}")
    limit = KINDS[kind][1]
    if len(body) > limit:
        raise MessageError(f"{kind}: body of {len(body)} bytes, expected at most {limit}")
    try:
        return _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{kind}: {error}") from None


def digest(body: bytes) -> bytes:
    """SHA-256 of exact body bytes: how plans and freezes are named in other messages."""
    return hashlib.sha256(body).digest()
