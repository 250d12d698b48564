"""One scenario from start to report: a fleet for each seed, then the run folder."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_client.datasets import DataSource
from fedpruneshare import __version__
from fedpruneshare.errors import RunError, SettingsError
from fedpruneshare.settings import render_toml
from testbed.alone import alone_in
from testbed.arms import arm_scenario
from testbed.federation import COORDINATOR, FEDERATION, RunFolder
from testbed.fleet import Fleet
from testbed.ledger.agreement import Wire, compare_books, is_quiet, longest_topic
from testbed.ledger.device_book import DeviceBook
from testbed.ledger.device_lines import DEVICES, DeviceLine, device_facts, device_lines, write_devices
from testbed.ledger.journal import InterfaceBook, Journal
from testbed.ledger.rounds import ROUNDS, CoordinatorRound, merge, write_rounds
from testbed.report.page import REPORT_FILES, write_report
from testbed.scenario import Scenario
from testbed.summary import ARM, VERSION, SeedRun, Sharing, Summary, arm_figures, write_summary
from testbed.watching.following import Follower, new_state
from testbed.watching.progress import Progress
from testbed.watching.state import PROGRESS

RESULTS: Final = (
    "summary.json", ROUNDS, DEVICES, PROGRESS, *REPORT_FILES, "model.onnx", "settings.toml", "logs",
    "state",
)  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the scenario. `keep_state` keeps what the services stored.

    `arm`: run the scenario as this arm of a comparison (`testbed.arms`); empty: as it is.
    """

    folder: Path
    replace: bool = False
    keep_state: bool = False
    arm: str = ""


@dataclass(frozen=True)
class Finished:
    """A finished run. `succeeded`: no seed had more failed rounds than the scenario allows."""

    summary: Summary
    folder: Path
    data: DataSource
    succeeded: bool


@dataclass(frozen=True)
class _SeedResult:
    run: SeedRun
    devices: list[DeviceLine]
    conditions: dict[str, Any]
    data: DataSource
    task: str
    succeeded: bool


def run_scenario(scenario: Scenario, options: RunOptions, progress: Progress) -> Finished:
    """Run every seed of a scenario and fill the run folder.

    Raises `SettingsError` where the folder is not empty, or another run is at work in it, or the task cannot be used,
    `RunError` where a run came to no end of its own; what the services stored and logged is then kept in the folder.
    """
    with alone_in(options.folder):
        clear_folder(options)
        return _run_seeds(scenario, options, progress)


def _run_seeds(scenario: Scenario, options: RunOptions, progress: Progress) -> Finished:
    scenario = arm_scenario(scenario, options.arm) if options.arm else scenario
    arm = options.arm or ARM
    results = []
    for seed in scenario.seeds:
        one = msgspec.structs.replace(scenario, seeds=(seed,))
        folder = options.folder if len(scenario.seeds) == 1 else options.folder / f"seed-{seed}"
        try:
            results.append(_run_seed(one, RunFolder(folder.absolute()), progress, arm))
        except SettingsError:  # nothing ran: the same folder must do once the mistake is put right
            shutil.rmtree(RunFolder(folder).logs, ignore_errors=True)
            RunFolder(folder).delete_state()
            raise
        _write_results(one, folder, (arm, results[-1:]))
        if not options.keep_state:
            RunFolder(folder).delete_state()
    if len(scenario.seeds) > 1:
        last = options.folder / f"seed-{scenario.seeds[-1]}" / "model.onnx"
        shutil.copyfile(last, options.folder / "model.onnx")
        summary = _write_results(scenario, options.folder, (arm, results))
    else:
        summary = _summarise(scenario, arm, results)
    return Finished(summary, options.folder, results[0].data, all(result.succeeded for result in results))


def clear_folder(options: RunOptions) -> None:
    """Make the run folder. Raises `SettingsError` if it holds anything, unless it is an old run to be replaced."""
    folder = options.folder
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file, expected a new or empty folder")
    entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if entries and not options.replace:
        raise SettingsError(
            f"--out {folder} is not empty, expected a new or empty folder (or --replace for an old run)"
        )
    # What was being written when an old run was killed has ".part" at its end.
    foreign = sorted(
        name for name in entries if name.removesuffix(".part") not in RESULTS and not name.startswith("seed-")
    )
    if foreign:
        raise SettingsError(f"--out {folder} holds {foreign[0]!r}, which no run wrote; expected an old run to replace")
    for name in entries:
        entry = folder / name
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _run_seed(scenario: Scenario, folder: RunFolder, progress: Progress, arm: str) -> _SeedResult:
    seed, started = scenario.seeds[0], time.monotonic()
    progress.say(f"{scenario.name}: starting {scenario.fleet.devices} devices, seed {seed}")
    with Fleet(scenario, folder.root, seed) as fleet:
        if fleet.data == "fixture":
            progress.say(FIXTURE_NOTICE)
        follower = Follower(fleet, _journal(fleet, arm), progress, new_state(fleet, arm))
        progress.begin(scenario.rounds.count, fleet.metric)
        code, conditions = _follow(fleet, follower)
        rounds = fleet.rounds()
    wall_s = time.monotonic() - started
    agreement = compare_books(follower.book.ledgers, follower.journal.interface.by_round, _wires(fleet, wall_s))
    conditions |= {"ledger": agreement.conditions, VERSION: __version__}
    follower.conclude(code == 0 and not agreement.faults)
    progress.end()
    _check_end(scenario, fleet, code, rounds)
    agreement.check()
    around = follower.journal.around(rounds)
    merged = merge(seed, rounds, follower.book.ledgers, around)
    devices = device_lines(seed, rounds, follower.book.ledgers, follower.journal.facts, around)
    run = SeedRun(merged, wall_s, _sharing(scenario), _initial_accuracy(scenario, folder, rounds), fleet.metric)
    return _SeedResult(run, devices, conditions, fleet.data, fleet.task, succeeded=code == 0)


