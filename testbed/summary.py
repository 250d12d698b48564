"""summary.json: the figures of a run, each computed from counted bytes and evaluated models.

For several seeds, accuracies, density and rates are means over the seeds; rounds, bytes and seconds are totals.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import PeerError, RunError
from fedpruneshare.metrics import METRICS, MetricName
from fedpruneshare.storage import write_atomically
from testbed.ledger.rounds import OWN_ARM, RunRound, read_rounds

ARM: Final = OWN_ARM
#: Evaluations whose mean is the final accuracy.
LAST_EVALUATIONS: Final = 5
#: The key of the conditions that says which version of the project ran.
VERSION: Final = "version"

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all parts: what is read back must be exactly this."""


class Sharing(_Closed, frozen=True):
    """n aggregators, any k open the sum, any t together learn nothing.

    `reveal`: whether the coordinator sees only sums, or each single update.
    """

    n: int
    k: int
    t: int
    reveal: Literal["sum", "each"] = "sum"


class WireBytes(_Closed, frozen=True):
    """Bytes of all devices, and what counted them: MQTT payloads, or the devices' network interfaces."""

    up: Count
    down: Count
    source: Literal["interface", "payload"]


class Energy(_Closed, frozen=True):
    """Joules of one component and what measured or modelled them.

    A component is a phase of the devices' rounds, all devices together; where they differ in source, one for each
    source ("train (rapl)"): what is measured and what is modelled is never added. `source` says how many entries of the
    devices' ledgers have a figure where some have none. Idle includes the time between rounds.
    """

    value: float
    source: str


class Figures(_Closed, frozen=True, kw_only=True):
    """The figures of one arm. Bytes are MQTT payload bytes of all devices; `final_accuracy_sd` is over the seeds.

    What is called accuracy is the metric of the summary: in 0..1 where that is a share, else any number. The best of it
    is the highest or the lowest, whichever way the metric is better.
    """

    final_accuracy: float
    final_accuracy_sd: float
    last_accuracy: float
    best_accuracy: float
    rounds_applied: Count
    rounds_failed: Count
    verified: bool
    density_final: Share
    sharing: Sharing | None
    uplink_bytes: Count
    downlink_bytes: Count
    uplink_share_bytes: Count
    uplink_bytes_per_device_round: float
    uplink_bytes_last_round_per_device: float
    wire_bytes: WireBytes
    energy_j: dict[str, Energy] | None
    wall_s: float


class Arm(Figures, frozen=True, kw_only=True):
    """The figures over all seeds, and of each seed in the order of the summary's `seeds`."""

    by_seed: tuple[Figures, ...]


class Summary(_Closed, frozen=True, kw_only=True):
    """The whole of summary.json. `conditions`: what was emulated and how, as `Fleet.conditions` says."""

    schema: Literal[1] = 1
    scenario: str
    seeds: tuple[int, ...]
    task: str
    metric: MetricName = "accuracy"
    devices: Count
    emulated: bool
    arms: dict[str, Arm]
    conditions: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if METRICS[self.metric].is_share:
            for name, arm in self.arms.items():
                _check_shares(name, (arm, *arm.by_seed))


def _check_shares(name: str, figures: Sequence[Figures]) -> None:
    for one in figures:
        for found in (one.final_accuracy, one.last_accuracy, one.best_accuracy):
            if not 0 <= found <= 1:
                raise ValueError(f"arm {name!r} has an accuracy of {found}, expected 0 to 1")


@dataclass(frozen=True)
class SeedRun:
    """What one seed's run left: its merged rounds, how long it took, and who shared among whom.

    `metric` is what the rounds' `accuracy` is of. `initial_accuracy` is that of the model before the first round; it
    stands in where no round was evaluated.
    """

    rounds: Sequence[RunRound]
    wall_s: float
    sharing: Sharing | None
    initial_accuracy: float | None = None
    metric: MetricName = "accuracy"


def seed_figures(run: SeedRun) -> Figures:
    """The figures of one seed. Raises `RunError` where no model was ever evaluated."""
    rounds = [line for line in run.rounds if line.phase != "OUTSIDE"]
    applied = [line for line in rounds if line.phase == "APPLIED"]
    accuracies = _accuracies(rounds, run.initial_accuracy)
    uploads = sum(line.uploads for line in rounds)
    last = next((line for line in reversed(applied) if line.uploads), None)
    up, down = sum(line.up.total for line in run.rounds), sum(line.down.total for line in run.rounds)
    return Figures(
        final_accuracy=statistics.fmean(accuracies[-LAST_EVALUATIONS:]),
        final_accuracy_sd=0.0,
        last_accuracy=accuracies[-1],
        best_accuracy=METRICS[run.metric].best(accuracies),
        rounds_applied=len(applied),
        rounds_failed=len(rounds) - len(applied),
        verified=bool(applied) and all(line.verified for line in applied),
        # The model starts dense, and a failed round leaves it as it was.
        density_final=1.0 if not applied or applied[-1].density is None else applied[-1].density,
        sharing=run.sharing,
        uplink_bytes=up,
        downlink_bytes=down,
        uplink_share_bytes=sum(line.up.shares for line in run.rounds),
        uplink_bytes_per_device_round=sum(line.uploaded_bytes for line in rounds) / uploads if uploads else 0.0,
        uplink_bytes_last_round_per_device=last.uploaded_bytes / last.uploads if last else 0.0,
        wire_bytes=_wire_bytes(run.rounds, WireBytes(up, down, "payload")),
        energy_j=energy_figures(run.rounds),
        wall_s=run.wall_s,
    )


