"""What a run cost, from what its parties wrote down: coordinator's rounds and devices' ledgers -> rounds.jsonl.

Bytes are MQTT payload bytes, counted by the devices themselves as they pass (docs/protocol.md §9.1). Round 0 stands for
bytes outside any round, such as a device's hello, so that the lines of a run add up to everything its devices sent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from fedpruneshare.errors import PeerError

T = TypeVar("T")
Phase = Literal["APPLIED", "FAILED", "OUTSIDE"]
#: The arm that is the project itself (docs/glossary.md, "arm").
OWN_ARM: Final = "fedpruneshare"
UPLOADED: Final = "uploaded"
#: The phase of waiting. It lasts as long as this machine takes over everybody's work: no arm can help it.
IDLE: Final = "idle"
ROUNDS: Final = "rounds.jsonl"
#: How an entry reads of a round in which the device did nothing: not asked, or never begun.
_IDLE_STATUS = ("not-in-cohort", "")


class CoordinatorRound(msgspec.Struct, frozen=True):
    """One line of the coordinator's rounds.jsonl. `accuracy` is None where nothing was evaluated."""

    round: int
    phase: Phase
    reason: str = ""
    contributors: int = 0
    aggregators: tuple[str, ...] = ()
    verified: bool = False
    verified_by: str = ""
    density: float | None = None
    rungs: tuple[int, ...] = ()
    segments_open: tuple[int, ...] = ()
    accuracy: float | None = None
    loss: float | None = None
    seconds: dict[str, float] = {}
    model_bytes: int = 0
    reveal: Literal["sum", "each", "plain"] = "sum"
    dealers_checked: bool = False
    left_out_devices: tuple[str, ...] = ()
    wrong_aggregators: tuple[str, ...] = ()
    started_at: float = 0.0


class InterfaceBytes(NamedTuple):
    """Bytes that left (`up`) and reached (`down`) a device's network interface, headers of every layer included."""

    up: int
    down: int


#: Interface bytes by round and device. A round that is not in it was not counted.
InterfaceLedger = Mapping[int, Mapping[str, InterfaceBytes]]


class BytesUp(msgspec.Struct, frozen=True):
    """Bytes a device sent: shares at first transmission, shares sent again, everything else."""

    shares: int = 0
    resent: int = 0
    control: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.shares + self.resent + self.control

    def __add__(self, other: BytesUp) -> BytesUp:
        return BytesUp(self.shares + other.shares, self.resent + other.resent, self.control + other.control)


class BytesDown(msgspec.Struct, frozen=True):
    """Bytes a device received: model, plans, receipts, everything else."""

    model: int = 0
    plan: int = 0
    receipts: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.model + self.plan + self.receipts + self.other

    def __add__(self, other: BytesDown) -> BytesDown:
        return BytesDown(
            self.model + other.model,
            self.plan + other.plan,
            self.receipts + other.receipts,
            self.other + other.other,
        )


class PhaseJoules(msgspec.Struct, frozen=True):
    """Joules of one phase of one device's round, None where there is no figure, and what measured or modelled them."""

    source: str
    joules: float | None = None
    modelled: bool = False
    uncertainty_j: float | None = None
    reason: str = ""


class LinkCounts(msgspec.Struct, frozen=True):
    """What a device's links counted for themselves: MQTT payload bytes and messages, and connections granted."""

    sent_bytes: int = 0
    sent_messages: int = 0
    received_bytes: int = 0
    received_messages: int = 0
    connects: int = 0


