"""How a run stands: what its devices are doing, how far it is, what it has cost. Also OUT/progress.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from fedpruneshare.metrics import MetricName
from testbed.ledger.rounds import UPLOADED, DeviceRound

PROGRESS: Final = "progress.json"
RunPhase = Literal["starting", "running", "finished", "failed"]
#: What a device of a round is doing, in the order a view shows them. `at work`: of a fleet too large to ask each one.
STATES: Final = (
    "receiving", "pruning", "training", "encoding", "sharing", "uploading", "at work", "waiting", "declined",
    "not asked", "cut short", "refused", "idle", "offline",
)  # fmt: skip
_OF_PHASE: Final = {
    "receive": "receiving", "prune": "pruning", "train": "training", "encode": "encoding", "share": "sharing",
    "send": "uploading",
}  # fmt: skip
_OF_STATUS: Final = {UPLOADED: "waiting", "declined": "declined", "not-in-cohort": "not asked", "killed": "cut short"}


class RunState(msgspec.Struct, frozen=True):
    """How one run stands; the whole of progress.json. Every field has a default, so that older files are read.

    `round` is the one under way (0: none yet), `rounds` how many there will be. `accuracies`: by evaluated round, of
    `metric`. Bytes are MQTT payload of all devices; `wire_up`, `wire_down` what passed their interfaces, None where
    nobody counts that. `joules`: by source. `devices`: how many are in each of `STATES`. Times: seconds since 1970.
    """

    scenario: str = ""
    arm: str = ""
    seed: int = 0
    state: RunPhase = "starting"
    started_at: float = 0.0
    updated_at: float = 0.0
    round: int = 0
    rounds: int = 0
    rounds_applied: int = 0
    rounds_failed: int = 0
    metric: MetricName = "accuracy"
    accuracies: tuple[float, ...] = ()
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    wire_up: int | None = None
    wire_down: int | None = None
    joules: dict[str, float] = {}
    devices: dict[str, int] = {}
    events: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """The newest evaluation."""
        return self.accuracies[-1] if self.accuracies else None

    @property
    def closed(self) -> int:
        """Rounds that are over."""
        return self.rounds_applied + self.rounds_failed

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return max(0.0, self.updated_at - self.started_at)


def device_state(running: bool, now: DeviceRound | None, ended: DeviceRound | None, round_id: int) -> str:
    """What a device is doing: `now` is the entry it is at, `ended` its newest finished one of a round."""
    if not running:
        return "offline"
    if now is not None and now.round == round_id and round_id:
        if now.status == UPLOADED:
            return "waiting"
        return _OF_PHASE.get(now.phase, "receiving")
    if ended is not None and ended.round == round_id and round_id:
        return _OF_STATUS.get(ended.status, "refused" if ended.reason else "cut short")
    return "idle"


def in_order(states: Sequence[str]) -> dict[str, int]:
    """How many devices are in each state, in the order of `STATES`."""
    counts = Counter(states)
    return {state: counts[state] for state in STATES if counts[state]}


def what_goes_on(devices: Mapping[str, int]) -> str:
    """The state most of those are in that are at work in the round; empty where none is."""
    busy = {state: devices[state] for state in STATES[: STATES.index("waiting")] if state in devices}
    return max(busy, key=lambda state: busy[state]) if busy else ("closing" if devices.get("waiting") else "")


def write_progress(folder: Path, state: RunState) -> None:
    """Replace OUT/progress.json as a whole: whoever reads it sees one state or the next."""
    written = folder / f"{PROGRESS}.part"  # not synced: after a crash it is of no use
    written.write_bytes(msgspec.json.encode(state) + b"\n")
    written.replace(folder / PROGRESS)


def read_progress(folder: Path) -> RunState | None:
    """OUT/progress.json, None where there is none yet."""
    try:
        return msgspec.json.decode((folder / PROGRESS).read_bytes(), type=RunState)
    except (OSError, msgspec.DecodeError):
        return None
