"""What `bench sharing` writes: the figures, and what is demanded of them."""

from __future__ import annotations

from typing import Final

import msgspec

KEYSTREAM_AND_COPY: Final = "keystream + copying the outputs"
COPY: Final = "copying the vectors"
#: Demands are judged at this many values.
JUDGED_VALUES: Final = 1_000_000

#: (operation, what it is measured against) -> least ratio of the rates; a fraction where that is a physical limit.
DEMANDS: Final = {
    ("split", "galois Horner"): 4.0,
    ("split", "hand-written numpy"): 7.0,
    ("split", "mpyc"): 150.0,
    ("split", "shamirs"): 700.0,
    ("split", "pycryptodome, 4 packed"): 800.0,
    ("open", "galois Horner"): 1.4,
    ("open", "hand-written numpy"): 3.0,
    ("add", "galois Horner"): 2.0,
    ("add", "hand-written numpy"): 5.0,
    ("add", COPY): 0.45,
}
#: The same for a split against its limit, by (n, k).
SPLIT_FRACTIONS: Final = {(3, 2): 0.35, (5, 3): 0.30}
#: Bytes that a streamed split may need beyond its input.
MOST_EXTRA_BYTES: Final = 4 * 2**20


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. `has_aes`: whether the processor has AES instructions; None if it does not say."""

    cpu: str
    cores: int
    architecture: str
    system: str
    has_aes: bool | None


class PeerState(msgspec.Struct, frozen=True):
    """A peer as found here. `missing`: why it was not measured, None if it was."""

    name: str
    pip: str
    version: str | None
    missing: str | None
    most_values: int | None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of ours against a peer or a physical limit, rates in values per CPU second.

    `ratio` is the median over the pairs of ours by the other, which need not be the ratio of the two medians.
    """

    operation: str
    detail: str
    n: int
    k: int
    values: int
    other: str
    is_limit: bool
    other_values: int
    pairs: int
    unit: str = "values/s"
    ours: float
    other_rate: float
    ratio: float
    demanded: float | None
    met: bool | None


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of ours by itself: median rate over the runs."""

    operation: str
    n: int | None
    k: int | None
    values: int
    runs: int
    unit: str
    rate: float


class WireBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one device's shares over all aggregators, by our own code and by the formula, without framing."""

    name: str
    n: int
    k: int
    t: int
    values: int
    digits: int
    bytes: int
    formula_bytes: int
    bytes_per_value: float
    demanded: float | None
    met: bool


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Peak memory of a split in a process of its own, beyond the input."""

    variant: str
    n: int
    k: int
    values: int
    extra_bytes: int
    demanded: int | None
    met: bool | None


class SharingReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    schema: int = 1
    benchmark: str = "sharing"
    version: str
    date: str
    is_quick: bool
    threads: str
    keystream: str
    machine: Machine
    versions: dict[str, str]
    peers: list[PeerState]
    figures: list[Figure]
    alone: list[Alone]
    wire: list[WireBytes]
    memory: list[Memory]


def demanded_ratio(operation: str, other: str, scheme: tuple[int, int], values: int) -> float | None:
    """What is demanded at (n, k) and so many values; None where nothing is."""
    if values < JUDGED_VALUES or scheme not in SPLIT_FRACTIONS:
        return None
    if (operation, other) == ("split", KEYSTREAM_AND_COPY):
        return SPLIT_FRACTIONS[scheme]
    return DEMANDS.get((operation, other))


def missed(report: SharingReport) -> list[str]:
    """A line for each demand that was measured and is not met."""
    lines = [
        f"{one.operation} ({one.k},{one.n}), {one.detail}, {one.values:,} values: {one.ratio:.3g} x {one.other},"
        f" demanded {one.demanded:g}"
        for one in report.figures
        if one.met is False
    ]
    lines += [
        f"{one.name}: {one.bytes} bytes, formula {one.formula_bytes}, demanded {one.demanded} a value"
        for one in report.wire
        if not one.met
    ]
    lines += [
        f"{one.variant} ({one.k},{one.n}): {one.extra_bytes} extra bytes, demanded below {one.demanded}"
        for one in report.memory
        if one.met is False
    ]
    return lines


def unmeasured(report: SharingReport) -> list[str]:
    """Demands that this run says nothing about: a peer is missing, or no size is large enough."""
    judged = {(one.operation, one.other) for one in report.figures if one.demanded is not None}
    demands = DEMANDS | {("split", KEYSTREAM_AND_COPY): min(SPLIT_FRACTIONS.values())}
    lines = [f"{operation}: {least:g} x {other}" for (operation, other), least in demands.items()]
    return [line for line, key in zip(lines, demands, strict=True) if key not in judged]