class DeviceRound(msgspec.Struct, frozen=True):
    """One line of a device's ledger.jsonl. `energy`: by phase. `prediction`: what the device expected and what came.

    `phase` is what it was doing when the line was written. `traffic` is None where nobody counted at the links.
    """

    round: int
    status: str = ""
    rung: int | None = None
    constraint: str = ""
    reason: str = ""
    up: BytesUp = BytesUp()
    down: BytesDown = BytesDown()
    seconds: dict[str, float] = {}
    examples: int = 0
    weight: int = 0
    loss: float | None = None
    width: float | None = None
    local_steps: int = 0
    prediction: dict[str, Any] = {}
    energy: dict[str, PhaseJoules] = {}
    spans: tuple[tuple[str, float, float], ...] = ()
    shares_by: dict[str, int] = {}
    traffic: LinkCounts | None = None
    phase: str = ""

    @property
    def has_energy(self) -> bool:
        """Whether there is a figure for every phase."""
        return bool(self.energy) and all(part.joules is not None for part in self.energy.values())


class RunRound(msgspec.Struct, frozen=True):
    """One line of a run's rounds.jsonl: what the coordinator says of a round, and what it cost the devices.

    `devices` counts them by how the round ended for them. `uploaded_bytes` is what the devices with a completed upload
    sent in this round, control and re-sends included. `uplink_bytes_so_far` starts with the bytes outside any round.
    `energy_j` are joules of all devices by source and phase, from `energy_entries` entries of their ledgers by source;
    those of different sources are never added. `energy_missing` counts entries that ought to have joules and have none.
    `left_out_devices` uploaded what does not fit together or no device may send, `wrong_aggregators` answered otherwise
    than the rest. `wire_up`, `wire_down`: bytes at the interfaces of all devices, None where nobody counted them there.
    `started_at`: when the coordinator began the round, in seconds since 1970 (0: not known). `events`: what the testbed
    did to the fleet in it.
    """

    seed: int
    round: int
    phase: Phase
    reason: str
    accuracy: float | None
    loss: float | None
    density: float | None
    contributors: int
    aggregators: tuple[str, ...]
    verified: bool
    rungs: tuple[int, ...]
    segments_open: tuple[int, ...]
    devices: dict[str, int]
    up: BytesUp
    down: BytesDown
    uploads: int
    uploaded_bytes: int
    uplink_bytes_so_far: int
    seconds: dict[str, float]
    model_bytes: int
    reveal: Literal["sum", "each", "plain"] = "sum"
    dealers_checked: bool = False
    left_out_devices: tuple[str, ...] = ()
    wrong_aggregators: tuple[str, ...] = ()
    energy_j: dict[str, dict[str, float]] = {}
    energy_entries: dict[str, int] = {}
    energy_missing: int = 0
    arm: str = OWN_ARM
    shares_by: dict[str, int] = {}
    wire_up: int | None = None
    wire_down: int | None = None
    started_at: float = 0.0
    events: tuple[str, ...] = ()
    verified_by: str = ""


#: Fields of a round that are as the coordinator says.
_SAID: Final = tuple(name for name in CoordinatorRound.__struct_fields__ if name in RunRound.__struct_fields__)


@dataclass(frozen=True)
class Around:
    """What the testbed adds to what the parties wrote: the arm, interface bytes and events by round."""

    arm: str = OWN_ARM
    interface: InterfaceLedger = field(default_factory=dict)
    events: Mapping[int, Sequence[str]] = field(default_factory=dict)


def read_coordinator_rounds(path: Path) -> list[CoordinatorRound]:
    """The coordinator's finished rounds in order; the last line counts where a round stands twice. No file: none."""
    by_number = {line.round: line for line in read_lines(path, CoordinatorRound)}
    return [by_number[number] for number in sorted(by_number)]