def _follow(fleet: Fleet, follower: Follower) -> tuple[int, dict[str, Any]]:
    """The coordinator's exit code, and what was emulated. A run that is broken off writes down what it had, too."""
    is_over = False
    try:
        fleet.start()
        found = follower.follow(), fleet.conditions()
        is_over = True
        return found
    finally:
        fleet.stop_devices()
        try:
            follower.finish(fleet.rounds())
        finally:
            if not is_over:  # last: a round that was closed meanwhile would say that the run goes on
                follower.conclude(succeeded=False)


def _journal(fleet: Fleet, arm: str) -> Journal:
    book = DeviceBook({ident: fleet.folder.ledger(ident) for ident in fleet.devices})
    facts = device_facts(fleet.scenario, fleet.devices)
    return Journal(fleet.folder.root, (arm, fleet.seed), facts, book, InterfaceBook(fleet.counters), fleet.happened)


def _check_end(scenario: Scenario, fleet: Fleet, code: int, rounds: list[CoordinatorRound]) -> None:
    """Raises `RunError` where the coordinator came to no end of its own."""
    failed = sum(line.phase == "FAILED" for line in rounds)
    if code not in (0, 1) or (code == 1 and failed <= scenario.max_failed_rounds):
        raise RunError(
            f"the coordinator ended with code {code} after {len(rounds)} rounds:\n{fleet.log_tail(COORDINATOR)}"
        )


def _wires(fleet: Fleet, seconds: float) -> dict[str, Wire]:
    links, cut_off = 1 + len(fleet.aggregators), fleet.cut_off
    return {
        device: Wire(
            links,
            longest_topic(FEDERATION, device),
            seconds,
            is_quiet(fleet.network.profile(device)) and not fleet.has_lost_brokers,
            is_cut=device in cut_off,
        )
        for device in fleet.devices
    }


FIXTURE_NOTICE: Final = (
    "NOTE: the small sample that ships with the project is used, not the full data set. "
    "Accuracies are those of the sample."
)


def _sharing(scenario: Scenario) -> Sharing | None:
    own = scenario.sharing
    if own.reveal == "plain":
        return None
    return Sharing(n=scenario.aggregators.count, k=own.threshold, t=own.t, reveal=own.reveal)


def _initial_accuracy(scenario: Scenario, folder: RunFolder, rounds: list[CoordinatorRound]) -> float | None:
    """The accuracy of the model before the first round, where no round got as far as an evaluation."""
    if any(line.accuracy is not None for line in rounds):
        return None
    from coordinator.workbench import Workbench  # brings onnxruntime, which a run itself does not need

    bench = Workbench.open(folder.bundle, folder.store(COORDINATOR), scenario.coding)
    return float(bench.score(bench.first_model()).metric)


def _summarise(scenario: Scenario, arm: str, results: list[_SeedResult]) -> Summary:
    return Summary(
        scenario=scenario.name,
        seeds=scenario.seeds,
        task=results[0].task,
        metric=results[0].run.metric,
        devices=scenario.fleet.devices,
        emulated=True,
        arms={arm: arm_figures([result.run for result in results])},
        conditions=_conditions(results),
    )


def _conditions(results: list[_SeedResult]) -> dict[str, Any]:
    """Those of the run; of several seeds, what was checked and measured in each by its seed."""
    if len(results) == 1:
        return results[0].conditions
    first = results[0].conditions
    return {
        name: {str(result.run.rounds[0].seed): result.conditions[name] for result in results}
        if any(result.conditions[name] != value for result in results)
        else value
        for name, value in first.items()
    }


def _write_results(scenario: Scenario, folder: Path, of: tuple[str, list[_SeedResult]]) -> Summary:
    """Everything a run folder holds, of an arm. The settings say which data were used, so a repeat uses the same."""
    results = of[1]
    summary = _summarise(scenario, *of)
    model = RunFolder(folder).store(COORDINATOR) / "model.onnx"
    if model.is_file():
        shutil.copyfile(model, folder / "model.onnx")
    used = msgspec.structs.replace(scenario, task=msgspec.structs.replace(scenario.task, data=results[0].data))
    (folder / "settings.toml").write_text(render_toml(used), "utf-8")
    write_rounds(folder / ROUNDS, [line for result in results for line in result.run.rounds])
    write_devices(folder / DEVICES, [line for result in results for line in result.devices])
    write_summary(folder / "summary.json", summary)
    write_report(folder)
    return summary
