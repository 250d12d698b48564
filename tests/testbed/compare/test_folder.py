"""Which runs a comparison's folder holds, what it may be taken up again with, and what its runs give together."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
import pytest
from report_folders import Made, made_folder, scenario_of

from fedpruneshare.errors import RunError, SettingsError
from fedpruneshare.settings import load_settings, render_toml
from testbed.compare.folder import CompareFolder, Job
from testbed.compare.words import conclusion
from testbed.ledger.rounds import read_rounds
from testbed.scenario import Scenario
from testbed.summary import read_summary, write_summary

MADE = Made(seeds=(1, 2), rounds=4, devices=6)
SCENARIO = scenario_of(MADE)


def finish(place: CompareFolder, job: Job) -> Path:
    """Leave behind what a finished run does."""
    folder = made_folder(place.run(job), made_of(job))
    (folder / "model.onnx").write_bytes(job.name.encode())
    (folder / "state").mkdir()
    (folder / "report.html").write_text("its report")
    return folder


def made_of(job: Job) -> Made:
    return Made(arms=(job.arm,), seeds=(job.seed,), rounds=4, devices=6)


@pytest.fixture
def place(tmp_path: Path) -> CompareFolder:
    made = CompareFolder(tmp_path / "compare")
    made.open(SCENARIO)
    return made


def test_a_run_is_finished_when_all_it_writes_is_there(place: CompareFolder) -> None:
    job = Job("fedavg", 1)
    assert not place.is_finished(job)
    folder = finish(place, job)
    assert place.is_finished(job)
    assert not place.is_finished(Job("fedavg", 2))
    (folder / "report.html").unlink()
    assert not place.is_finished(job)
    (folder / "report.html").write_text("its report")
    (folder / "summary.json").write_text('{"schema": 1')
    assert not place.is_finished(job)


def test_another_runs_results_are_not_taken_for_its_own(place: CompareFolder) -> None:
    finish(place, Job("fedavg", 1)).rename(place.root / "elsewhere")
    place.run(Job("share-only", 2)).parent.mkdir()
    (place.root / "elsewhere").rename(place.run(Job("share-only", 2)))
    assert not place.is_finished(Job("share-only", 2))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"description": "another"}, "description"),
        ({"max_failed_rounds": 3}, "max_failed_rounds"),
        ({"training": msgspec.structs.replace(SCENARIO.training, batch_size=8)}, "training"),
    ],
)
def test_other_settings_are_refused_by_name(place: CompareFolder, changes: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=f"with other settings in {named}; expected the same"):
        place.open(msgspec.structs.replace(SCENARIO, **changes))


def test_more_seeds_and_the_data_that_were_found_are_no_other_settings(place: CompareFolder) -> None:
    task = msgspec.structs.replace(SCENARIO.task, data="any")
    place.open(msgspec.structs.replace(SCENARIO, seeds=(1, 2, 3), task=task))


def used_data(place: CompareFolder, job: Job, data: str) -> None:
    scenario = scenario_of(made_of(job))
    used = msgspec.structs.replace(scenario, task=msgspec.structs.replace(scenario.task, data=data))
    (place.run(job) / "settings.toml").write_text(render_toml(used), "utf-8")


def test_further_runs_are_made_of_the_data_of_the_finished_ones(place: CompareFolder) -> None:
    """The sample at first and, fetched meanwhile, the full data afterwards would be two comparisons in one table."""
    finish(place, Job("fedavg", 1))
    used_data(place, Job("fedavg", 1), "fixture")
    any_data = _with(SCENARIO, "task", data="any")
    place.open(any_data)
    assert load_settings(place.settings, Scenario).task.data == "fixture"
    with pytest.raises(SettingsError, match="holds fedavg-seed-1, of the fixture data; expected the full data"):
        place.open(_with(SCENARIO, "task", data="full"))


def test_runs_of_another_version_are_not_mixed_in(place: CompareFolder) -> None:
    folder = finish(place, Job("fedavg", 1))
    summary = read_summary(folder / "summary.json")
    write_summary(folder / "summary.json", msgspec.structs.replace(summary, conditions={"version": "0.0.9"}))
    with pytest.raises(SettingsError, match=r"holds fedavg-seed-1, made by version 0\.0\.9"):
        place.open(SCENARIO)


@pytest.mark.parametrize("name", ["notes.txt", "settings.toml"])
def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SettingsError, match="is not empty"):
        CompareFolder(tmp_path).open(SCENARIO)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(SettingsError, match="is a file"):
        CompareFolder(tmp_path / name).open(SCENARIO)


def test_the_results_are_those_of_its_finished_arms(place: CompareFolder) -> None:
    for arm in ("fedavg", "fedpruneshare"):
        for seed in SCENARIO.seeds:
            finish(place, Job(arm, seed))
    finish(place, Job("share-only", 1))  # its second seed is not there
    summary = place.write_results(SCENARIO)
    assert summary == read_summary(place.root / "summary.json")
    assert list(summary.arms) == ["fedavg", "fedpruneshare"]
    for arm, figures in summary.arms.items():
        own = [read_summary(place.run(Job(arm, seed)) / "summary.json").arms[arm] for seed in SCENARIO.seeds]
        assert figures.uplink_bytes == sum(one.uplink_bytes for one in own)
        assert figures.final_accuracy == statistics.fmean(one.final_accuracy for one in own)
        assert figures.final_accuracy_sd == statistics.stdev(one.final_accuracy for one in own)
        assert figures.wall_s == sum(one.wall_s for one in own)
        assert (figures.sharing is None) == (arm == "fedavg")
    rounds = read_rounds(place.root / "rounds.jsonl")
    assert {(line.arm, line.seed) for line in rounds} == {(arm, seed) for arm in summary.arms for seed in (1, 2)}
    assert (place.root / "model.onnx").read_bytes() == b"fedpruneshare-seed-2"
    assert (place.root / "report.html").stat().st_size > 10_000
    assert not list(place.root.glob("arms/fed*/*/state"))
    said = conclusion(summary)
    assert said[0].startswith("fedavg: final accuracy ")
    assert "% of fedavg)" in said[1]


def test_what_no_ledger_explains_is_told_of_every_run(place: CompareFolder) -> None:
    ledgers = {
        1: {"devices": 6, "payload_checked": 6, "unexplained": ["device-01: 12 B"]},
        2: {"devices": 6, "payload_checked": 5, "unexplained": ["device-04: 9 B"]},
    }
    for seed, ledger in ledgers.items():
        folder = finish(place, Job("fedavg", seed))
        summary = read_summary(folder / "summary.json")
        write_summary(folder / "summary.json", msgspec.structs.replace(summary, conditions={"ledger": ledger, "a": 1}))
    assert place.write_results(SCENARIO).conditions == {
        "ledger": {
            "devices": 12,
            "payload_checked": 11,
            "unexplained": [
                "fedavg-seed-1: device-01: 12 B",
                "fedavg-seed-2: device-04: 9 B",
            ],
        },
        "a": 1,
    }


def test_what_was_measured_in_each_run_is_told_of_each(place: CompareFolder) -> None:
    """One run's lost packets are not the comparison's."""
    for seed, lost in ((1, 3), (2, 5)):
        folder = finish(place, Job("fedavg", seed))
        summary = read_summary(folder / "summary.json")
        links = {"backend": "tap", "packets": {"wifi": {"up": {"lost": lost}}}}
        found = {"links": links, "ledger": {"devices": 6, "payload_checked": 6}, "version": "1"}
        write_summary(folder / "summary.json", msgspec.structs.replace(summary, conditions=found))
    found = place.write_results(SCENARIO).conditions
    assert {name: links["packets"]["wifi"]["up"]["lost"] for name, links in found["links"].items()} == {
        "fedavg-seed-1": 3, "fedavg-seed-2": 5,
    }  # fmt: skip
    assert (found["ledger"], found["version"]) == ({"devices": 12, "payload_checked": 12}, "1")


def test_runs_of_two_tasks_are_no_comparison(place: CompareFolder) -> None:
    for seed, task in ((1, "cifar10"), (2, "cifar10 (JPEG)")):
        folder = finish(place, Job("fedavg", seed))
        summary = read_summary(folder / "summary.json")
        write_summary(folder / "summary.json", msgspec.structs.replace(summary, task=task))
    with pytest.raises(RunError, match=r"holds runs of cifar10 and of cifar10 \(JPEG\)"):
        place.write_results(SCENARIO)


def test_jobs_at_once_follow_the_machine_and_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.compare import runner

    monkeypatch.setattr(runner.os, "cpu_count", lambda: 8)
    assert runner.jobs_at_once(SCENARIO) == 4
    shaped = _with(SCENARIO, "links", backend="tap")
    slowed = _with(SCENARIO, "boards", cpu="auto")
    assert (runner.jobs_at_once(shaped), runner.jobs_at_once(slowed)) == (1, 1)


def _with(scenario: Scenario, table: str, **changes: object) -> Scenario:
    return msgspec.structs.replace(scenario, **{table: msgspec.structs.replace(getattr(scenario, table), **changes)})