def read_ledgers(paths: Mapping[str, Path]) -> dict[str, list[DeviceRound]]:
    """The ledger of each device by name. A device that never wrote one has an empty one."""
    return {device: read_lines(path, DeviceRound) for device, path in paths.items()}


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """A file of JSON lines; a last line without its end is still being written and left out.

    Raises `PeerError` with file and line where one does not decode.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    decoder = msgspec.json.Decoder(kind)
    lines: list[T] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            lines.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise PeerError(f"{path}, line {number}: {error}, expected a line of {kind.__name__}") from None
    return lines


def merge(
    seed: int,
    rounds: Iterable[CoordinatorRound],
    ledgers: Mapping[str, Sequence[DeviceRound]],
    around: Around | None = None,
) -> list[RunRound]:
    """The lines of a run's rounds.jsonl, round 0 first.

    Bytes of a round the coordinator never finished (it was stopped in it) are added to round 0: nothing is lost.
    """
    finished, around = list(rounds), around or Around()
    by_round = entries_by_round({line.round for line in finished}, ledgers)
    merged = []
    so_far = 0
    for line in [CoordinatorRound(0, "OUTSIDE"), *finished]:
        made = _merged(seed, line, by_round.get(line.round, {}), so_far)
        so_far = made.uplink_bytes_so_far
        merged.append(_surrounded(made, around))
    return merged


def entries_by_round(
    finished: Collection[int], ledgers: Mapping[str, Sequence[DeviceRound]]
) -> dict[int, dict[str, list[DeviceRound]]]:
    """Ledger entries by round and device; those of a round that never finished stand in round 0."""
    by_round: dict[int, dict[str, list[DeviceRound]]] = defaultdict(lambda: defaultdict(list))
    for device, lines in ledgers.items():
        for entry in lines:
            by_round[entry.round if entry.round in finished else 0][device].append(entry)
    return by_round


def _surrounded(line: RunRound, around: Around) -> RunRound:
    found = around.interface.get(line.round)
    return msgspec.structs.replace(
        line,
        arm=around.arm,
        wire_up=None if found is None else sum(one.up for one in found.values()),
        wire_down=None if found is None else sum(one.down for one in found.values()),
        events=tuple(around.events.get(line.round, ())),
    )


def _merged(seed: int, line: CoordinatorRound, devices: Mapping[str, Sequence[DeviceRound]], so_far: int) -> RunRound:
    """One line. A device restarted within the round has several entries: bytes add up, the last status counts."""
    up = {device: sum((entry.up for entry in entries), BytesUp()) for device, entries in devices.items()}
    status = {} if line.phase == "OUTSIDE" else {device: entries[-1].status for device, entries in devices.items()}
    uploads = [device for device, ending in status.items() if ending == UPLOADED]
    total = sum(up.values(), BytesUp())
    every = [entry for entries in devices.values() for entry in entries]
    said = {name: getattr(line, name) for name in _SAID}
    return RunRound(
        **said,
        seed=seed,
        devices=dict(sorted(Counter(status.values()).items())),
        up=total,
        down=sum((entry.down for entry in every), BytesDown()),
        uploads=len(uploads),
        uploaded_bytes=sum(up[device].total for device in uploads),
        uplink_bytes_so_far=so_far + total.total,
        energy_j=_joules(every),
        energy_entries=dict(sorted(Counter(_source(entry) for entry in every if entry.has_energy).items())),
        energy_missing=sum(not entry.has_energy for entry in every if entry.energy or _took_part(entry)),
        shares_by=added(entry.shares_by for entry in every),
    )


def added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up by name."""
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))


def _joules(entries: Iterable[DeviceRound]) -> dict[str, dict[str, float]]:
    """Joules by source and phase, of the entries that have a figure for every phase."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for entry in entries:
        if entry.has_energy:
            for phase, part in entry.energy.items():
                sums[part.source][phase] += part.joules or 0.0
    return {source: dict(phases) for source, phases in sorted(sums.items())}


def _took_part(entry: DeviceRound) -> bool:
    return entry.round > 0 and entry.status not in _IDLE_STATUS


def _source(entry: DeviceRound) -> str:
    """What measured or modelled a round: one source, a device never mixes them in a round."""
    return next(iter(entry.energy.values())).source


def write_rounds(path: Path, rounds: Iterable[RunRound]) -> None:
    """Write rounds.jsonl."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in rounds))


def read_rounds(path: Path) -> list[RunRound]:
    """Read a run's rounds.jsonl. Raises `PeerError` where it is not one."""
    return read_lines(path, RunRound)
