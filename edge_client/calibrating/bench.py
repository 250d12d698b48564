"""What a device can measure of itself, part by part: the work behind `device calibrate` (docs/operations.md).

Every part stands alone: one that fails is reported with its reason and left out of the file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np

from edge_client.adaptation.calibration import Calibration, LinkRate
from edge_client.adaptation.watches import LinkWatch, width_key
from edge_client.calibrating.footprint import Order, measure_footprint
from edge_client.calibrating.trial import Trial, groups_of
from edge_client.ciphers import own_ciphers
from edge_client.energy.meters import find_meter
from edge_client.energy.recorder import EnergyRecorder
from edge_client.local_round import Workplace
from edge_client.running import workplace
from edge_client.settings import DeviceSettings
from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import FedPruneShareError, LinkError, MeterError, TaskError
from fedpruneshare.messages import KEY_ID_BYTES, ShareUpload, Suite
from fedpruneshare.party import Party
from fedpruneshare.process import open_link
from fedpruneshare.sealing import seal
from fedpruneshare.sharing.field import F31, to_bytes
from fedpruneshare.sharing.prg import LEAN_BACKEND, Prg, Seed
from fedpruneshare.sharing.shamir import SharingScheme
from fedpruneshare.sparse.channels import Groups
from fedpruneshare.topics import Role

#: A round that is never open: an aggregator answers `wrong-round`, as to any share that comes too early.
_NO_ROUND: Final = 2**48 - 1
_CHUNK_BYTES: Final = 64 * 1024
_SMALL_PUBLISHES: Final = 5
_LARGE_PUBLISHES: Final = 24
_STEPS_AT_ONCE: Final = 4

#: Tells how far a part has come, 0 to 1.
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Measured:
    """What a part gave: fields of `Calibration`, and lines that say more than they do."""

    fields: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class Bench:
    """The device on the bench. `seconds` for each part; `bundle`: where the channel groups of the task stand."""

    settings: DeviceSettings
    party: Party
    seconds: float = 5.0
    batch_size: int = 32
    widths: tuple[float, ...] = (1.0, 0.5, 0.25)
    bundle: Path | None = None
    root: Path = Path("/")
    uncut_reason: str = field(default="", init=False)

    @cached_property
    def work(self) -> Workplace:
        """Task, model and data, loaded when the first part needs them."""
        return workplace(self.settings)

    @cached_property
    def groups(self) -> Groups:
        """The channel groups of the model: the bundle's, else found here; none, and `uncut_reason`, if it has none."""
        try:
            return self._find_groups()
        except (FedPruneShareError, ImportError) as error:
            self.uncut_reason = str(error)
            return ()

    def _find_groups(self) -> Groups:
        if self.bundle is None:
            return groups_of(self.work)
        manifest = Bundle.open(self.bundle).manifest
        if manifest.table.digest() != self.work.table.digest():
            raise TaskError(f"{self.bundle} is of another model than task {self.settings.task.name!r} builds here")
        if not manifest.channel_groups:
            raise TaskError(manifest.uncut_reason or f"{self.bundle} names no channels that may be cut")
        return manifest.channel_groups

    @property
    def possible_widths(self) -> tuple[float, ...]:
        """Those of `widths` that the model can be cut to."""
        return tuple(width for width in self.widths if width == 1 or self.groups)


# --------------------------------------------------------------------------- training


def measure_steps(bench: Bench, tell: Tell) -> Measured:
    """Seconds of a training step at each width, the median of many short runs, interleaved."""
    trials = {width: Trial(bench.work, bench.groups, width, bench.batch_size) for width in bench.possible_widths}
    sparse = Trial(bench.work, bench.groups, 1.0, bench.batch_size, density=0.1)
    named = {width_key(width): trial for width, trial in trials.items()} | {"sparse": sparse}
    times: dict[str, list[float]] = {name: [] for name in named}
    for _ in _until(bench.seconds, tell):
        for name, trial in named.items():
            times[name].append(trial.train(_STEPS_AT_ONCE))
    # The first run of each loads what the others find loaded.
    found = {name: median(values[1:] or values) for name, values in times.items()}
    sparse_s = found.pop("sparse")
    notes = [f"step at width {name}: {1000 * seconds:.2f} ms" for name, seconds in found.items()]
    if full_s := found.get(width_key(1.0)):
        notes.append(f"density 0.1 takes {sparse_s / full_s:.2f} times as long as 1.0: masked weights still compute")
    return Measured({"step_s": found}, (*notes, *_uncut(bench)))


