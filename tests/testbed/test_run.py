"""A run's folder and what it shows; the run itself is tried with real processes in `tests/e2e`."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from aggregator.settings import AggregatorSettings
from coordinator.settings import CoordinatorSettings
from edge_client.settings import DeviceSettings
from fedpruneshare.cli import run as command_line
from fedpruneshare.directory import read_directory
from fedpruneshare.errors import RunError, SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import Party
from fedpruneshare.settings import load_settings
from fedpruneshare.topics import Role
from testbed import alone
from testbed.federation import Federation, RunFolder, aggregator_ids, device_ids
from testbed.ledger.rounds import CoordinatorRound
from testbed.run import RunOptions, _follow, clear_folder
from testbed.scenario import load_scenario
from testbed.watching.progress import Progress


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="not empty, expected a new or empty folder"):
        clear_folder(RunOptions(tmp_path))
    with pytest.raises(SettingsError, match=r"holds 'thesis\.txt', which no run wrote"):
        clear_folder(RunOptions(tmp_path, replace=True))
    assert command_line(["testbed", "run", "demo", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="is a file"):
        clear_folder(RunOptions(tmp_path / "thesis.txt"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_folder_where_another_is_at_work_is_left_alone(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "_PATIENCE_S", 0.1)
    more = ["--replace"] if command == "run" else []
    with alone.alone_in(tmp_path / "out"):
        (tmp_path / "out" / "summary.json").write_text("{}")
        assert command_line(["testbed", command, "demo", "--out", str(tmp_path / "out"), *more]) == 2
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["summary.json"]
    assert "another run is at work there" in capsys.readouterr().err
    with alone.alone_in(tmp_path / "out"):
        pass


def test_an_old_run_is_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "progress.json.part").write_text("killed while writing")
    clear_folder(RunOptions(tmp_path, replace=True))
    assert list(tmp_path.iterdir()) == []
    clear_folder(RunOptions(tmp_path / "new"))
    assert (tmp_path / "new").is_dir()


def test_the_last_word_on_a_run_that_is_broken_off_is_that_it_failed() -> None:
    """Also where a round is closed while its devices are being stopped, which is shown like any other."""
    fleet, follower = Mock(), Mock()
    follower.follow.side_effect = RunError("waited 60 s for the next round")
    with pytest.raises(RunError):
        _follow(fleet, follower)
    assert [call[0] for call in follower.method_calls] == ["follow", "finish", "conclude"]
    follower.conclude.assert_called_once_with(succeeded=False)


def test_every_service_finds_its_keys_and_limits(tmp_path: Path) -> None:
    scenario = load_scenario("demo", ["fleet.devices=6", "rounds.cohort=6", "max_failed_rounds=2"])
    folder = RunFolder(tmp_path)
    folder.create()
    brokers = {
        name: BrokerAddress("127.0.0.1", 2000 + n) for n, name in enumerate(["control", *aggregator_ids(scenario)])
    }
    Federation(scenario, 5, folder, Path("/data"), brokers).write()

    coordinator = load_settings(folder.config("coordinator"), CoordinatorSettings)
    assert (coordinator.rounds.seed, coordinator.rounds.max_failed, coordinator.rounds.cohort) == (5, 2, 6)
    party = Party.load(coordinator.party, Role.COORDINATOR)
    assert [service.port for service in party.directory.aggregators.values()] == [2001, 2002, 2003]
    assert party.directory.coordinator.port == 2000
    for ident in aggregator_ids(scenario):
        aggregator = load_settings(folder.config(ident), AggregatorSettings)
        assert Party.load(aggregator.party, Role.AGGREGATOR).ident == ident
        assert aggregator.floors.min_devices == 6
    for index, ident in enumerate(device_ids(scenario)):
        device = load_settings(folder.config(ident), DeviceSettings)
        assert Party.load(device.party, Role.DEVICE).ident == ident
        assert (device.task.index, device.task.devices, device.task.seed) == (index, 6, 5)
        assert device.limits.rung_max == (0 if index < 2 else 1)


def test_private_keys_are_the_owners_alone_and_go_away(tmp_path: Path) -> None:
    scenario = load_scenario("demo")
    folder = RunFolder(tmp_path)
    folder.create()
    brokers = {name: BrokerAddress("127.0.0.1", 2000) for name in ("control", *aggregator_ids(scenario))}
    directory = Federation(scenario, 1, folder, tmp_path, brokers).write()
    keys = list(folder.keys.iterdir())
    assert len(keys) == 1 + 3 + 24
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert folder.state.stat().st_mode & 0o777 == 0o700
    root_key = load_settings(folder.config("coordinator"), CoordinatorSettings).party.root_key
    assert read_directory(folder.directory, root_key) == directory
    folder.delete_keys()
    assert not folder.keys.exists()
    secrets = [path for path in tmp_path.rglob("*") if path.is_file() and b"sealing" in path.read_bytes()]
    assert secrets == [folder.directory]


def test_progress_is_a_line_a_round_where_there_is_no_terminal() -> None:
    lines: list[str] = []
    progress = Progress(Console(file=io.StringIO()), lines.append)
    progress.begin(20)
    progress.round_done(CoordinatorRound(1, "APPLIED", accuracy=0.5, density=1.0, contributors=24), 1_500_000)
    progress.round_done(CoordinatorRound(2, "FAILED", "too few"), 1_600_000)
    progress.end()
    assert lines == [
        "round 1 of 20: APPLIED, accuracy 50.0 %, density 100.0 %, 24 devices, uplink so far 1.5 MB",
        "round 2 of 20: FAILED (too few), accuracy –, density –, 0 devices, uplink so far 1.6 MB",
    ]


def test_progress_names_the_metric_and_shows_errors_as_numbers() -> None:
    lines: list[str] = []
    progress = Progress(Console(file=io.StringIO()), lines.append)
    progress.begin(1, "rmse")
    progress.round_done(CoordinatorRound(1, "APPLIED", accuracy=1.23456), 0)
    assert "rmse 1.235," in lines[0]


def test_list_shows_the_shipped_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["testbed", "list"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert {"demo", "fashion-mnist"} <= {name for name, _ in rows}
    assert len({line.index(text) for line, (_, text) in zip(shown.splitlines(), rows, strict=True)}) == 1


def test_every_key_shown_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["testbed", "keys"]) == 0
    shown = [line.partition("  # ")[0].replace(" = ", "=", 1) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) > 35
    # An index needs an entry, and a name one that somebody gave.
    load_scenario("fashion-mnist", [key for key in shown if ".0." not in key and ".NAME." not in key])
