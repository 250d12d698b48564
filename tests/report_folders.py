"""Run folders as a comparison leaves them, made by rule and not by running: for tests of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedpruneshare.settings import render_toml
from testbed.ledger.device_lines import DeviceFacts, DeviceLine, device_lines, write_devices
from testbed.ledger.rounds import (
    Around,
    BytesDown,
    BytesUp,
    CoordinatorRound,
    DeviceRound,
    InterfaceBytes,
    PhaseJoules,
    RunRound,
    merge,
    write_rounds,
)
from testbed.scenario import DeviceGroup, FleetSettings, Scenario, ScenarioTask
from testbed.summary import SeedRun, Sharing, Summary, arm_figures, write_summary

ARMS = ("fedavg", "prune-only", "share-only", "fedpruneshare")
#: Bytes a device uploads in the first round, and whether the arm prunes and shares.
_KINDS = {
    "fedavg": (177_700, False, False),
    "prune-only": (88_900, True, False),
    "share-only": (59_000, False, True),
    "fedpruneshare": (59_000, True, True),
}
_BOARDS = ("raspberry-pi-zero-2-w", "raspberry-pi-4b", "raspberry-pi-5")
_LINKS = ("lte", "wifi", "wifi")
_STARTED_AT = 1_790_000_000.0
CONDITIONS: dict[str, Any] = {
    "links": {
        "backend": "tap",
        "why": "outages are asked for",
        "kernel": "6.8",
        "profiles": {
            "lte": {
                "up_kbit_s": 2000.0,
                "down_kbit_s": 8000.0,
                "delay_ms": 40.0,
                "jitter_ms": 5.0,
                "loss_percent": 1.0,
                "metered": True,
                "devices": 3,
            },
            "wifi": {"up_kbit_s": 0.0, "down_kbit_s": 0.0, "delay_ms": 2.0, "devices": 6},
        },
        "congestion_control": {"asked": "cubic", "device": "cubic", "services": "cubic"},
        "offloads": {"tso": False, "gso": False, "gro": False},
        "self_test": {
            "lte": {
                "attempts": 1,
                "up": {"kbit_s": 1987.4, "delay_ms": 40.61, "delay_expected_ms": 40.2, "packets": 1000, "lost": 9},
                "down": {"kbit_s": 7990.1, "delay_ms": 40.44, "delay_expected_ms": 40.1, "packets": 1000, "lost": 11},
            }
        },
    },
    "boards": {"cpu": "cgroup", "memory": True},
    "engine": {"name": "process"},
}


@dataclass(frozen=True)
class Made:
    """What a made folder is to hold."""

    arms: Sequence[str] = ARMS
    seeds: Sequence[int] = (1, 2, 3)
    rounds: int = 12
    devices: int = 9
    cohort: int = 5
    has_wire: bool = True
    source: str = "model"
    conditions: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None


def made_folder(folder: Path, made: Made = Made()) -> Path:
    """Write a folder with every file of a run but its model and report."""
    folder.mkdir(parents=True, exist_ok=True)
    arms, rounds, devices = {}, [], []
    for arm in made.arms:
        runs = []
        for seed in made.seeds:
            merged, lines = one_run(arm, seed, made)
            runs.append(SeedRun(merged, 100.0 + 7 * seed, _sharing(arm)))
            rounds += merged
            devices += lines
        arms[arm] = arm_figures(runs)
    scenario = scenario_of(made)
    summary = Summary(
        scenario=scenario.name, seeds=tuple(made.seeds), task="fashion-mnist", devices=made.devices, emulated=True,
        arms=arms, conditions=dict(CONDITIONS if made.conditions is None else made.conditions),
    )  # fmt: skip
    write_summary(folder / "summary.json", summary)
    write_rounds(folder / "rounds.jsonl", rounds)
    write_devices(folder / "devices.jsonl", devices)
    (folder / "settings.toml").write_text(render_toml(scenario), "utf-8")
    return folder


def scenario_of(made: Made) -> Scenario:
    groups = tuple(DeviceGroup(board=board) for board in _BOARDS)
    scenario = Scenario(
        name="fashion-mnist-pi-fleet",
        description="30 Raspberry Pis, uneven shares of Fashion-MNIST, ten a round: four arms compared",
        seeds=tuple(made.seeds),
        task=ScenarioTask("fashion-mnist", data="full"),
        fleet=FleetSettings(devices=made.devices, groups=groups),
    )
    rounds = msgspec.structs.replace(scenario.rounds, count=made.rounds, cohort=made.cohort)
    data = msgspec.to_builtins(msgspec.structs.replace(scenario, rounds=rounds))
    for path, value in (made.settings or {}).items():
        *tables, key = path.split(".")
        inner = data
        for table in tables:
            inner = inner[table]
        inner[key] = value
    return msgspec.convert(data, Scenario)


def _sharing(arm: str) -> Sharing | None:
    return Sharing(3, 2, 1) if _KINDS[arm][2] else None


def one_run(arm: str, seed: int, made: Made) -> tuple[list[RunRound], list[DeviceLine]]:
    """The lines of rounds.jsonl and devices.jsonl of one seed."""
    rng = np.random.default_rng([seed, ARMS.index(arm)])
    names = [f"device-{index:02}" for index in range(made.devices)]
    facts = {
        name: DeviceFacts(group, _BOARDS[group], _LINKS[group])
        for index, name in enumerate(names)
        for group in [index * 3 // made.devices]
    }
    ledgers: dict[str, list[DeviceRound]] = {
        name: [DeviceRound(0, up=BytesUp(control=94), down=BytesDown(other=6060), energy=_energy({"idle": 9.0}, made))]
        for name in names
    }
    coordinator, interface, events, started_at = [], {}, {}, _STARTED_AT
    for number in range(1, made.rounds + 1):
        cohort = sorted(rng.choice(names, made.cohort, replace=False))
        length_s = 2.5 + rng.random()
        for name in names:
            if name in cohort:
                ledgers[name].append(_taken_part(arm, number, (facts[name], started_at, length_s), rng, made))
            elif not (number % 5 == 0 and name == names[-1]):
                ledgers[name].append(DeviceRound(number, "not-in-cohort", down=BytesDown(plan=2400)))
        events[number] = (f"reboot {names[-1]}",) if number % 5 == 0 else ()
        coordinator.append(_round(arm, number, (started_at, length_s), rng, made))
        started_at += length_s + 0.4
    if made.has_wire:
        every = {line.round for line in coordinator} | {0}
        interface = {number: _interface(number, ledgers) for number in every}
    around = Around(arm, interface, events)
    return merge(seed, coordinator, ledgers, around), device_lines(seed, coordinator, ledgers, facts, around)


def density(arm: str, number: int, made: Made) -> float:
    """1 until round 2, the target of 0.1 from the third part of the rounds on, as the schedule falls between."""
    if not _KINDS[arm][1]:
        return 1.0
    way = min(1.0, max(0.0, (number - 2) / (made.rounds / 3)))
    return 0.1 + 0.9 * (1 - way) ** 3


def _round(arm: str, number: int, when: tuple[float, float], rng: np.random.Generator, made: Made) -> CoordinatorRound:
    limit = 0.872 if arm in ("fedavg", "share-only") else 0.867
    accuracy = limit - 0.5 * math.exp(-number / (made.rounds / 6)) + rng.normal(0, 0.004)
    common = {
        "started_at": when[0],
        "seconds": {"collect": when[1] - 0.2, "sum": 0.05, "apply": 0.15, "total": when[1]},
    }
    if number == made.rounds // 2 and arm == "share-only":
        return CoordinatorRound(number, "FAILED", "contributors 2, expected 6", **common)  # type: ignore[arg-type]
    return CoordinatorRound(
        number, "APPLIED", contributors=made.cohort, aggregators=("aggregator-1", "aggregator-2", "aggregator-3"),
        verified=True, density=density(arm, number, made), rungs=(2, 2, 1), accuracy=accuracy, loss=0.4,
        model_bytes=70_000, **common,  # type: ignore[arg-type]
    )  # fmt: skip


def _taken_part(
    arm: str, number: int, at: tuple[DeviceFacts, float, float], rng: np.random.Generator, made: Made
) -> DeviceRound:
    facts, started_at, length_s = at
    first_bytes, prunes, shares = _KINDS[arm]
    draw, slow = rng.random(), (1.6, 1.2, 1.0)[facts.group]
    if draw < 0.04:
        return DeviceRound(number, "declined", constraint="battery", reason="battery at 4 %, reserve 5 %")
    rung = (0, 1, 2)[facts.group] if prunes else 0
    size = int(first_bytes * density(arm, number, made) * (1.0 if not prunes else (0.4, 0.7, 1.0)[facts.group]))
    lengths = {
        name: part * slow * length_s / 3 * rng.uniform(0.8, 1.1)
        for name, part in (
            ("receive", 0.2),
            ("prune", 0.05),
            ("train", 0.8),
            ("encode", 0.1),
            ("share", 0.1),
            ("send", 0.3),
        )
    }
    spans, now = [], started_at + 0.05
    for name, took_s in lengths.items():
        spans.append((name, now, now + took_s))
        now += took_s
    spans.append(("idle", now, max(now, started_at + length_s)))
    half = size // 2
    constraint = ("deadline", "rung_max", "plan")[facts.group] if prunes else "plan"
    return DeviceRound(
        number,
        "incomplete" if draw < 0.08 else "uploaded",
        rung=rung,
        constraint=constraint,
        up=BytesUp(size, int(size * 0.02) if facts.link == "lte" else 0, 126),
        shares_by={"aggregator-1": size - half, "aggregator-2": half} if shares else {"aggregator-1": size},
        down=BytesDown(int(60_000 * density(arm, number, made)) + 9000, 2400, 363),
        seconds={name: round(took_s, 4) for name, took_s in lengths.items()},
        local_steps=40,
        width=1.0,
        spans=tuple(spans),
        energy=_energy({name: took_s * 3.1 for name, took_s in lengths.items()} | {"idle": 1.2}, made),
    )  # fmt: skip


def _energy(phases: Mapping[str, float], made: Made) -> dict[str, PhaseJoules]:
    if not made.source:
        return {}
    return {phase: PhaseJoules(made.source, joules, made.source == "model") for phase, joules in phases.items()}


def _interface(number: int, ledgers: Mapping[str, Sequence[DeviceRound]]) -> dict[str, InterfaceBytes]:
    found = {}
    for device, lines in ledgers.items():
        mine = [line for line in lines if line.round == number]
        up, down = sum(line.up.total for line in mine), sum(line.down.total for line in mine)
        found[device] = InterfaceBytes(int(up * 1.061) + down // 60 + 40, int(down * 1.048) + up // 60 + 40)
    return found
