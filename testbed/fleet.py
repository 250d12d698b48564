"""A whole federation on this machine: brokers, aggregators, coordinator and devices, each a process of its own.

    with Fleet(scenario, folder, seed=1) as fleet:      # brokers, keys, settings and task bundle are there
        fleet.start()                                   # services run
        fleet.wait_for(lambda: len(fleet.rounds()) >= 2, timeout_s=60, what="two rounds")
        fleet.kill_aggregator("aggregator-1")

Leaving the block stops everything by pid, whatever happened in it, and deletes the private keys. If this process is
killed, the kernel kills what it started (`testbed.orphans`). To be used from one thread, the one that made it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from edge_client.datasets import DataSource, data_folder
from fedpruneshare.bundle import Bundle
from fedpruneshare.directory import Directory
from fedpruneshare.errors import RunError, SettingsError
from firmware_configs.brokers import Broker, is_loopback
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker
from testbed.boards.emulation import Boards
from testbed.certificates import RunCertificates, RunRoster
from testbed.engines import conditions as engine_conditions
from testbed.engines import new_engine
from testbed.events.runner import EventRunner
from testbed.federation import CONTROL, COORDINATOR, FEDERATION, Federation, RunFolder, aggregator_ids, device_ids
from testbed.ledger.rounds import CoordinatorRound, read_coordinator_rounds
from testbed.links.counters import WayBytes
from testbed.links.network import Network
from testbed.places import Place
from testbed.processes import Processes, tail
from testbed.scenario import SHIPPED_TASKS, Scenario

T = TypeVar("T")
#: A crowded machine takes seconds to end two dozen processes, and who is killed leaves half a ledger.
_STOP_GRACE_S: Final = 20.0
_POLL_S: Final = 0.05
_log = structlog.get_logger()


class Fleet:
    """The processes of one run of a scenario with one seed; a context manager."""

    def __init__(self, scenario: Scenario, folder: Path, seed: int | None = None) -> None:
        self.scenario = scenario
        self.seed = scenario.seeds[0] if seed is None else seed
        self.folder = RunFolder(folder.absolute())
        self.aggregators = aggregator_ids(scenario)
        self.devices = device_ids(scenario)
        self.brokers: dict[str, Broker] = {}
        self.directory: Directory | None = None
        self.data: DataSource = "full"
        self.task = scenario.task.name
        self._services = Processes(self.folder.logs)
        self._devices = new_engine(scenario, self.folder.logs)
        self._killed: set[str] = set()
        self._cut_off: set[str] = set()
        self.has_lost_brokers = False
        """Whether a broker was ever killed: what devices had handed to their connections may never have left."""
        self._are_devices_stopped = False
        links = {ident: group.link for ident, group in zip(self.devices, scenario.fleet.members(), strict=True)}
        self.network = Network(scenario.links, links, self.seed, self.folder.logs)
        self.boards = Boards(scenario, self.folder)
        self.events = EventRunner(self)
        self._certificates: RunCertificates | None = None

    def __enter__(self) -> Fleet:
        try:
            self._prepare()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        self.folder.create()
        data_dir = self._data_dir()
        task = self.scenario.task
        self.network.__enter__()  # first: links are measured while nothing else runs
        self._devices.launch(task.name, data_dir, task.split)  # warms up while the brokers start
        self.boards.__enter__()
        if self.scenario.brokers.tls:
            roster = RunRoster(FEDERATION, COORDINATOR, self.aggregators, self.devices)
            self._certificates = RunCertificates(roster, self.folder.keys / "tls")
        for name in (CONTROL, *self.aggregators):
            self.brokers[name] = self._new_broker(name)
            self.brokers[name].start()
        addresses = {name: broker.address for name, broker in self.brokers.items()}
        tls = self._certificates.parties(CONTROL) if self._certificates else {}
        self.directory = Federation(
            self.scenario, self.seed, self.folder, data_dir, addresses, self.boards, self.network, tls
        ).write()
        self._devices.wait_ready()
        self._devices.export(self.seed, self.folder.bundle)
        manifest = Bundle.open(self.folder.bundle).manifest
        self.data, self.metric = manifest.data_source, manifest.metric
        # A shipped task may say what its data were read from ("cifar10 (JPEG)"); a user's goes by its path.
        self.task = manifest.task if self.scenario.task.name in SHIPPED_TASKS else self.scenario.task.name
        wanted = self.scenario.task.data
        if wanted not in ("any", self.data):
            raise SettingsError(f"task.data: found the {self.data} data in {data_dir}, expected the {wanted} data")

    def _data_dir(self) -> Path:
        task = self.scenario.task
        if task.data == "fixture":
            empty = self.folder.state / "no-data"
            empty.mkdir(exist_ok=True)
            return empty
        return data_folder(Path(task.data_dir) if task.data_dir else None).absolute()

    def _new_broker(self, name: str) -> Broker:
        folder = self.folder.state / f"broker-{name}"
        namespace, asked = self.network.services_place, self.scenario.brokers.host
        host = asked if self.scenario.links.backend == "none" else self.network.broker_host
        if self._certificates is not None:
            shipped = self._certificates.broker(name, host, folder)
            return mosquitto_broker(replace(shipped, namespace=namespace), host=host)
        if self.scenario.brokers.kind == "mosquitto":
            settings = MosquittoSettings(folder, namespace=namespace, is_open=not is_loopback(asked))
            return mosquitto_broker(settings, host=host)
        return embedded_broker(folder, host=host, namespace=namespace)

    # ------------------------------------------------------------------ starting

    def start(self) -> None:
        """Start aggregators, coordinator and every device but those that join later."""
        for ident in self.aggregators:
            self.start_aggregator(ident)
        self.start_coordinator()
        for ident in self.devices:
            if ident not in self.events.absent:
                self.start_device(ident)
        self.events.begin()

    def start_aggregator(self, ident: str) -> int:
        """Start an aggregator, for the first time or again, and return its pid."""
        return self._start_service("aggregator", ident)

    def start_coordinator(self) -> int:
        """Start the coordinator, for the first time or again, and return its pid."""
        return self._start_service("coordinator", COORDINATOR)

    def start_device(self, device: str | int) -> int:
        """Start a device by name or number, for the first time or again, and return its pid."""
        ident = self.device_id(device)
        self._killed.discard(ident)
        place = Place(self.network.place(ident), self.boards.cgroups(ident))
        pid = self._devices.start(ident, self.folder.config(ident), place)
        self.boards.started(ident, pid)
        return pid

    def _start_service(self, command: str, ident: str) -> int:
        self._killed.discard(ident)
        arguments = [
            sys.executable,
            "-m",
            "fedpruneshare.cli",
            command,
            "run",
            "--config",
            str(self.folder.config(ident)),
        ]
        return self._services.start(ident, arguments, Place(self.network.services_place))

    # ------------------------------------------------------------------ killing, as a loss of power would

    def kill_aggregator(self, ident: str) -> None:
        """SIGKILL an aggregator; its broker lives on."""
        self._killed.add(ident)
        self._services.kill(ident)

    def kill_coordinator(self) -> None:
        """SIGKILL the coordinator; its broker lives on."""
        self._killed.add(COORDINATOR)
        self._services.kill(COORDINATOR)

    def kill_device(self, device: str | int) -> None:
        """SIGKILL a device by name or number."""
        self._killed.add(self.device_id(device))
        self._cut_off.add(self.device_id(device))
        self._devices.kill(self.device_id(device))

    def kill_broker(self, name: str) -> None:
        """SIGKILL a broker: an aggregator's by the aggregator's name, the coordinator's as `control`."""
        self.has_lost_brokers = True
        self.brokers[name].kill()

    def start_broker(self, name: str) -> None:
        """Start a killed broker again on its old port."""
        self.brokers[name].start()

    def restart_broker(self, name: str) -> None:
        """Stop a broker and start it again on its old port."""
        self.has_lost_brokers = True
        self.brokers[name].restart()

    # ------------------------------------------------------------------ watching

    def device_id(self, device: str | int) -> str:
        """The name of a device given by name or number. Raises `SettingsError` if there is none."""
        if isinstance(device, int) and 0 <= device < len(self.devices):
            return self.devices[device]
        if device in self.devices:
            return str(device)
        raise SettingsError(f"no device {device!r}, expected {self.devices[0]} to {self.devices[-1]}")

    def is_running(self, ident: str) -> bool:
        """Whether a service or device runs."""
        return self._devices.is_running(ident) if ident in self.devices else self._services.is_running(ident)

    def coordinator_exit(self) -> int | None:
        """Exit code of the coordinator: 0 when all rounds are done, None while it runs or is to be started again."""
        return None if COORDINATOR in self._killed else self._services.exit_code(COORDINATOR)

    def rounds(self) -> list[CoordinatorRound]:
        """The rounds the coordinator has finished."""
        return read_coordinator_rounds(self.folder.coordinator_rounds)

    def lost(self) -> dict[str, int]:
        """Services and devices that ended though nobody killed them: name -> exit code. The coordinator is left out."""
        ended = self._devices.ended()
        for name in self._services.names():
            code = self._services.exit_code(name)
            if code is not None and name != COORDINATOR:
                ended[name] = code
        return {name: code for name, code in ended.items() if name not in self._killed}

    def lost_brokers(self) -> dict[str, int]:
        """Brokers that ended though nobody killed them: name -> exit code."""
        ended = {name: broker.exit_code for name, broker in self.brokers.items()}
        lost = {name: code for name, code in ended.items() if code is not None}
        self.has_lost_brokers = self.has_lost_brokers or bool(lost)
        return lost

    def counters(self) -> dict[str, WayBytes] | None:
        """Bytes at the interface of each device since the start; None where devices have none of their own."""
        return self.network.counters()

    def conditions(self) -> dict[str, Any]:
        """What was emulated, and how; to be asked while the fleet runs."""
        return {
            "links": self.network.conditions(),
            "boards": self.boards.conditions(),
            **engine_conditions(self.scenario, self._devices),
        }

    def log_tail(self, ident: str) -> str:
        """The last lines of a process's log."""
        return tail(self.folder.logs / f"{ident}.log")

    def wait_for(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """Return what `condition` gives as soon as that is true; it is asked 20 times a second, and events happen.

        Raises `RunError` after `timeout_s`, naming `what` was waited for.
        """
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            self._tick()
            if time.monotonic() > deadline:
                done = len(self.rounds())
                raise RunError(f"waited {timeout_s:g} s for {what}; {done} rounds are done, see {self.folder.logs}")
            time.sleep(_POLL_S)
        return found

    def _tick(self) -> None:
        """Let boards warm, cool and drain, and events happen; a device whose board went dark is killed."""
        for news in self.boards.tick(time.monotonic()):
            if news.is_gone:
                self.events.gone(news.ident, news.text)
                self._killed.add(news.ident)
            else:
                self.events.note(news.text)
            if news.is_gone and self.is_running(news.ident):
                self.kill_device(news.ident)
        self.events.tick()

    def happened(self) -> list[tuple[float, str]]:
        """What events, churn and boards did to the fleet: seconds since 1970, and what."""
        return self.events.happened()

    def wait_done(self, timeout_s: float) -> int:
        """Wait until the coordinator has ended and return its exit code."""
        self.wait_for(lambda: self.coordinator_exit() is not None, timeout_s, "the end of the run")
        return self.coordinator_exit() or 0

    # ------------------------------------------------------------------ stopping

    def stop_devices(self) -> None:
        """Stop every device, so that its ledger is whole; the rest of the fleet lives on. Idempotent."""
        if not self._are_devices_stopped:
            self._are_devices_stopped = True
            _quietly(self.boards.release)  # a device that is held back would not end in time
            _quietly(lambda: self._devices.stop(_STOP_GRACE_S))

    @property
    def cut_off(self) -> set[str]:
        """Devices that were ever killed, or did not end in time: their ledgers may lack what was under way then."""
        ended = self._devices.ended()
        late = {name for name in self.devices if self._are_devices_stopped and self._devices.is_running(name)}
        return self._cut_off | late | {name for name, code in ended.items() if code < 0}

    def stop(self) -> None:
        """Stop every process and delete the private keys. Idempotent; after it only the files are left."""
        with ExitStack() as steps:  # last in, first out; every step is taken, also after a second Ctrl-C
            steps.callback(self.folder.delete_keys)
            steps.callback(_quietly, self.network.stop)
            steps.callback(_quietly, self.boards.close)
            for broker in self.brokers.values():
                steps.callback(_quietly, broker.stop)
            steps.callback(_quietly, lambda: self._services.stop(self._services.names(), _STOP_GRACE_S))
            steps.callback(self.stop_devices)


def _quietly(step: Callable[[], None]) -> None:
    """Take a step; one process that will not end must not keep the others alive."""
    try:
        step()
    except Exception as error:
        _log.warning("while stopping", error=error)
