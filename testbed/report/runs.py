"""What a report is made from: one run folder, or several whose runs are compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec

from fedpruneshare.errors import Fault, SettingsError
from fedpruneshare.metrics import METRICS, Metric
from fedpruneshare.settings import load_settings
from testbed.ledger.device_lines import DEVICES, DeviceLine, read_devices
from testbed.ledger.rounds import RunRound
from testbed.report.devices import DeviceTotal, device_totals
from testbed.scenario import Scenario
from testbed.summary import Arm, Sharing, Summary, check_lines, read_run_rounds, read_summary

#: Keys whose difference makes figures of two runs hard to compare, and why.
_WEIGHTY: Final = (
    ("seeds", "the draws differ"),
    ("task", "the data or their split differ"),
    ("fleet.devices", "the data are split otherwise"),
    ("rounds.count", "one trained longer"),
    ("rounds.cohort", "more devices train in a round"),
)
_ABSENT: Final = "not set"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run folder."""

    path: Path
    summary: Summary
    rounds: Sequence[RunRound]
    devices: Sequence[DeviceLine]
    scenario: Scenario
    settings_text: str
    model_bytes: int | None

    @property
    def conditions(self) -> dict[str, Any]:
        """What was emulated and how, as the run's parts say."""
        return self.summary.conditions


@dataclass(frozen=True)
class ArmRun:
    """One arm of one folder: what its name is here, its figures, its rounds of all seeds, its devices' lines."""

    name: str
    arm: str
    figures: Arm
    rounds: Sequence[RunRound]
    devices: Sequence[DeviceLine]
    folder: RunFolder

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of `figures.by_seed`."""
        return self.folder.summary.seeds

    @cached_property
    def totals(self) -> list[DeviceTotal]:
        """What each device did and cost over the rounds and seeds."""
        return device_totals(self.devices)

    def seed_rounds(self, seed: int) -> list[RunRound]:
        """The rounds of one seed, what was outside of any round left out."""
        return [line for line in self.rounds if line.seed == seed and line.phase != "OUTSIDE"]


@dataclass(frozen=True)
class Report:
    """Everything one page shows. `folders` are one or, in a comparison, several."""

    title: str
    arms: tuple[ArmRun, ...]
    folders: tuple[RunFolder, ...]

    @property
    def metric(self) -> Metric:
        """What is called accuracy in the files."""
        return METRICS[self.folders[0].summary.metric]

    @property
    def shared(self) -> Sharing | None:
        """How the first arm that shares does it."""
        return next((arm.figures.sharing for arm in self.arms if arm.figures.sharing), None)

    @property
    def is_comparison(self) -> bool:
        """Whether the runs of several folders stand beside each other."""
        return len(self.folders) > 1

    @property
    def baseline(self) -> ArmRun:
        """The arm that others are measured by: plain federated averaging where it ran, else the first."""
        return next((arm for arm in self.arms if arm.arm == "fedavg"), self.arms[0])

    @property
    def subject(self) -> ArmRun:
        """The arm that the comparison is about."""
        rest = [arm for arm in self.arms if arm is not self.baseline]
        return next((arm for arm in rest if arm.arm == "fedpruneshare"), rest[-1] if rest else self.arms[0])


def read_folder(path: Path) -> RunFolder:
    """Read a finished run's folder, or the folder of a `compare`.

    Raises `SettingsError` for another folder, `PeerError` where a file of it is damaged or not whole.
    """
    if not (path / "summary.json").is_file():
        raise SettingsError(f"{path} holds no summary.json, expected the folder of a finished run")
    settings, model = path / "settings.toml", path / "model.onnx"
    summary, devices = read_summary(path / "summary.json"), read_devices(path / DEVICES)
    if devices:  # there is no such file in the folders of old
        check_lines(path / DEVICES, summary, [(line.arm, line.seed) for line in devices if line.round], summary.devices)
    return RunFolder(
        path=path,
        summary=summary,
        rounds=read_run_rounds(path / "rounds.jsonl", summary),
        devices=devices,
        scenario=load_settings(settings, Scenario),
        settings_text=settings.read_text("utf-8"),
        model_bytes=model.stat().st_size if model.is_file() else None,
    )


def one_report(folder: RunFolder) -> Report:
    """The report of one folder: its arms by their own names."""
    return Report(folder.summary.scenario, tuple(_arms(folder, "")), (folder,))


def compared(folders: Sequence[RunFolder]) -> Report:
    """The report of several folders, their arms named folder/arm.

    Raises `SettingsError`, with every folder that does not fit, where tasks or metrics differ.
    """
    first, faults = folders[0].summary, []
    names = folder_names([folder.path for folder in folders])
    for folder, name in zip(folders, names, strict=True):
        found = folder.summary
        if found.task != first.task:
            faults.append(Fault(name, f"task {found.task!r}", f"{first.task!r} as in {names[0]}"))
        if found.metric != first.metric:
            faults.append(Fault(name, f"metric {found.metric!r}", f"{first.metric!r} as in {names[0]}"))
    if faults:
        raise SettingsError("these runs cannot be compared: they are of different tasks", tuple(faults))
    arms = tuple(arm for folder, name in zip(folders, names, strict=True) for arm in _arms(folder, f"{name}/"))
    titles = dict.fromkeys(folder.summary.scenario for folder in folders)
    return Report(" and ".join(titles), arms, tuple(folders))


def _arms(folder: RunFolder, prefix: str) -> list[ArmRun]:
    # The lines of a run with a single arm are that arm's, whatever they say.
    is_one = len(folder.summary.arms) == 1
    return [
        ArmRun(
            name=f"{prefix}{name}",
            arm=name,
            figures=figures,
            rounds=[line for line in folder.rounds if is_one or line.arm == name],
            devices=[line for line in folder.devices if is_one or line.arm == name],
            folder=folder,
        )
        for name, figures in folder.summary.arms.items()
    ]


def folder_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart. Raises `SettingsError` where one is given twice."""
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        raise SettingsError("the same run folder is given twice, expected each once")
    for depth in range(1, max(len(path.parts) for path in full) + 1):
        names = [os.sep.join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("unreachable: different paths differ somewhere")


# --------------------------------------------------------------------------- where the settings differ


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """A nested mapping as key paths; lists of plain values stay whole, lists of mappings are numbered."""
    if isinstance(data, Mapping):
        found: dict[str, Any] = {}
        for key, value in data.items():
            found |= flat(value, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(data, (list, tuple)) and any(isinstance(value, Mapping) for value in data):
        found = {}
        for index, value in enumerate(data):
            found |= flat(value, f"{path}.{index}")
        return found
    return {path: data}


def differences(report: Report) -> list[tuple[str, list[str]]]:
    """Key and values, by folder, of every setting in which the compared runs differ; names and texts left out."""
    every = [flat(msgspec.to_builtins(folder.scenario)) for folder in report.folders]
    keys = dict.fromkeys(key for one in every for key in one if key not in ("name", "description"))
    rows = []
    for key in keys:
        values = [_shown(one[key]) if key in one else _ABSENT for one in every]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def weighty_differences(report: Report) -> list[str]:
    """Sentences on the differences that bear on what a comparison can say: seeds, data, length."""
    names = folder_names([folder.path for folder in report.folders]) if report.is_comparison else []
    sentences = []
    for key, values in differences(report):
        why = next((why for start, why in _WEIGHTY if key == start or key.startswith(f"{start}.")), None)
        if why:
            each = ", ".join(f"{value or 'empty'} in {name}" for name, value in zip(names, values, strict=True))
            sentences.append(f"{key} is {each}: {why}.")
    return sentences
