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

# --------------------------------------------------------------------------- limits and small types

MAX_DEVICES: Final = 4096
MAX_AGGREGATORS: Final = 16
MAX_SEGMENTS: Final = 16
MAX_TENSORS: Final = 4096
MAX_CHUNKS: Final = 65_536
MAX_CHUNK_BYTES: Final = 192 * 1024
#: Bytes a seal adds to a chunk: 32 of encapsulated key and 16 of authentication tag (docs/protocol.md §7.3).
SEAL_BYTES: Final = 48

Identifier = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}$")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
UploadId = Annotated[bytes, Meta(min_length=16, max_length=16)]
RoundId = Annotated[int, Meta(ge=1, lt=2**48)]
Rung = Annotated[int, Meta(ge=0, lt=MAX_SEGMENTS)]
Point = Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
Chunk = Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
Chunks = Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]
Keystream = Annotated[str, Meta(pattern="^(chacha20|aes-256-ctr)$")]
Reason = Annotated[str, Meta(max_length=500)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Options shared by everything on the wire."""


# --------------------------------------------------------------------------- the plan and the model


class Reveal(StrEnum):
    """What the coordinator sees: the sum alone, or every update (§5.9); with `plain` the aggregator, too (§5.10)."""

    SUM = "sum"
    EACH = "each"
    PLAIN = "plain"


class Sharing(_Message, frozen=True):
    """How words are shared: any `k` of `n` open a sum, any `t` together learn nothing (docs/protocol.md §5.4).

    `dealer_checks`: mask elements in every share, one for each linear check of the dealing (§5.7); 0 for none.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
    k: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
    t: Annotated[int, Meta(ge=0, lt=MAX_AGGREGATORS)]
    field: Annotated[str, Meta(pattern="^F(31|61)$")] = "F31"
    dealer_checks: Annotated[int, Meta(ge=0, le=4)] = 0
    reveal: Reveal = Reveal.SUM


class Coding(_Message, frozen=True):
    """How an update becomes field words (docs/protocol.md §6.4).

    `weight_clips` and `vector_clips` hold one positive clip per tensor, in the order of the parameter table.
    """

    value_bits: Annotated[int, Meta(ge=2, le=32)]
    vector_bits: Annotated[int, Meta(ge=2, le=32)]
    weight_clips: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(max_length=MAX_TENSORS)]
    vector_clips: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(max_length=MAX_TENSORS)]
    max_weight: Annotated[int, Meta(ge=1, lt=2**24)]
    max_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
    tail_words: Annotated[int, Meta(ge=0, le=16)] = 0
    radix: Annotated[str, Meta(pattern="^(mixed|power-of-two)$")] = "mixed"


class Segment(_Message, frozen=True):
    """What lies between two rungs of the nested supports (docs/protocol.md §6.2, §6.5).

    `weights` prunable coordinates and `vectors` vector elements give `words` field words. `blob` is the digest of the
    coded segment, `support` the chained one of the supports up to here, `width` the kept share of channels (§6.7).
    """

    weights: Annotated[int, Meta(ge=0, lt=2**31)]
    vectors: Annotated[int, Meta(ge=0, lt=2**31)]
    words: Annotated[int, Meta(ge=1, lt=2**31)]
    density: Annotated[float, Meta(ge=0, le=1)]
    blob: Digest
    blob_bytes: Annotated[int, Meta(ge=1, lt=2**32)]
    support: Digest
    width: Annotated[float, Meta(gt=0, le=1)] = 1.0


class SupportRule(_Message, frozen=True):
    """How supports follow from the model: allocation, churn tolerance in float16 code steps, a probe segment (§6.2)."""

    allocation: Annotated[str, Meta(pattern="^(global|erk)$")] = "global"
    churn_codes: Annotated[int, Meta(ge=0, le=4096)] = 0
    is_probing: bool = False


class Training(_Message, frozen=True):
    """SGD with momentum; FedProx where `proximal_mu` > 0. `least_work`: least part of its steps a device may do."""

    local_epochs: Annotated[int, Meta(ge=1, le=1000)]
    batch_size: Annotated[int, Meta(ge=1, le=65_536)]
    learning_rate: Annotated[float, Meta(gt=0)]
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0)] = 0.0
    least_work: Annotated[float, Meta(gt=0, le=1)] = 1.0


class RoundPlan(_Message, frozen=True):
    """Everything a round depends on, signed by the coordinator (docs/protocol.md §4.1).

    `rungs` lists those a device may take, from 0. `cohort` is looked up on the roster: no pattern (1 ms for 3000).
    """

    round_id: RoundId
    directory_version: Annotated[int, Meta(ge=1)]
    task: Annotated[str, Meta(min_length=1, max_length=200)]
    bundle: Digest
    table: Digest
    sharing: Sharing
    points: Annotated[dict[Identifier, Point], Meta(max_length=MAX_AGGREGATORS)]
    coding: Coding
    segments: Annotated[tuple[Segment, ...], Meta(min_length=1, max_length=MAX_SEGMENTS)]
    rungs: Annotated[tuple[Rung, ...], Meta(min_length=1, max_length=MAX_SEGMENTS)]
    training: Training
    cohort: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(min_length=1, max_length=MAX_DEVICES)]
    min_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
    min_devices_segment: Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
    deadline_s: Annotated[float, Meta(gt=0, le=604_800)]
    chunk_bytes: Annotated[int, Meta(ge=1024, le=MAX_CHUNK_BYTES)] = 64 * 1024
    support: SupportRule = SupportRule()


