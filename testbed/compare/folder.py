"""The folder of a comparison: which runs it holds, which are finished, and what they give together.

OUT/arms/ARM/seed-S/   a complete run folder for each arm and seed
OUT/summary.json, rounds.jsonl, devices.jsonl, report.html, model.onnx, settings.toml   the same over all of them
OUT/logs/              what each run said
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fedpruneshare import __version__
from fedpruneshare.errors import PeerError, RunError, SettingsError
from fedpruneshare.settings import load_settings, render_toml
from fedpruneshare.storage import write_atomically
from testbed.arms import ARMS
from testbed.federation import RunFolder
from testbed.ledger.device_lines import DEVICES
from testbed.report.page import REPORT, write_report
from testbed.scenario import Scenario
from testbed.summary import ARM, VERSION, SeedRun, Summary, arm_figures, read_run_rounds, read_summary, write_summary

SETTINGS: Final = "settings.toml"
ROUNDS: Final = "rounds.jsonl"
_SUMMARY: Final = "summary.json"


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """As logs and messages call it."""
        return f"{self.arm}-seed-{self.seed}"


class CompareFolder:
    """Where the files of a comparison are."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def settings(self) -> Path:
        """The scenario as compared, without what an arm makes of it."""
        return self.root / SETTINGS

    @property
    def logs(self) -> Path:
        """One log a run."""
        return self.root / "logs"

    def run(self, job: Job) -> Path:
        """The run folder of a job."""
        return self.root / "arms" / job.arm / f"seed-{job.seed}"

    def open(self, scenario: Scenario) -> None:
        """Make the folder, or take it up again where it holds this very comparison.

        Raises `SettingsError` where it holds anything else. More seeds and more arms may be asked for than before; they
        are run with the data the finished ones were made of.
        """
        if self.root.is_file():
            raise SettingsError(f"--out {self.root} is a file, expected a new folder or one of this comparison")
        if self.settings.is_file() and (self.root / "arms").is_dir():
            self._check_same(scenario)
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise SettingsError(f"--out {self.root} is not empty, expected a new folder or one of this comparison")
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.root / "arms").mkdir(exist_ok=True)
        write_atomically(self.settings, render_toml(self._pinned(scenario)).encode())

    def _pinned(self, scenario: Scenario) -> Scenario:
        """The scenario with the data that its finished runs were made of, so that all others are made of the same.

        Raises `SettingsError` where they were made of other data than is asked, or by another version of this program.
        """
        for folder in sorted(self.root.glob("arms/*/seed-*")):
            job = Job(folder.parent.name, int(folder.name.removeprefix("seed-")))
            if not self.is_finished(job):
                continue
            by = read_summary(folder / _SUMMARY).conditions.get(VERSION, __version__)
            if by != __version__:
                expected = f"expected {__version__}, or a new folder"
                raise SettingsError(f"--out {self.root} holds {job.name}, made by version {by}; {expected}")
            used = self._with_data(scenario, job)
            if scenario.task.data not in ("any", used.task.data):
                expected = f"expected the {scenario.task.data} data, or a new folder"
                raise SettingsError(f"--out {self.root} holds {job.name}, of the {used.task.data} data; {expected}")
            scenario = used
        return scenario

    def _check_same(self, scenario: Scenario) -> None:
        found, asked = (_comparable(one) for one in (load_settings(self.settings, Scenario), scenario))
        if found == asked:
            return
        names = [name for name in Scenario.__struct_fields__ if getattr(found, name) != getattr(asked, name)]
        raise SettingsError(
            f"--out {self.root} holds a comparison with other settings in {', '.join(names)};"
            " expected the same, or a new folder"
        )

    def is_finished(self, job: Job) -> bool:
        """Whether a run came to its end; its summary is then whole (it is written last but for the report)."""
        folder = self.run(job)
        try:
            summary = read_summary(folder / _SUMMARY)
        except PeerError:
            return False
        return summary.seeds == (job.seed,) and job.arm in summary.arms and (folder / REPORT).is_file()

    def complete_arms(self, seeds: Sequence[int]) -> list[str]:
        """The arms whose runs are all finished, in the order reports show them."""
        return [arm for arm in ARMS if all(self.is_finished(Job(arm, seed)) for seed in seeds)]

    # ------------------------------------------------------------------ results

    def write_results(self, scenario: Scenario) -> Summary:
        """Put the finished arms together: summary, rounds, devices, report, model."""
        arms = self.complete_arms(scenario.seeds)
        jobs = self._jobs(scenario, arms)
        for job in jobs:
            RunFolder(self.run(job)).delete_state()
        summary = self._summary(scenario, arms)
        write_summary(self.root / _SUMMARY, summary)
        for name in (ROUNDS, DEVICES):
            _concatenate(self.root / name, [self.run(job) / name for job in jobs])
        of = ARM if ARM in arms else arms[-1]
        model = self.run(Job(of, scenario.seeds[-1])) / "model.onnx"
        if model.is_file():
            shutil.copyfile(model, self.root / "model.onnx")
        write_atomically(self.settings, render_toml(self._with_data(scenario, jobs[0])).encode())
        write_report(self.root)
        return summary

    def _summary(self, scenario: Scenario, arms: Sequence[str]) -> Summary:
        runs = {job.name: read_summary(self.run(job) / _SUMMARY) for job in self._jobs(scenario, arms)}
        tasks = sorted({run.task for run in runs.values()})
        if len(tasks) > 1:
            raise RunError(f"{self.root} holds runs of {' and of '.join(tasks)}, expected one: take a new folder")
        figures = {arm: arm_figures([self._seed_run(Job(arm, seed)) for seed in scenario.seeds]) for arm in arms}
        conditions = _conditions({name: run.conditions for name, run in runs.items()})
        first = next(iter(runs.values()))
        return msgspec.structs.replace(
            first, scenario=scenario.name, seeds=scenario.seeds, arms=figures, conditions=conditions
        )

    def _jobs(self, scenario: Scenario, arms: Sequence[str]) -> list[Job]:
        return [Job(arm, seed) for arm in arms for seed in scenario.seeds]

    def _seed_run(self, job: Job) -> SeedRun:
        summary = read_summary(self.run(job) / _SUMMARY)
        arm, rounds = summary.arms[job.arm], read_run_rounds(self.run(job) / ROUNDS, summary)
        # Only a run without any evaluation has its first model's accuracy in all three places.
        return SeedRun(rounds, arm.wall_s, arm.sharing, arm.last_accuracy, summary.metric)

    def _with_data(self, scenario: Scenario, job: Job) -> Scenario:
        used = load_settings(self.run(job) / SETTINGS, Scenario).task.data
        return msgspec.structs.replace(scenario, task=msgspec.structs.replace(scenario.task, data=used))


def _conditions(runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What was the same in all runs once, what was measured in each (links, packets, processors) by run."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for found in runs.values() for key in found):
        each = {name: found[key] for name, found in runs.items() if key in found}
        values = list(each.values())
        joined[key] = values[0] if all(value == values[0] for value in values) else each
    return joined | {"ledger": _ledgers({name: found.get("ledger", {}) for name, found in runs.items()})}


def _ledgers(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """How the books of all runs agreed: numbers added up, and everything that was not explained, of which run."""
    joined: dict[str, Any] = {}
    for name, one in found.items():
        for key, value in one.items():
            named = [f"{name}: {text}" for text in value] if isinstance(value, list) else value
            joined[key] = joined[key] + named if key in joined else named
    return joined


def _comparable(scenario: Scenario) -> Scenario:
    """What must not differ between two calls: everything but the seeds, and which data were found."""
    task = msgspec.structs.replace(scenario.task, data="any")
    return msgspec.structs.replace(scenario, seeds=(0,), task=task)


def _concatenate(path: Path, parts: Iterable[Path]) -> None:
    with open(path, "wb") as whole:
        for part in parts:
            if part.is_file():
                whole.write(part.read_bytes())
