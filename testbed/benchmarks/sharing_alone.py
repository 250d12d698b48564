"""The figures of `bench sharing` that stand alone: our variants, keystreams, dispersal, bytes and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from fedpruneshare.sharing.digits import DigitPacking
from fedpruneshare.sharing.dispersal import disperse, fragment_bytes, rebuild
from fedpruneshare.sharing.field import F31, F61, Field, Words
from fedpruneshare.sharing.prg import BACKENDS, SEED_BYTES, ElementStream, Prg, Seed
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme
from testbed.benchmarks import memory
from testbed.benchmarks.peers import Ours
from testbed.benchmarks.sharing_figures import MOST_EXTRA_BYTES, Alone, Memory, WireBytes
from testbed.benchmarks.timing import Clock, Work, rates

_DOMAIN: Final = b"benchmark"
_CLIENTS: Final = 10


# --------------------------------------------------------------------------- rates


@dataclass
class AloneBench:
    """Collects median rates over so many runs."""

    runs: int
    prg: Prg
    clock: Clock
    rng: np.random.Generator
    rates: list[Alone] = field(default_factory=list)

    def scheme(self, n: int, k: int, values: int) -> None:
        """The variants of a split, and opening with a check."""
        scheme, split = (n, k), "split, seeds and vectors"
        for field_ in (F31, F61):
            words = self.rng.integers(0, field_.p, values, dtype=field_.word_type)
            self._time(f"{split}, {field_.name}", scheme, Work(self._splitter(scheme, words, field_), values))
        packing = DigitPacking(8, 128)
        digits = self.rng.integers(0, 256, values, dtype=np.uint8)
        self._time(
            f"{split}, F31, {packing.digits} digits a word packed from uint8",
            scheme,
            Work(self._splitter(scheme, packing.pack(digits), F31, lambda: packing.pack(digits)), values),
        )
        ours = Ours(n, k, self.prg)
        shares = ours.pick(ours.split(self.rng.integers(0, F31.p, values, dtype=F31.word_type)), range(1, n + 1))
        self._time("open, all n shares checked", scheme, Work(lambda: ours.open(shares), values))

    def _splitter(
        self, scheme: tuple[int, int], words: Words, field_: Field, pack: Callable[[], Words] | None = None
    ) -> Callable[[], None]:
        """A call that splits `words`, or what `pack` makes then, into buffers that are reused."""
        n, k = scheme
        sharing = SharingScheme(n, k, k - 1, field_)
        out = {x: np.empty_like(words) for x in sharing.full_points}

        def run() -> None:
            seeds = {x: Seed.fresh() for x in range(1, k)}
            for _ in sharing.split_chunks(pack() if pack else words, seeds, (self.prg, _DOMAIN), out):
                pass

        return run

    def seeds(self, values: int) -> None:
        """An aggregator that holds seeds: expand and add."""
        seeds, total = [Seed.fresh() for _ in range(_CLIENTS)], Accumulator(values)

        def run() -> None:
            for seed in seeds:
                total.add_seed(self.prg, seed, _DOMAIN)

        self._time("add a seed's share", None, Work(run, values * len(seeds)))

    def keystreams(self, values: int) -> None:
        """Uniform elements by every algorithm and library here."""
        out = np.empty(values, dtype=F31.dtype)
        for backend in BACKENDS:
            for prg in Prg:
                stream = ElementStream(prg, Seed.fresh(), _DOMAIN, backend=backend)
                self._time(f"uniform elements, {prg} by {backend}", None, Work(partial(stream.fill, out), values))

    def blobs(self, n: int, k: int, size_bytes: int) -> None:
        """Dispersal, and rebuilding from the last k fragments: the first k would need no decoding."""
        blob = self.rng.bytes(size_bytes)
        fragments = disperse(blob, n, k, _DOMAIN)
        last = {x: fragments[x] for x in range(n - k + 1, n + 1)}
        spread = Work(lambda: disperse(blob, n, k, _DOMAIN), size_bytes)
        self._time("disperse a blob", (n, k), spread, "bytes/s")
        together = Work(lambda: rebuild(last, size_bytes, n, k, _DOMAIN), size_bytes)
        self._time("rebuild a blob", (n, k), together, "bytes/s")

    def _time(self, operation: str, scheme: tuple[int, int] | None, work: Work, unit: str = "values/s") -> None:
        found = rates(work, self.runs, self.clock)
        n, k = scheme or (None, None)
        middle = float(np.median(found))
        self.rates.append(
            Alone(operation=operation, n=n, k=k, values=work.values, runs=len(found), unit=unit, rate=middle)
        )


# --------------------------------------------------------------------------- bytes


@dataclass(frozen=True)
class _Row:
    name: str
    scheme: SharingScheme
    packing: DigitPacking | None
    demanded: float | None = None


def _rows() -> list[_Row]:
    two, three = SharingScheme(3, 2, 1), SharingScheme(5, 3, 2)
    whole, ramp = SharingScheme(3, 3, 2), SharingScheme(4, 3, 1)
    by_8_bits, by_4_bits, by_1_bit = DigitPacking(8, 128), DigitPacking(4, 68), DigitPacking(1, 127)
    wide = DigitPacking(8, 4_112, field=F61)
    return [
        _Row("one value a word", two, None),
        _Row("one value a word", three, None),
        _Row("8 bits, 128 devices", two, by_8_bits, 4.0),
        _Row("8 bits, 128 devices", three, by_8_bits),
        _Row("8 bits, 128 devices", whole, by_8_bits, 2.0),
        _Row("8 bits, 128 devices, ramp", ramp, by_8_bits, 3.0),  # 1.5 words a packed word
        _Row("4 bits, 68 devices", two, by_4_bits, 8 / 3),
        _Row("4 bits, 68 devices", three, by_4_bits),
        _Row("4 bits, 68 devices", whole, by_4_bits, 4 / 3),
        _Row("1 bit, 127 devices", two, by_1_bit),
        _Row("8 bits, 4,112 devices, F61", SharingScheme(3, 2, 1, F61), wide),
    ]


def wire_bytes(values: int) -> list[WireBytes]:
    """Bytes of one device's shares in each setting, as our code counts them, beside the formula worked out here.

    The formula: (n − t) words of w bytes for every k − t packed words, and t seeds; rounding up at every step.
    """
    return [_wire_row(row, values) for row in _rows()] + [_dispersal_row(n, k, values) for n, k in ((3, 2), (5, 3))]


def _wire_row(row: _Row, values: int) -> WireBytes:
    scheme = row.scheme
    words = values if row.packing is None else row.packing.words(values)
    counted = sum(scheme.share_bytes(x, words) for x in range(1, scheme.n + 1))
    digits = 1 if row.packing is None else row.packing.digits
    packed = -(-values // digits)
    elements = -(-packed // (scheme.k - scheme.t))
    formula = (scheme.n - scheme.t) * elements * (8 if scheme.field is F61 else 4) + scheme.t * SEED_BYTES
    # Seeds and rounding up: at most a word a share.
    slack = scheme.t * SEED_BYTES + 8 * scheme.n
    fits = row.demanded is None or counted <= row.demanded * values + slack
    return WireBytes(
        name=row.name,
        n=scheme.n,
        k=scheme.k,
        t=scheme.t,
        values=values,
        digits=digits,
        bytes=counted,
        formula_bytes=formula,
        bytes_per_value=counted / values,
        demanded=row.demanded,
        met=counted == formula and fits,
    )


def _dispersal_row(n: int, k: int, values: int) -> WireBytes:
    counted = n * fragment_bytes(values, n, k)
    # The blob and its tag in n/k; a head, the key's share and n digests of 16 bytes with each fragment.
    formula = n * (-(-(values + 16) // k) + 4 + 32 + 16 * n)
    return WireBytes(
        name="dispersal of one byte a value, not additive",
        n=n,
        k=k,
        t=k - 1,
        values=values,
        digits=1,
        bytes=counted,
        formula_bytes=formula,
        bytes_per_value=counted / values,
        demanded=None,
        met=counted == formula,
    )


# --------------------------------------------------------------------------- memory


def extra_memory(schemes: tuple[tuple[int, int], ...], values: int) -> list[Memory]:
    """Every variant in a process of its own; nothing where the system does not tell a process its peak."""
    if not memory.can_measure():
        return []
    return [_memory(variant, n, k, values) for n, k in schemes for variant in memory.VARIANTS]


def _memory(variant: str, n: int, k: int, values: int) -> Memory:
    extra = memory.extra_bytes(variant, n, k, values)
    demanded = MOST_EXTRA_BYTES if variant == "streamed" else None
    met = None if demanded is None else extra < demanded
    return Memory(variant=variant, n=n, k=k, values=values, extra_bytes=extra, demanded=demanded, met=met)
