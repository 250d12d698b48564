"""What a run cost, from what its parties wrote down: coordinator's rounds and devices' ledgers -> rounds.jsonl.

Bytes are MQTT payload bytes, counted by the devices themselves as they pass (docs/protocol.md §9.1). Round 0 stands for
bytes outside any round, such as a device's hello, so that the lines of a run add up to everything its devices sent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from fedpruneshare.errors import PeerError

T = TypeVar("T")
Phase = Literal["APPLIED", "FAILED", "OUTSIDE"]
UPLOADED = "uploaded"
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
    density: float | None = None
    rungs: tuple[int, ...] = ()
    segments_open: tuple[int, ...] = ()
    accuracy: float | None = None
    loss: float | None = None
    seconds: dict[str, float] = {}
    model_bytes: int = 0
    reveal: Literal["sum", "each"] = "sum"
    dealers_checked: bool = False
    left_out_devices: tuple[str, ...] = ()
    wrong_aggregators: tuple[str, ...] = ()


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


class DeviceRound(msgspec.Struct, frozen=True):
    """One line of a device's ledger.jsonl. `energy`: by phase. `prediction`: what the device expected and what came."""

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
    than the rest.
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
    reveal: Literal["sum", "each"] = "sum"
    dealers_checked: bool = False
    left_out_devices: tuple[str, ...] = ()
    wrong_aggregators: tuple[str, ...] = ()
    energy_j: dict[str, dict[str, float]] = {}
    energy_entries: dict[str, int] = {}
    energy_missing: int = 0


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


def uplink_bytes(ledgers: Mapping[str, Sequence[DeviceRound]]) -> int:
    """What all devices have sent so far."""
    return sum(line.up.total for lines in ledgers.values() for line in lines)


def merge(
    seed: int, rounds: Iterable[CoordinatorRound], ledgers: Mapping[str, Sequence[DeviceRound]]
) -> list[RunRound]:
    """The lines of a run's rounds.jsonl, round 0 first.

    Bytes of a round the coordinator never finished (it was stopped in it) are added to round 0: nothing is lost.
    """
    finished = list(rounds)
    numbers = {line.round for line in finished}
    by_round: dict[int, dict[str, list[DeviceRound]]] = defaultdict(lambda: defaultdict(list))
    for device, lines in ledgers.items():
        for entry in lines:
            by_round[entry.round if entry.round in numbers else 0][device].append(entry)
    merged = []
    so_far = 0
    for line in [CoordinatorRound(0, "OUTSIDE"), *finished]:
        made = _merged(seed, line, by_round[line.round], so_far)
        so_far = made.uplink_bytes_so_far
        merged.append(made)
    return merged


def _merged(seed: int, line: CoordinatorRound, devices: Mapping[str, Sequence[DeviceRound]], so_far: int) -> RunRound:
    """One line. A device restarted within the round has several entries: bytes add up, the last status counts."""
    up = {device: sum((entry.up for entry in entries), BytesUp()) for device, entries in devices.items()}
    down = sum((entry.down for entries in devices.values() for entry in entries), BytesDown())
    status = {} if line.phase == "OUTSIDE" else {device: entries[-1].status for device, entries in devices.items()}
    uploads = [device for device, ending in status.items() if ending == UPLOADED]
    total = sum(up.values(), BytesUp())
    every = [entry for entries in devices.values() for entry in entries]
    return RunRound(
        seed=seed,
        round=line.round,
        phase=line.phase,
        reason=line.reason,
        accuracy=line.accuracy,
        loss=line.loss,
        density=line.density,
        contributors=line.contributors,
        aggregators=line.aggregators,
        verified=line.verified,
        rungs=line.rungs,
        segments_open=line.segments_open,
        devices=dict(sorted(Counter(status.values()).items())),
        up=total,
        down=down,
        uploads=len(uploads),
        uploaded_bytes=sum(up[device].total for device in uploads),
        uplink_bytes_so_far=so_far + total.total,
        seconds=line.seconds,
        model_bytes=line.model_bytes,
        reveal=line.reveal,
        dealers_checked=line.dealers_checked,
        left_out_devices=line.left_out_devices,
        wrong_aggregators=line.wrong_aggregators,
        energy_j=_joules(every),
        energy_entries=dict(sorted(Counter(_source(entry) for entry in every if entry.has_energy).items())),
        energy_missing=sum(not entry.has_energy for entry in every if entry.energy or _took_part(entry)),
    )


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
