"""Devices on a Ray cluster of two nodes, both on this machine: the same numbers, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedpruneshare.errors import RunError, SettingsError, TaskError
from testbed.engines.ray_engine import RayDevices
from testbed.engines.ray_local import LocalRay, local_environment
from testbed.fleet import Fleet
from testbed.ledger.rounds import read_ledgers
from testbed.scenario import Scenario, load_scenario

pytest.importorskip("ray", reason='Ray is not installed (pip install "fedpruneshare[ray]")')
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROUNDS = 2
TASK = """
from pathlib import Path
import numpy as np
import psutil
import torch
from edge_client.datasets import Dataset

def build_model():
    return torch.nn.Linear(4, 3)

def load_train(device, devices, rng):
    return Dataset(rng.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3)

def load_test():
    return load_train(0, 1, np.random.default_rng(0))

def data_source(data_dir):
    own = next(str(parent.pid) for parent in psutil.Process().parents() if parent.name() == "raylet")
    first = Path(__file__).with_name("first-node")
    try:
        with open(first, "x") as file:
            file.write(own)
    except FileExistsError:
        pass
    return "full" if first.read_text() == own else "fixture"
"""


def scenario(*overrides: str) -> Scenario:
    own = ("fleet.devices=12", "rounds.cohort=12", f"rounds.count={ROUNDS}", "rounds.min_devices=4")
    patient = ("rounds.wait_for_devices_s=120", "rounds.grace_s=30", "rounds.deadline_s=300")  # a crowded machine
    return load_scenario("demo", [*own, *patient, "fleet.adaptive=false", 'task.data="fixture"', *overrides])


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def raylet_of(pid: int) -> int:
    return next(parent.pid for parent in psutil.Process(pid).parents() if parent.name() == "raylet")


def descendants(pid: int = 0) -> set[psutil.Process]:
    return set(psutil.Process(pid or os.getpid()).children(recursive=True))


def keepers_folders(processes: set[psutil.Process]) -> set[str]:
    """The private folder of each keeper of a local cluster."""
    return {process.cmdline()[-3] for process in processes if "testbed.engines.ray_local" in process.cmdline()}


Numbers = tuple[list[tuple[object, ...]], dict[str, list[tuple[int, int | None, int]]]]


def numbers(fleet: Fleet) -> Numbers:
    """What must repeat exactly: each round's outcome, and each device's rungs and first-transmission bytes."""
    lines = [(line.round, line.phase, line.accuracy, line.loss, line.contributors) for line in fleet.rounds()]
    ledgers = read_ledgers({device: fleet.folder.ledger(device) for device in fleet.devices})
    entries = {
        device: [(one.round, one.rung, one.up.shares) for one in own if one.round] for device, own in ledgers.items()
    }
    return lines, entries


def test_two_nodes_give_the_numbers_of_one_machine_and_leave_nothing(tmp_path: Path) -> None:
    before = descendants()
    with Fleet(scenario('fleet.engine="ray"', "fleet.ray.nodes=2"), tmp_path / "ray", 5) as fleet:
        for ident in fleet.aggregators:
            fleet.start_aggregator(ident)
        fleet.start_coordinator()
        pids = [fleet.start_device(device) for device in fleet.devices]
        assert sorted(Counter(map(raylet_of, pids)).values()) == [6, 6]
        assert psutil.Process(pids[0]).nice() == psutil.Process().nice()
        assert "RAY_AUTH_TOKEN" not in psutil.Process(pids[0]).environ()
        (folder,) = map(Path, keepers_folders(descendants() - before))
        assert fleet.wait_done(250) == 0, fleet.log_tail("coordinator")
        assert fleet.lost() == {}
        made = descendants() - before
    until(lambda: not any(process.is_running() for process in made))
    assert not folder.exists()
    assert all("delivered" in fleet.log_tail(device) for device in fleet.devices)
    over_ray = numbers(fleet)
    with Fleet(scenario(), tmp_path / "process", 5) as fleet:
        fleet.start()
        assert fleet.wait_done(250) == 0, fleet.log_tail("coordinator")
    assert over_ray == numbers(fleet)
    assert [line[:2] for line in over_ray[0]] == [(number, "APPLIED") for number in range(1, ROUNDS + 1)]


KILLED_RUN = """
import sys, time
from pathlib import Path
from testbed.engines.ray_engine import RayDevices
from testbed.scenario import load_scenario
folder = Path(sys.argv[1])
engine = RayDevices(load_scenario("demo", ['fleet.engine="ray"']), folder)
engine.launch("hapt", folder)
engine.wait_ready()
print("ready", flush=True)
time.sleep(100)
"""


def test_nothing_is_left_of_a_killed_run(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        until(lambda: process.stdout.readline() == "ready\n")
        made = descendants(process.pid)
        assert any("testbed.zygote" in child.cmdline() for child in made)
        (folder,) = map(Path, keepers_folders(made))
        assert len(list(folder.glob("fps-node-*"))) == 1
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(child.is_running() for child in made))
    until(lambda: not folder.exists())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes that are there already, as somebody else's cluster would be."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in local_environment().items():
            patch.setenv(name, value)
        local = LocalRay(tmp_path_factory.mktemp("ray") / "ray.log")
        local.launch(2, 2)
        yield local.address()
        local.stop()


@pytest.fixture
def engine_at(tmp_path: Path) -> Iterator[Callable[[str], RayDevices]]:
    """Makes engines that join a cluster, and stops them."""
    made: list[RayDevices] = []

    def make(address: str) -> RayDevices:
        made.append(RayDevices(scenario('fleet.engine="ray"', f'fleet.ray.address="{address}"'), tmp_path))
        return made[-1]

    yield make
    for engine in made:
        engine.stop(1.0)


def test_a_cluster_is_joined_and_a_lost_node_takes_only_its_devices(cluster: str, tmp_path: Path) -> None:
    joined = scenario('fleet.engine="ray"', f'fleet.ray.address="{cluster}"')
    others = set(Path(tempfile.gettempdir()).glob("fps-node-*"))
    with Fleet(joined, tmp_path / "run", 5) as fleet:
        for ident in fleet.aggregators:
            fleet.start_aggregator(ident)
        pids = {device: fleet.start_device(device) for device in fleet.devices}
        fleet.kill_device("device-00")
        assert not fleet.is_running("device-00")
        pids["device-00"] = fleet.start_device("device-00")
        assert fleet.is_running("device-00")
        victim = psutil.Process(pids["device-00"]).parents()[1]
        gone = {device for device, pid in pids.items() if victim in psutil.Process(pid).parents()}
        victim.kill()
        until(lambda: set(fleet.lost()) == gone)
        assert set(fleet.lost().values()) == {-signal.SIGKILL}
        until(lambda: not any(psutil.pid_exists(pids[device]) for device in gone))
        assert all(fleet.is_running(device) for device in fleet.devices if device not in gone)
        with pytest.raises(RunError, match=r"device-00: node \S+ \(.*\) is gone"):
            fleet.start_device("device-00")
        homes = set(Path(tempfile.gettempdir()).glob("fps-node-*")) - others
        assert homes
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()))
    until(lambda: not any(home.exists() for home in homes))


def test_nodes_with_other_data_are_named(cluster: str, engine_at: Callable[[str], RayDevices], tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK)
    engine = engine_at(cluster)
    engine.launch(str(task), tmp_path)
    engine.wait_ready()
    both = r"task\.data_dir: node \S+ \(\S+\) has the (full|fixture) data, node \S+ \(\S+\) the (full|fixture) data"
    with pytest.raises(SettingsError, match=both):
        engine.export(1, tmp_path / "task.bundle")
    engine.stop(1.0)
    absent = engine_at(cluster)
    absent.launch(str(tmp_path / "absent.py"), tmp_path)
    with pytest.raises(TaskError, match=r"node \S+ \(\S+\): .*absent\.py"):
        absent.wait_ready()


def test_where_no_cluster_is_it_says_so_at_once(engine_at: Callable[[str], RayDevices], tmp_path: Path) -> None:
    engine = engine_at("127.0.0.1:9")
    engine.launch("hapt", tmp_path)
    with pytest.raises(SettingsError, match=r"fleet\.ray\.address: 127\.0\.0\.1:9: .*refused"):
        engine.wait_ready()
