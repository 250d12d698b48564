"""The plan of a round, what everything else follows from, and the model it is about (docs/protocol.md §4.1, §6.5)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fedpruneshare.wire_types import (
    MAX_AGGREGATORS,
    MAX_CHUNK_BYTES,
    MAX_DEVICES,
    MAX_SEGMENTS,
    MAX_TENSORS,
    Chunk,
    Chunks,
    Digest,
    Identifier,
    Point,
    RoundId,
    Rung,
    Suite,
)


class WireMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Options shared by everything on the wire."""


class Reveal(StrEnum):
    """What the coordinator sees: the sum alone, or every update (§5.9); with `plain` the aggregator, too (§5.10)."""

    SUM = "sum"
    EACH = "each"
    PLAIN = "plain"


class Sharing(WireMessage, frozen=True):
    """How words are shared: any `k` of `n` open a sum, any `t` together learn nothing (docs/protocol.md §5.4).

    `dealer_checks`: mask elements in every share, one for each linear check of the dealing (§5.7); 0 for none.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
    k: Annotated[int, Meta(ge=1, le=MAX_AGGREGATORS)]
    t: Annotated[int, Meta(ge=0, lt=MAX_AGGREGATORS)]
    field: Annotated[str, Meta(pattern="^F(31|61)$")] = "F31"
    dealer_checks: Annotated[int, Meta(ge=0, le=4)] = 0
    reveal: Reveal = Reveal.SUM


class Coding(WireMessage, frozen=True):
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


class Segment(WireMessage, frozen=True):
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


class SupportRule(WireMessage, frozen=True):
    """How supports follow from the model: allocation, churn tolerance in float16 code steps, a probe segment (§6.2)."""

    allocation: Annotated[str, Meta(pattern="^(global|erk)$")] = "global"
    churn_codes: Annotated[int, Meta(ge=0, le=4096)] = 0
    is_probing: bool = False


class Training(WireMessage, frozen=True):
    """SGD with momentum; FedProx where `proximal_mu` > 0. `least_work`: least part of its steps a device may do."""

    local_epochs: Annotated[int, Meta(ge=1, le=1000)]
    batch_size: Annotated[int, Meta(ge=1, le=65_536)]
    learning_rate: Annotated[float, Meta(gt=0)]
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0)] = 0.0
    least_work: Annotated[float, Meta(gt=0, le=1)] = 1.0


class RoundPlan(WireMessage, frozen=True):
    """Everything a round depends on, signed by the coordinator (docs/protocol.md §4.1).

    `rungs` lists those a device may take, from 0. `cohort` is looked up on the roster: no pattern (1 ms for 3000).
    `model_version`: rounds applied so far, never falls. `suites` shares and sums may be sealed with. `freeze_quorum`:
    acceptances of one Freeze before any sum (§4.5), 0 for none. `checksum`: commitment to the seed of §5.11, or empty.
    `expires_at`: seconds since 1970, generous, 0 for never.
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
    model_version: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    suites: Annotated[tuple[Suite, ...], Meta(min_length=1, max_length=8)] = (
        Suite.X25519_CHACHA20,
        Suite.X25519_AES256,
    )
    freeze_quorum: Annotated[int, Meta(ge=0, le=MAX_AGGREGATORS)] = 0
    checksum: Annotated[bytes, Meta(max_length=32)] = b""
    expires_at: Annotated[int, Meta(ge=0, lt=2**48)] = 0


class ModelChunk(WireMessage, frozen=True):
    """One chunk of a content-addressed model segment (docs/protocol.md §6.5)."""

    segment: Rung
    blob: Digest
    chunk: Chunk
    chunks: Chunks
    data: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]
