"""Scenarios: shipped ones load, overrides reach every key, and all mistakes are reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.settings import DeviceSettings, SplitSettings
from edge_client.tasks import BUILT_IN
from fedpruneshare.cli import run as command_line
from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.settings import load_settings, render_toml
from testbed.federation import CONTROL, Federation, RunFolder, aggregator_ids, device_ids
from testbed.scenario import (
    SHIPPED_TASKS,
    DeviceGroup,
    FleetSettings,
    Scenario,
    find_scenario,
    load_scenario,
    shipped_scenarios,
)

TEN_MISTAKES = """
seeds = [-1]                    # below 0
max_failed_rounds = "none"      # no number
colour = "red"                  # no such key

[task]
name = "hapd"                   # no such task

[fleet]
devices = 12

[aggregators]
count = 3

[brokers]
kind = "mosquito"               # no such broker

[rounds]
cuont = 5                       # misspelt
cohort = 13                     # more than devices
deadline_s = 0                  # not above 0

[sharing]
threshold = 4                   # more than aggregators

[pruning]
rungs = [1.0, 0.5]              # falling
"""


def faults_of(text: str, folder: Path, *overrides: str) -> dict[str, str]:
    path = folder / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_scenario(str(path), overrides)
    paths = [fault.path for fault in caught.value.faults]
    assert len(paths) == len(set(paths))
    return {fault.path: str(fault) for fault in caught.value.faults}


def test_the_shipped_scenarios_load_and_say_what_they_show() -> None:
    shipped = shipped_scenarios()
    assert {"demo", "fashion-mnist"} <= shipped.keys()
    for name, path in shipped.items():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description
        text = path.read_text()
        assert text.startswith("# ")
        assert "On 2 cores" in text


def test_the_demo_is_what_the_project_promises() -> None:
    demo = load_scenario("demo")
    assert (demo.fleet.devices, demo.aggregators.count, demo.sharing.threshold, demo.rounds.count) == (24, 3, 2, 20)
    assert demo.task.name == "hapt"
    assert demo.pruning.target_density <= 0.11
    assert len({group.rung_max for group in demo.fleet.members()}) > 1
    assert demo.max_failed_rounds == 0


def test_known_task_names_are_those_of_the_tasks() -> None:
    assert set(SHIPPED_TASKS) == set(BUILT_IN)


@pytest.mark.parametrize(
    ("keys", "path", "expected"),
    [
        (["split='person'"], "task.split", "dirichlet, iid or shards (hapt has people)"),
        (["split='even'"], "task.split", "dirichlet"),
        (["alpha=0.1"], "task.alpha", "no such key without task.split = 'dirichlet'"),
        (["split='iid'", "shards=3"], "task.shards", "no such key without task.split = 'shards'"),
        (["split='dirichlet'", "alpha=0"], "task.alpha", "above 0"),
    ],
)
def test_splits_that_make_no_sense_are_mistakes(keys: list[str], path: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_scenario("fashion-mnist", [f"task.{key}" for key in keys])
    (fault,) = caught.value.faults
    assert fault.path == path
    assert expected in str(fault)


@pytest.mark.parametrize(
    "keys", [["split='dirichlet'", "alpha=0.1"], ["split='shards'", "shards=3"], ["name='hapt'", "split='person'"]]
)
def test_splits_reach_every_device(keys: list[str], tmp_path: Path) -> None:
    scenario = load_scenario("fashion-mnist", [f"task.{key}" for key in keys])
    brokers = dict.fromkeys((CONTROL, *aggregator_ids(scenario)), BrokerAddress("127.0.0.1", 1))
    folder = RunFolder(tmp_path)
    folder.create()
    Federation(scenario, 7, folder, tmp_path, brokers).write()
    tasks = [load_settings(folder.config(ident), DeviceSettings).task for ident in device_ids(scenario)]
    wanted = SplitSettings(scenario.task.split, scenario.task.alpha, scenario.task.shards)
    assert {task.dealing for task in tasks} == {wanted}
    assert [task.index for task in tasks] == list(range(30))


def test_settings_used_read_back_as_the_same_scenario() -> None:
    scenario = load_scenario("fashion-mnist", ["rounds.count=3", "seeds=[4,5]"])
    assert (scenario.rounds.count, scenario.seeds) == (3, (4, 5))
    path_free = load_settings({}, Scenario)
    assert path_free.fleet.devices == 24
    import tomllib

    assert load_settings(tomllib.loads(render_toml(scenario)), Scenario) == scenario


@pytest.mark.parametrize(
    ("devices", "shares", "counts"),
    [(24, (1, 2), (8, 16)), (10, (1, 1, 1), (4, 3, 3)), (6, (1, 2), (2, 4)), (1, (1, 5), (0, 1)), (7, (), (7,))],
)
def test_groups_share_the_fleet_out(devices: int, shares: tuple[float, ...], counts: tuple[int, ...]) -> None:
    groups = tuple(DeviceGroup(share, rung) for rung, share in enumerate(shares))
    limits = tuple(group.rung_max for group in FleetSettings(devices, groups=groups).members())
    assert len(limits) == devices
    assert list(limits) == sorted(limits)
    assert tuple(limits.count(limit) for limit in range(len(shares)) or (15,)) == counts


def test_ten_mistakes_are_ten_messages(tmp_path: Path) -> None:
    faults = faults_of(TEN_MISTAKES, tmp_path)
    assert set(faults) == {
        "seeds.0",
        "max_failed_rounds",
        "colour",
        "task.name",
        "brokers.kind",
        "rounds.cuont",
        "rounds.cohort",
        "rounds.deadline_s",
        "sharing.threshold",
        "pruning.rungs",
    }
    assert "did you mean 'hapt'?" in faults["task.name"]
    assert "did you mean 'mosquitto'?" in faults["brokers.kind"]
    assert "did you mean 'rounds.count'?" in faults["rounds.cuont"]
    assert "found 13, expected at most fleet.devices = 12" in faults["rounds.cohort"]
    assert "found 4, expected at most aggregators.count = 3" in faults["sharing.threshold"]


@pytest.mark.parametrize(
    ("sets", "hint"),
    [
        ((), "the embedded broker speaks no TLS"),
        (('brokers.kind="mosquitto"', 'fleet.engine="ray"'), "certificates stay on this machine"),
    ],
)
def test_tls_where_it_cannot_be_is_a_mistake(sets: tuple[str, ...], hint: str) -> None:
    with pytest.raises(SettingsError, match=r"brokers\.tls: found true, expected false.*" + hint):
        load_scenario("demo", [*sets, "brokers.tls=true"])
    load_scenario("demo", ['brokers.kind="mosquitto"', "brokers.tls=true"])


def test_the_command_line_lists_them_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TEN_MISTAKES)
    assert command_line(["testbed", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "10 mistakes" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_mistakes_in_overrides_are_reported_with_those_of_the_file(tmp_path: Path) -> None:
    faults = faults_of("[rounds]\ncohort = 99\n", tmp_path, "rounds.conut=3", "sharing.threshold=1", "nonsense")
    assert set(faults) == {"--set nonsense", "rounds.conut", "sharing.threshold", "rounds.cohort"}


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        ("sharing.threshold=2", "sharing.threshold", "two disjoint sets"),
        ("rounds.min_devices=201", "rounds.cohort", "at least min_devices = 201"),
        ("coding.max_weight=16000000", "coding.max_weight", "below 10737418 for rounds.cohort = 200"),
        ("coding.chunk_bytes=1026", "coding.chunk_bytes", "multiple of 4"),
        ("fleet.groups=[{rung_max = 2}]", "fleet.groups.0.rung_max", "below 2"),
        ("rounds.seed=3", "rounds.seed", "say seeds"),
        ("rounds.max_failed=1", "rounds.max_failed", "say max_failed_rounds"),
        ("seeds=[1,1]", "seeds", "each seed once"),
    ],
)
def test_checks_between_tables(tmp_path: Path, override: str, path: str, words: str) -> None:
    text = "[aggregators]\ncount = 4\n[sharing]\nthreshold = 3\n[fleet]\ndevices = 200\n[rounds]\ncohort = 200\n"
    faults = faults_of(text, tmp_path, override)
    assert words in faults[path]


def test_no_complaint_about_a_key_measured_against_a_faulty_one(tmp_path: Path) -> None:
    faults = faults_of('[fleet]\ndevices = "many"\n[rounds]\ncohort = 30\n', tmp_path)
    assert set(faults) == {"fleet.devices"}


def test_an_unknown_scenario_gets_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="did you mean 'demo'"):
        find_scenario("dmeo")


def test_a_file_that_is_not_toml_is_one_fault(tmp_path: Path) -> None:
    assert set(faults_of("[rounds\ncount = 3\n", tmp_path)) == {"line 1"}
