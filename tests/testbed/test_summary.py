"""summary.json: every figure against numbers worked out by hand, and the contract's exact keys."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedpruneshare.errors import PeerError, RunError
from testbed.ledger.rounds import BytesDown, BytesUp, CoordinatorRound, DeviceRound, PhaseJoules, merge
from testbed.summary import (
    ARM,
    Energy,
    SeedRun,
    Sharing,
    Summary,
    arm_figures,
    read_summary,
    seed_figures,
    write_summary,
)

SHARING = Sharing(n=3, k=2, t=1)

FIGURES = {
    "final_accuracy", "final_accuracy_sd", "last_accuracy", "best_accuracy", "rounds_applied", "rounds_failed",
    "verified", "density_final", "sharing", "uplink_bytes", "downlink_bytes", "uplink_share_bytes",
    "uplink_bytes_per_device_round", "uplink_bytes_last_round_per_device", "wire_bytes", "energy_j", "wall_s",
}  # fmt: skip


def seven_rounds(seed: int = 1, gain: float = 0.0) -> SeedRun:
    """Rounds 1 to 6 applied at accuracy 0.1 to 0.6 (+gain), round 7 failed; two devices, b declines round 6."""
    rounds = [
        CoordinatorRound(number, "APPLIED", accuracy=number / 10 + gain, density=1.0 - number / 10, verified=True)
        for number in range(1, 7)
    ]
    rounds.append(CoordinatorRound(7, "FAILED", "too few devices", density=0.4))
    ledgers = {
        "a": [
            DeviceRound(0, up=BytesUp(control=11), down=BytesDown(other=1)),
            *(DeviceRound(n, "uploaded", up=BytesUp(1000, 100, 10), down=BytesDown(50, 5)) for n in range(1, 7)),
            DeviceRound(7, "incomplete", up=BytesUp(500)),
        ],
        "b": [
            *(DeviceRound(n, "uploaded", up=BytesUp(2000, 0, 10), down=BytesDown(50, 5)) for n in range(1, 6)),
            DeviceRound(6, "declined", up=BytesUp(control=20)),
        ],
    }
    return SeedRun(merge(seed, rounds, ledgers), wall_s=12.5, sharing=SHARING)


def test_the_figures_of_one_seed() -> None:
    figures = seed_figures(seven_rounds())
    assert figures.final_accuracy == pytest.approx((0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 5)
    assert (figures.last_accuracy, figures.best_accuracy, figures.final_accuracy_sd) == (0.6, 0.6, 0.0)
    assert (figures.rounds_applied, figures.rounds_failed, figures.verified) == (6, 1, True)
    assert figures.density_final == pytest.approx(0.4)
    assert figures.uplink_bytes == 11 + 6 * 1110 + 500 + 5 * 2010 + 20
    assert figures.downlink_bytes == 1 + 6 * 55 + 5 * 55
    assert figures.uplink_share_bytes == 6 * 1000 + 500 + 5 * 2000
    assert figures.uplink_bytes_per_device_round == pytest.approx((6 * 1110 + 5 * 2010) / 11)
    assert figures.uplink_bytes_last_round_per_device == 1110  # of round 6: b did not upload, round 7 failed
    wire = figures.wire_bytes
    assert (wire.up, wire.down, wire.source) == (figures.uplink_bytes, figures.downlink_bytes, "payload")
    assert figures.energy_j is None
    assert (figures.sharing, figures.wall_s) == (SHARING, 12.5)


def test_several_seeds_give_mean_accuracies_and_total_bytes() -> None:
    one = seed_figures(seven_rounds())
    arm = arm_figures([seven_rounds(1), seven_rounds(2, gain=0.2)])
    assert arm.final_accuracy == pytest.approx(0.5)
    assert arm.final_accuracy_sd == pytest.approx(math.sqrt(2 * 0.1**2))
    assert arm.last_accuracy == pytest.approx(0.7)
    assert (arm.rounds_applied, arm.rounds_failed) == (12, 2)
    assert (arm.uplink_bytes, arm.downlink_bytes) == (2 * one.uplink_bytes, 2 * one.downlink_bytes)
    assert arm.uplink_bytes_per_device_round == pytest.approx(one.uplink_bytes_per_device_round)
    assert arm.wall_s == 25.0
    assert arm.by_seed[0] == one
    assert arm.by_seed[1].last_accuracy == pytest.approx(0.8)


def with_energy(seed: int, **sources: dict[str, float | None]) -> SeedRun:
    """Two rounds; each device has the joules by phase in the first one, and half of them in the second."""
    ledgers = {}
    for device, phases in sources.items():
        source = device.split("_")[0]
        halves = {phase: None if joules is None else joules / 2 for phase, joules in phases.items()}
        ledgers[device] = [
            DeviceRound(number, "uploaded", energy={phase: PhaseJoules(source, j) for phase, j in found.items()})
            for number, found in ((1, phases), (2, halves))
        ]
    rounds = [CoordinatorRound(number, "APPLIED", accuracy=0.5) for number in (1, 2)]
    return SeedRun(merge(seed, rounds, ledgers), 1.0, SHARING)


def test_joules_of_one_source_are_one_component_for_each_phase() -> None:
    run = with_energy(1, model_a={"train": 10.0, "send": 2.0}, model_b={"train": 20.0})
    assert seed_figures(run).energy_j == {"train": Energy(45.0, "model"), "send": Energy(3.0, "model")}
    arm = arm_figures([run, with_energy(2, model_a={"train": 100.0})])
    assert arm.energy_j == {"train": Energy(195.0, "model"), "send": Energy(3.0, "model")}


def test_joules_of_different_sources_are_never_added() -> None:
    run = with_energy(1, model_a={"train": 10.0}, rapl_b={"train": 20.0}, rapl_c={"train": 2.0, "idle": 4.0})
    assert seed_figures(run).energy_j == {
        "train (model)": Energy(15.0, "model"),
        "train (rapl)": Energy(33.0, "rapl"),
        "idle (rapl)": Energy(6.0, "rapl"),
    }
    # Two seeds, each of one source: together they differ.
    arm = arm_figures([with_energy(1, model_a={"train": 10.0}), with_energy(2, rapl_a={"train": 10.0})])
    assert arm.energy_j == {"train (model)": Energy(15.0, "model"), "train (rapl)": Energy(15.0, "rapl")}
    assert arm.by_seed[0].energy_j == {"train": Energy(15.0, "model")}


def test_joules_of_some_devices_are_not_passed_off_as_those_of_all() -> None:
    run = with_energy(1, ina3221_a={"train": 10.0}, ina3221_b={"train": None}, none_c={})
    assert seed_figures(run).energy_j == {"train": Energy(15.0, "ina3221, 2 of 6 ledger entries")}
    assert seed_figures(with_energy(1, ina3221_b={"train": None})).energy_j is None


def test_one_unchecked_round_makes_a_run_unverified() -> None:
    rounds = [
        CoordinatorRound(1, "APPLIED", accuracy=0.5, verified=True),
        CoordinatorRound(2, "APPLIED", accuracy=0.5, verified=False),
    ]
    assert not seed_figures(SeedRun(merge(1, rounds, {}), 1.0, SHARING)).verified


def test_a_run_that_never_evaluated_needs_the_initial_model() -> None:
    rounds = merge(1, [CoordinatorRound(1, "FAILED", "nobody came")], {})
    with pytest.raises(RunError, match="no accuracy to report"):
        seed_figures(SeedRun(rounds, 1.0, SHARING))
    figures = seed_figures(SeedRun(rounds, 1.0, SHARING, initial_accuracy=0.17))
    assert (figures.final_accuracy, figures.density_final, figures.verified) == (0.17, 1.0, False)
    assert (figures.uplink_bytes_per_device_round, figures.uplink_bytes_last_round_per_device) == (0.0, 0.0)


def test_the_file_has_the_contracts_keys_and_no_others(tmp_path: Path) -> None:
    arm = arm_figures([seven_rounds(1), seven_rounds(2)])
    summary = Summary(scenario="demo", seeds=(1, 2), task="hapt", devices=2, emulated=True, arms={ARM: arm})
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    body = json.loads(path.read_text())
    assert set(body) == {"schema", "scenario", "seeds", "task", "metric", "devices", "emulated", "arms", "conditions"}
    assert (body["schema"], body["metric"], list(body["arms"])) == (1, "accuracy", ["fedpruneshare"])
    written = body["arms"]["fedpruneshare"]
    assert set(written) == FIGURES | {"by_seed"}
    assert [set(seed) for seed in written["by_seed"]] == [FIGURES, FIGURES]
    assert set(written["wire_bytes"]) == {"up", "down", "source"}
    assert written["sharing"] == {"n": 3, "k": 2, "t": 1, "reveal": "sum"}
    assert read_summary(path) == summary


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema", 2), ("metric", "loss"), ("devices", -1), ("emulated", "yes"), ("data", "fixture"), ("arms", {"x": {}})],
)
def test_a_summary_that_breaks_the_contract_is_refused(tmp_path: Path, key: str, value: object) -> None:
    summary = Summary(
        scenario="demo", seeds=(1,), task="hapt", devices=2, emulated=True, arms={ARM: arm_figures([seven_rounds()])}
    )
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, key: value}))
    with pytest.raises(PeerError, match="expected a summary of schema 1"):
        read_summary(path)


def of_values() -> SeedRun:
    rounds = [CoordinatorRound(number, "APPLIED", accuracy=8.0 / number) for number in (1, 4, 2)]
    return SeedRun(merge(1, rounds, {}), 1.0, SHARING, metric="rmse")


def test_the_best_of_an_error_is_the_lowest_and_may_exceed_one(tmp_path: Path) -> None:
    arm = arm_figures([of_values()])
    assert (arm.best_accuracy, arm.last_accuracy) == (2.0, 4.0)
    facts = {"scenario": "demo", "seeds": (1,), "task": "t", "devices": 2, "emulated": True, "arms": {ARM: arm}}
    summary = Summary(metric="rmse", **facts)  # type: ignore[arg-type]
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    with pytest.raises(ValueError, match="accuracy of 4"):
        Summary(metric="accuracy", **facts)  # type: ignore[arg-type]
    body = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**body, "metric": "macro_f1"}))
    with pytest.raises(PeerError, match="expected 0 to 1"):
        read_summary(tmp_path / "summary.json")