def measure_memory(bench: Bench, tell: Tell) -> Measured:
    """Resident memory of a device process, and its peak while training, each width in a new process."""
    found = {}
    for number, width in enumerate(bench.possible_widths):
        order = Order(
            bench.settings.task,
            bench.groups,
            width,
            bench.batch_size,
            torch_threads=bench.settings.limits.torch_threads,
        )
        found[width_key(width)] = measure_footprint(order)
        tell((number + 1) / len(bench.possible_widths))
    base_mib = round(max(one.base_mib for one in found.values()), 1)
    notes = [f"width {name}: {one.base_mib:.0f} MiB, {one.step_mib:.1f} more to train" for name, one in found.items()]
    steps = {name: round(one.step_mib, 1) for name, one in found.items()}
    return Measured({"base_mib": base_mib, "step_mib": steps}, tuple(notes))


def _uncut(bench: Bench) -> tuple[str, ...]:
    return (f"width 1 only: {bench.uncut_reason}",) if bench.uncut_reason and len(bench.widths) > 1 else ()


# --------------------------------------------------------------------------- sharing


def measure_sharing(bench: Bench, tell: Tell) -> Measured:
    """Bytes of shares split, sealed and signed a second, for as many aggregators as there are."""
    count = len(bench.party.directory.aggregators)
    scheme = SharingScheme(count, count // 2 + 1, count // 2)
    prg = own_ciphers(bench.settings.limits.prg).prg
    words = np.random.default_rng(0).integers(0, F31.p, 2**18, dtype=F31.word_type)
    done, busy_s = 0, 0.0
    for _ in _until(bench.seconds, tell):
        started = time.perf_counter()
        done += _share_once(bench.party, scheme, prg, words)
        busy_s += time.perf_counter() - started
    rate = done / busy_s
    shape = f"({scheme.k}, {scheme.n}) sharing, {prg}"
    return Measured({"share_bytes_s": rate}, (f"{rate / 1e6:.1f} MB of shares a second, {shape}",))


def _share_once(party: Party, scheme: SharingScheme, prg: Prg, words: np.ndarray[Any, Any]) -> int:
    seeds = {x: Seed.fresh() for x in range(1, scheme.t + 1)}
    key = next(iter(party.directory.aggregators))
    sealing_key = party.sealing_keys(Role.AGGREGATOR, key)
    done = 0
    streams = scheme.open_streams(seeds, (prg, b"calibration"), LEAN_BACKEND)  # as a device shares
    for _, shares in scheme.stream_next(words, streams, scheme.n):
        for x, elements in shares.items():
            data = to_bytes(elements)
            for start in range(0, len(data), _CHUNK_BYTES):
                piece = bytes(data[start : start + _CHUNK_BYTES])
                sealed = seal(sealing_key, piece, b"calibration", Suite.X25519_CHACHA20)
                party.sign(_chunk(x, sealed, prg))
                done += len(piece)
    return done


def _chunk(x: int, sealed: bytes, prg: Prg = Prg.CHACHA20) -> ShareUpload:
    seal_of = (Suite.X25519_CHACHA20, bytes(KEY_ID_BYTES), sealed)
    return ShareUpload(_NO_ROUND, bytes(32), bytes(16), x, 0, str(prg), 0, 1, *seal_of)


# --------------------------------------------------------------------------- links


def measure_links(bench: Bench, tell: Tell) -> Measured:
    """Rate and round trip of every uplink, one after the other. Raises `LinkError` where none could be measured."""
    rates: dict[str, LinkRate] = {}
    notes = []
    aggregators = bench.party.directory.aggregators
    for number, ident in enumerate(aggregators):
        try:
            rates[ident] = asyncio.run(_measure_link(bench, ident))
            notes.append(f"{ident}: {rates[ident].up_bytes_s / 1e6:.3f} MB/s, {1000 * rates[ident].rtt_s:.1f} ms")
        except LinkError as error:
            notes.append(f"{ident}: left out: {error}")
        tell((number + 1) / len(aggregators))
    if not rates:
        raise LinkError("; ".join(notes))
    return Measured({"links": rates}, tuple(notes))


async def _measure_link(bench: Bench, ident: str) -> LinkRate:
    """Publish shares of no open round and time the acknowledgements. Sizes grow until one takes a quarter of a second.

    They expire at once, so that an aggregator that is away never gets them.
    """
    party, loop, watch = bench.party, asyncio.get_running_loop(), LinkWatch()
    noise = np.random.default_rng(0)  # as little to compress as a sealed share
    # Another client id than the device's own: a broker ends the connection of a client that comes a second time. (One
    # that takes the name from the certificate does so all the same: the command asks for a device that is stopped.)
    name = f"{party.ident}-calibrate"
    link = open_link(party.directory.aggregators[ident].address, name, bench.settings.link)
    await link.connect()
    try:

        async def publish(size: int) -> float:
            payload = party.sign(_chunk(1, noise.bytes(size)))
            started = loop.time()
            await link.publish(party.topics.name("up", party.ident), payload, expiry_s=1.0)
            seconds = max(loop.time() - started, 1e-6)
            watch.add(ident, len(payload), seconds)
            return seconds

        for _ in range(_SMALL_PUBLISHES):
            await publish(64)
        size, ends_at = _CHUNK_BYTES // 4, loop.time() + bench.seconds
        for _ in range(_LARGE_PUBLISHES):
            seconds = await publish(size)
            if loop.time() > ends_at:
                break
            size = min(2 * size, _CHUNK_BYTES) if seconds < 0.25 else size
    finally:
        await link.close()
    found = watch.estimate(ident)
    if found.up_bytes_s is None or found.rtt_s is None:
        raise LinkError(f"{found.large} large and {found.small} small publishes timed, expected one of each at least")
    return LinkRate(found.up_bytes_s, found.rtt_s)


# --------------------------------------------------------------------------- power


def measure_power(bench: Bench, tell: Tell) -> Measured:
    """Watts at rest and while training, by the board's sensor. Raises `MeterError` where there is none."""
    find_meter(bench.root)
    trial = Trial(bench.work, bench.groups, 1.0, bench.batch_size)
    trial.train(_STEPS_AT_ONCE)

    def rest() -> None:
        for _ in _until(bench.seconds / 2, lambda part: tell(part / 2)):
            time.sleep(0.05)

    def work() -> None:
        for _ in _until(bench.seconds / 2, lambda part: tell(0.5 + part / 2)):
            trial.train(_STEPS_AT_ONCE)

    idle_w, covers = _watts(bench.root, rest)
    busy_w, _ = _watts(bench.root, work)
    note = f"{idle_w:.2f} W idle, {busy_w:.2f} W training ({covers})"
    if covers.startswith("rapl"):
        raise MeterError(f"{note}: watts of the board are wanted, so those of its profile stay")
    return Measured({"idle_w": idle_w, "busy_w": busy_w, "power_source": covers}, (note,))


def _watts(root: Path, run: Callable[[], None]) -> tuple[float, str]:
    recorder = EnergyRecorder(find_meter(root), time.monotonic)
    with recorder.sampling(0.1):
        run()
    if recorder.failure or not recorder.taken.seconds:
        raise MeterError(recorder.failure or f"{recorder.source.sensor}: no reading in the time given")
    return recorder.taken.joules / recorder.taken.seconds, f"{recorder.source.sensor}: {recorder.source.covers}"


# --------------------------------------------------------------------------- all of it


@dataclass
class Outcome:
    """What came of it: the calibration, notes by part, and the reasons of parts that failed."""

    calibration: Calibration
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


PARTS: Final[dict[str, Callable[[Bench, Tell], Measured]]] = {
    "steps": measure_steps,
    "sharing": measure_sharing,
    "links": measure_links,
    "power": measure_power,
    "memory": measure_memory,
}
#: The fields of a calibration that each part fills.
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "steps": ("step_s",),
    "sharing": ("share_bytes_s",),
    "links": ("links",),
    "power": ("idle_w", "busy_w", "power_source"),
    "memory": ("base_mib", "step_mib"),
}