def _wire_bytes(rounds: Sequence[RunRound], payload: WireBytes) -> WireBytes:
    """What passed the devices' interfaces where every line counted it, else the payload alone."""
    ups, downs = [line.wire_up for line in rounds], [line.wire_down for line in rounds]
    if not rounds or None in ups or None in downs:
        return payload
    return WireBytes(sum(up or 0 for up in ups), sum(down or 0 for down in downs), "interface")


def energy_figures(rounds: Sequence[RunRound]) -> dict[str, Energy] | None:
    """Joules by phase, each sum of one source; None where no device had any."""
    counts, sums = Counter[str](), defaultdict[tuple[str, str], float](float)
    for line in rounds:
        counts.update(line.energy_entries)
        for source, phases in line.energy_j.items():
            for phase, joules in phases.items():
                sums[phase, source] += joules
    if not counts:
        return None
    missing = sum(line.energy_missing for line in rounds)
    has = f"{sum(counts.values())} of {sum(counts.values()) + missing} ledger entries"
    return {
        phase if len(counts) == 1 else f"{phase} ({source})": Energy(joules, f"{source}, {has}" if missing else source)
        for (phase, source), joules in sums.items()
    }


def _accuracies(rounds: Sequence[RunRound], initial: float | None) -> list[float]:
    found = [line.accuracy for line in rounds if line.accuracy is not None]
    if not found and initial is not None:
        return [initial]
    if not found:
        raise RunError("no round was evaluated and the initial model was not either: there is no accuracy to report")
    return found


def arm_figures(runs: Sequence[SeedRun]) -> Arm:
    """The figures of an arm over its seeds. Raises `RunError` where a seed has no accuracy."""
    seeds = tuple(seed_figures(run) for run in runs)
    finals = [one.final_accuracy for one in seeds]
    uploads = sum(line.uploads for run in runs for line in run.rounds)
    uploaded = sum(line.uploaded_bytes for run in runs for line in run.rounds)
    up, down = sum(one.uplink_bytes for one in seeds), sum(one.downlink_bytes for one in seeds)
    return Arm(
        final_accuracy=statistics.fmean(finals),
        final_accuracy_sd=statistics.stdev(finals) if len(finals) > 1 else 0.0,
        last_accuracy=statistics.fmean(one.last_accuracy for one in seeds),
        best_accuracy=statistics.fmean(one.best_accuracy for one in seeds),
        rounds_applied=sum(one.rounds_applied for one in seeds),
        rounds_failed=sum(one.rounds_failed for one in seeds),
        verified=all(one.verified for one in seeds),
        density_final=statistics.fmean(one.density_final for one in seeds),
        sharing=seeds[0].sharing,
        uplink_bytes=up,
        downlink_bytes=down,
        uplink_share_bytes=sum(one.uplink_share_bytes for one in seeds),
        uplink_bytes_per_device_round=uploaded / uploads if uploads else 0.0,
        uplink_bytes_last_round_per_device=statistics.fmean(one.uplink_bytes_last_round_per_device for one in seeds),
        wire_bytes=_wire_bytes([line for run in runs for line in run.rounds], WireBytes(up, down, "payload")),
        energy_j=energy_figures([line for run in runs for line in run.rounds]),
        wall_s=sum(one.wall_s for one in seeds),
        by_seed=seeds,
    )


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json, indented, in the order of the fields."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def read_summary(path: Path) -> Summary:
    """Read and check summary.json. Raises `PeerError` where a field is missing, unknown or out of bounds."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except OSError as error:
        raise PeerError(f"{path}: {error.strerror}, expected the summary of a run") from None
    except msgspec.DecodeError as error:
        raise PeerError(f"{path}: {error}, expected a summary of schema 1") from None


def read_run_rounds(path: Path, summary: Summary) -> list[RunRound]:
    """Read the rounds.jsonl beside a summary. Raises `PeerError` where it lacks rounds that the summary counts."""
    rounds = read_rounds(path)
    check_lines(path, summary, [(line.arm, line.seed) for line in rounds if line.phase != "OUTSIDE"], 1)
    return rounds


def check_lines(path: Path, summary: Summary, lines: Sequence[tuple[str, int]], a_round: int) -> None:
    """Raise `PeerError` unless there are `a_round` lines, each with its arm and seed, for every round of the summary.

    The lines of a run with a single arm are that arm's, whatever they say.
    """
    counts = Counter((name if len(summary.arms) > 1 else "", seed) for name, seed in lines)
    for name, arm in summary.arms.items():
        for seed, figures in zip(summary.seeds, arm.by_seed, strict=True):
            found = counts[name if len(summary.arms) > 1 else "", seed]
            expected = a_round * (figures.rounds_applied + figures.rounds_failed)
            if found != expected:
                raise PeerError(
                    f"{path} is not whole: found {found} lines of {name}, seed {seed}, "
                    f"expected {expected} as summary.json counts its rounds"
                )