class ModelChunk(_Message, frozen=True):
    """One chunk of a content-addressed model segment (docs/protocol.md §6.5)."""

    segment: Rung
    blob: Digest
    chunk: Chunk
    chunks: Chunks
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]


# --------------------------------------------------------------------------- the device


class Hello(_Message, frozen=True):
    """A device is there; `rung_limit` is the highest rung it says it can train."""

    software: Annotated[str, Meta(max_length=64)]
    rung_limit: Rung


class Heartbeat(_Message, frozen=True):
    """How a device fared in its last round; bytes are MQTT payload over all its brokers."""

    round_id: RoundId
    rung: Rung
    constraint: Annotated[str, Meta(max_length=64)]
    train_s: float
    upload_s: float
    sent_bytes: Annotated[int, Meta(ge=0)]
    received_bytes: Annotated[int, Meta(ge=0)]


class Decline(_Message, frozen=True):
    """A device will not upload in this round, and why."""

    round_id: RoundId
    plan: Digest
    reason: Reason


class ShareUpload(_Message, frozen=True):
    """One sealed chunk of one device's share for one aggregator (docs/protocol.md §4.2).

    `prg`: the keystream algorithm of this upload's seed shares, the device's choice. Everything but `sealed` is bound
    into the seal. No digest of the plaintext is in the clear: with t shares known it would confirm a guess.
    """

    round_id: RoundId
    plan: Digest
    upload_id: UploadId
    x: Point
    rung: Rung
    prg: Keystream
    chunk: Chunk
    chunks: Chunks
    sealed: Annotated[bytes, Meta(min_length=SEAL_BYTES + 1, max_length=MAX_CHUNK_BYTES + SEAL_BYTES)]


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


class Receipt(_Message, frozen=True):
    """The aggregator has committed all chunks of an upload, or says why it will not (docs/protocol.md §3.2)."""

    round_id: RoundId
    upload_id: UploadId
    verdict: Verdict
    detail: Reason = ""


class Missing(_Message, frozen=True):
    """Which chunks of an upload the aggregator lacks: bit i of `bitmap` (little-endian) is chunk i."""

    round_id: RoundId
    upload_id: UploadId
    bitmap: Annotated[bytes, Meta(min_length=1, max_length=MAX_CHUNKS // 8)]


class Contribution(_Message, frozen=True):
    """One complete upload: of whom, which attempt, how far up the rungs."""

    device_id: Identifier
    upload_id: UploadId
    rung: Rung


class Attendance(_Message, frozen=True):
    """The complete uploads one aggregator holds (docs/protocol.md §4.3). Up to two attempts per device."""

    round_id: RoundId
    plan: Digest
    uploads: Annotated[tuple[Contribution, ...], Meta(max_length=2 * MAX_DEVICES)]
    declined: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_DEVICES)]


class CheckReply(_Message, frozen=True):
    """One aggregator's share of each contributor's masked combination (docs/protocol.md §5.7).

    `values`: field elements, little-endian, check by check of contributor by contributor, in the order of the
    `DealerCheck` whose digest is `check`.
    """

    round_id: RoundId
    check: Digest
    x: Point
    values: Annotated[bytes, Meta(min_length=4, max_length=MAX_DEVICES * 4 * 8)]


class SumShare(_Message, frozen=True):
    """One chunk of an aggregator's sum, sealed to the coordinator (docs/protocol.md §4.5)."""

    round_id: RoundId
    freeze: Digest
    x: Point
    chunk: Chunk
    chunks: Chunks
    sealed: Annotated[bytes, Meta(min_length=SEAL_BYTES + 1, max_length=MAX_CHUNK_BYTES + SEAL_BYTES)]


class Refusal(_Message, frozen=True):
    """An aggregator will not serve this plan, or sum this Freeze, and why. `of`: digest of what it refuses."""

    round_id: RoundId
    of: Digest
    reason: Reason


# --------------------------------------------------------------------------- the coordinator's decisions


class DealerCheck(_Message, frozen=True):
    """Asks for combinations of the contributors' shares under a public challenge (docs/protocol.md §5.7).

    One per round, for ever: two challenges under the same masks would show a combination of a device's values.
    """

    round_id: RoundId
    plan: Digest
    challenge: Digest
    aggregators: Annotated[tuple[Identifier, ...], Meta(min_length=1, max_length=MAX_AGGREGATORS)]
    contributors: Annotated[tuple[Contribution, ...], Meta(min_length=1, max_length=MAX_DEVICES)]


class Freeze(_Message, frozen=True):
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


class Outcome(_Message, frozen=True):
    """The coordinator's authoritative close of a round (docs/protocol.md §4.7)."""

    round_id: RoundId
    phase: RoundPhase
    reason: Reason = ""


Message = (
    RoundPlan
    | ModelChunk
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
    "hello": (Hello, 512),
    "heartbeat": (Heartbeat, 512),
    "decline": (Decline, 2 * _KIB),
    "share-upload": (ShareUpload, MAX_CHUNK_BYTES + SEAL_BYTES + 512),
    "receipt": (Receipt, 2 * _KIB),
    "missing": (Missing, MAX_CHUNKS // 8 + 256),
    "attendance": (Attendance, 224 * _KIB),
    "dealer-check": (DealerCheck, 224 * _KIB),
    "check-reply": (CheckReply, MAX_DEVICES * 4 * 8 + 512),
    "sum-share": (SumShare, MAX_CHUNK_BYTES + SEAL_BYTES + 512),
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
