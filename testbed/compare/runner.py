"""Runs the jobs of a comparison, each a process of its own, as many at once as the machine has room for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fedpruneshare.errors import RunError, SettingsError
from testbed.alone import alone_in
from testbed.arms import arm_scenario
from testbed.compare.folder import CompareFolder, Job
from testbed.processes import Processes, tail
from testbed.scenario import Scenario
from testbed.summary import Summary

_POLL_S: Final = 0.2
_STOP_GRACE_S: Final = 60.0
_BAD_SETTINGS: Final = 2
_log = structlog.get_logger()


@dataclass(frozen=True)
class Compared:
    """A finished comparison. `succeeded`: no run had more failed rounds than the scenario allows."""

    summary: Summary
    folder: Path
    succeeded: bool


@dataclass(frozen=True)
class JobState:
    """How one job stands: `waiting`, `running`, `finished`, or `kept` from an earlier call."""

    job: Job
    state: str
    folder: Path


#: Told of all jobs whenever one of them changed, and now and then in between.
Watch = Callable[[Sequence[JobState]], None]


def jobs_at_once(scenario: Scenario) -> int:
    """One run for every two cores, and one alone where its processes' time or links are emulated.

    A run computes in ten processes or so, and waits in between; what is emulated must not be disturbed.
    """
    is_timed = scenario.links.backend != "none" or scenario.boards.cpu != "none"
    return 1 if is_timed else max(1, (os.cpu_count() or 1) // 2)


def compare(scenario: Scenario, folder: Path, arms: Sequence[str], at_once: int, watch: Watch) -> Compared:
    """Run every arm with every seed, except what an earlier call has finished, and put the results together.

    Raises `SettingsError` where the folder holds something else or a run refused the settings, `RunError` where one
    came to no end. Finished runs stay and are not run again by the next call.
    """
    for arm in arms:
        arm_scenario(scenario, arm)  # said before the first run, and not after it
    place = CompareFolder(folder)
    with alone_in(folder):
        place.open(scenario)
        codes = _run_all(scenario, place, [Job(arm, seed) for seed in scenario.seeds for arm in arms], at_once, watch)
        return Compared(place.write_results(scenario), folder, not any(codes.values()))


def _run_all(
    scenario: Scenario, place: CompareFolder, jobs: Sequence[Job], at_once: int, watch: Watch
) -> dict[Job, int]:
    """Run what is not finished yet; exit codes of all jobs, of earlier calls too."""
    kept = {job for job in jobs if place.is_finished(job)}
    codes = _Runner(place, jobs, kept, watch).run(at_once)
    return codes | {job: 0 if _kept_rounds(place, scenario, job) else 1 for job in kept}


def _kept_rounds(place: CompareFolder, scenario: Scenario, job: Job) -> bool:
    """Whether a run that was finished earlier kept to the failed rounds that are allowed."""
    from testbed.summary import read_summary

    return read_summary(place.run(job) / "summary.json").arms[job.arm].rounds_failed <= scenario.max_failed_rounds


class _Runner:
    """Starts jobs, waits for them, and stops them all if one cannot go on."""

    def __init__(self, place: CompareFolder, jobs: Sequence[Job], kept: set[Job], watch: Watch) -> None:
        self._place, self._jobs, self._kept, self._watch = place, jobs, kept, watch
        self._waiting = [job for job in jobs if job not in kept]
        self._running: list[Job] = []
        self._codes: dict[Job, int] = {}
        self._processes = Processes(place.logs)

    def run(self, at_once: int) -> dict[Job, int]:
        """Exit codes of all jobs that were run."""
        self._show()
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < at_once:
                    self._start(self._waiting.pop(0))
                time.sleep(_POLL_S)
                self._collect()
                self._show()
        finally:
            self._processes.stop(self._processes.names(), _STOP_GRACE_S)
        return self._codes

    def _start(self, job: Job) -> None:
        self._place.run(job).parent.mkdir(parents=True, exist_ok=True)
        arguments = [
            sys.executable, "-m", "fedpruneshare.cli", "testbed", "run", str(self._place.settings),
            "--arm", job.arm, "--seed", str(job.seed), "--out", str(self._place.run(job)), "--replace",
        ]  # fmt: skip
        self._processes.start(job.name, arguments)
        self._running.append(job)
        self._show()

    def _collect(self) -> None:
        """Take in what has ended. Raises where a run ended without results."""
        for job in list(self._running):
            code = self._processes.exit_code(job.name)
            if code is None:
                continue
            self._running.remove(job)
            self._codes[job] = code
            if not self._place.is_finished(job):
                said = tail(self._processes.log(job.name))
                kind = SettingsError if code == _BAD_SETTINGS else RunError
                raise kind(f"{job.name} ended with code {code} and without results:\n{said}")
            _log.info("job-finished", arm=job.arm, seed=job.seed, code=code)

    def _show(self) -> None:
        self._watch([JobState(job, self._state(job), self._place.run(job)) for job in self._jobs])

    def _state(self, job: Job) -> str:
        if job in self._kept:
            return "kept"
        if job in self._codes:
            return "finished"
        return "running" if job in self._running else "waiting"