def calibrate(bench: Bench, board: str, before: Calibration | None, steps: Mapping[str, Tell]) -> Outcome:
    """Run the parts that `steps` names. What is not run is taken from `before`, if that is of the same device."""
    fields: dict[str, Any] = {}
    if before is not None and (before.board, before.task, before.batch_size) == _whose(bench, board):
        skipped = [name for name in PARTS if name not in steps]
        fields = {key: getattr(before, key) for name in skipped for key in FIELDS[name]}
    outcome = Outcome(Calibration(*_whose(bench, board), **fields))
    for name, measure in PARTS.items():
        if name not in steps:
            continue
        try:
            measured = measure(bench, steps[name])
        except (FedPruneShareError, OSError) as error:
            outcome.failed[name] = str(error)
            continue
        outcome.notes[name] = measured.notes
        outcome.calibration = msgspec.structs.replace(outcome.calibration, **measured.fields)
    return outcome


def _whose(bench: Bench, board: str) -> tuple[str, str, int]:
    return board, bench.settings.task.name, bench.batch_size


def _until(seconds: float, tell: Tell) -> Iterator[None]:
    """Again and again until so many seconds have passed, twice at least."""
    started, turns = time.perf_counter(), 0
    while turns < 2 or time.perf_counter() - started < seconds:
        yield
        turns += 1
        tell(min(1.0, (time.perf_counter() - started) / seconds))
