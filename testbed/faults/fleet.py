"""A fleet to be broken: real processes and brokers, each behind a proxy, with a history that a checker judges.

with FaultFleet(scenario, folder, seed=1) as fleet:
    fleet.start()
    fleet.arm("aggregator-1", "aggregator.freeze-persisted.after")
    fleet.await_death("aggregator-1")
    fleet.revive("aggregator-1")
    ...
assert fleet.judge() == []
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from fedpruneshare.errors import RunError
from fedpruneshare.link import BrokerAddress
from firmware_configs.brokers import Broker
from testbed.devices import DeviceProcesses
from testbed.faults import checker
from testbed.faults.history import FORMAT, History
from testbed.faults.proxy import Proxy
from testbed.faults.roles import write_order
from testbed.federation import COORDINATOR
from testbed.fleet import Fleet
from testbed.places import HERE, Place
from testbed.scenario import Scenario
from testbed.synthetic.engine import SyntheticDevices

#: How long after its deadline a round may take to be decided, at most.
GRACE_S: Final = 30.0
_BLOW_S: Final = 30.0
#: Resident MiB that a process of a role may have, and those for each device of the fleet; `host`: of synthetic devices.
#: Most that was measured, of fleets of five to twenty devices: 64, 61, 72, 202, 73; of 500: 77, 62, 38, none, 190.
_CEILINGS: Final = {
    "aggregator": (100.0, 0.4),
    "coordinator": (100.0, 0.4),
    "broker": (100.0, 0.4),
    "device": (300.0, 0.0),
    "host": (120.0, 1.0),
}


def _command(kind: str, devices: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "testbed.faults.roles", kind, str(devices), str(folder)]


class ForkedServices:
    """Aggregators and coordinator, forked from one warm parent; to a fleet they are its `Processes`."""

    def __init__(self, logs: Path, folder: Path) -> None:
        self._logs = logs
        self._parent = DeviceProcesses(logs, _command("services", 0, folder))
        self._names: list[str] = []

    def launch(self) -> None:
        """Start the parent, without waiting for it."""
        self._parent.launch("", Path())

    def wait_ready(self) -> None:
        """Return once services can be started."""
        self._parent.wait_ready()

    def start(self, name: str, arguments: Sequence[str], place: Place = HERE) -> int:
        """Fork a service and return its pid; the last argument is its settings file."""
        if name not in self._names:
            self._names.append(name)
        return self._parent.start(name, Path(arguments[-1]), place)

    def log(self, name: str) -> Path:
        """The log file of a service."""
        return self._logs / f"{name}.log"

    def names(self) -> tuple[str, ...]:
        """Everything ever started, in order."""
        return tuple(self._names)

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return self._parent.is_running(name)

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        return self._parent.exit_code(name)

    def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        self._parent.kill(name)

    def stop(self, names: Sequence[str], grace_s: float) -> None:
        """SIGTERM to all of them, SIGKILL after `grace_s` to whoever is left."""
        if names:
            self._parent.stop(grace_s)


class _OracleHost(SyntheticDevices):
    """Synthetic devices in one process, which upload oracle words."""

    def __init__(self, scenario: Scenario, logs: Path, folder: Path) -> None:
        super().__init__(scenario.fleet, logs)
        self._hosts = [DeviceProcesses(logs, _command("host", scenario.fleet.devices, folder)) for _ in self._hosts]


class ProxiedBroker:
    """A broker that parties reach through a proxy; to a fleet it is its `Broker`, at the proxy's address."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self.broker, self._seed = broker, seed
        self._proxy: Proxy | None = None

    @property
    def proxy(self) -> Proxy:
        """What lies before the broker, since its first start."""
        assert self._proxy is not None
        return self._proxy

    @property
    def address(self) -> BrokerAddress:
        """Where parties connect."""
        return self.proxy.address

    @property
    def pid(self) -> int:
        """The broker's process id."""
        return self.broker.pid

    @property
    def is_running(self) -> bool:
        """Whether the broker's process lives."""
        return self.broker.is_running

    def start(self) -> None:
        """Start the broker, and the proxy with its first start."""
        self.broker.start()
        if self._proxy is None:
            address = self.broker.address
            self._proxy = Proxy(address, seed=self._seed, is_mqtt=not address.tls)
            self._proxy.start()

    def stop(self) -> None:
        """End the broker with SIGTERM, and the proxy."""
        if self._proxy is not None:
            self._proxy.stop()
        self.broker.stop()

    def kill(self) -> None:
        """SIGKILL the broker; the proxy goes on and refuses."""
        self.broker.kill()

    def restart(self) -> None:
        """Stop the broker and start it on its old port."""
        self.broker.restart()


class FaultFleet(Fleet):
    """A fleet whose processes can be ended at their crash points and cut off; its history lies in its folder.

    `own_broker`: makes the broker of a name, where the scenario's kind will not do.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        seed: int,
        own_broker: Callable[[str, Path], Broker] | None = None,
        *,
        is_proxied: bool = True,
    ) -> None:
        super().__init__(scenario, folder, seed)
        self._own_broker, self._is_proxied = own_broker, is_proxied
        state = self.folder.state
        self.history_path, self.orders = state / "history.jsonl", state / "kill"
        self._forked = ForkedServices(self.folder.logs, state)
        self._services = self._forked  # type: ignore[assignment]
        self._device_role = "host" if scenario.fleet.engine == "synthetic" else "device"
        if scenario.fleet.engine == "synthetic":
            self._devices = _OracleHost(scenario, self.folder.logs, state)
        else:
            command = _command("devices", scenario.fleet.devices, state)
            self._devices = DeviceProcesses(self.folder.logs, command)
        self.history: History | None = None
        self.pids: dict[str, int] = {}
        self._read, self._told = 0, list[dict[str, Any]]()

    def __enter__(self) -> FaultFleet:
        super().__enter__()
        return self

    def _prepare(self) -> None:
        self.folder.create()
        self.orders.mkdir(mode=0o700, exist_ok=True)
        self.history = History(self.history_path, time.monotonic)
        one_hot = {ident: place for place, ident in enumerate(self.devices)}
        count = self.scenario.fleet.devices
        ceilings = {f"{role}_mib": base + each * count for role, (base, each) in _CEILINGS.items()}
        self.note("begin", format=FORMAT, seed=self.seed, grace_s=GRACE_S, one_hot=one_hot, ceilings=ceilings)
        self._forked.launch()
        super()._prepare()
        self._forked.wait_ready()

    def _new_broker(self, name: str) -> Broker:
        folder = self.folder.state / f"broker-{name}"
        broker = super()._new_broker(name) if self._own_broker is None else self._own_broker(name, folder)
        if not self._is_proxied:
            return broker
        return ProxiedBroker(broker, self.seed)  # type: ignore[return-value]

    def proxy(self, name: str) -> Proxy:
        """The proxy before an aggregator's broker, or before that of the coordinator (`control`)."""
        broker = self.brokers[name]
        assert isinstance(broker, ProxiedBroker)
        return broker.proxy

    def note(self, event: str, **fields: Any) -> None:
        """Put an event into the history."""
        assert self.history is not None
        self.history.note(event, **fields)

    def note_memory(self) -> None:
        """Put the resident memory of every process that lives into the history, by its role."""
        brokers = {f"broker-{name}": broker.pid for name, broker in self.brokers.items() if broker.is_running}
        parties = {pid: party for party, pid in (self.pids | brokers).items()}  # synthetic devices share one process
        for pid, party in parties.items():
            role = self._device_role if party in self.devices else party.partition("-")[0]
            with suppress(psutil.NoSuchProcess):  # killed
                mib = psutil.Process(pid).memory_info().rss / 2**20
                self.note("resource", party=party, **{f"{role}_mib": round(mib, 1)})

    # ------------------------------------------------------------------ ending and starting processes

    def start_aggregator(self, ident: str) -> int:
        """Start an aggregator and remember its pid."""
        self.pids[ident] = super().start_aggregator(ident)
        return self.pids[ident]

    def start_coordinator(self) -> int:
        """Start the coordinator and remember its pid."""
        self.pids[COORDINATOR] = super().start_coordinator()
        return self.pids[COORDINATOR]

    def start_device(self, device: str | int) -> int:
        """Start a device and remember its pid (synthetic ones share their host's)."""
        ident = self.device_id(device)
        self.pids[ident] = super().start_device(ident)
        return self.pids[ident]

    def arm(self, ident: str, point: str, nth: int = 1, how: signal.Signals = signal.SIGKILL) -> None:
        """Have a process signal itself when it reaches a crash point for the nth time from now on."""
        if how == signal.SIGKILL:
            self._killed.add(ident)
        if ident in self.devices:
            self._cut_off.add(ident)
        write_order(self.orders / ident, point, nth, how)

    def disarm(self, ident: str) -> None:
        """Take back what `arm` asked for."""
        (self.orders / ident).unlink(missing_ok=True)

    def await_death(self, ident: str, timeout_s: float = _BLOW_S) -> None:
        """Wait until an armed process is gone. Raises `RunError` if it never reached its point, or ended before it."""
        self.wait_for(lambda: not self.is_running(ident), timeout_s, f"the end of {ident} at {self._order(ident)}")
        if (self.orders / ident).exists():  # it is taken away before the signal
            raise RunError(f"{ident} ended by itself, before it reached {self._order(ident)}")

    def await_stop(self, ident: str, timeout_s: float = _BLOW_S) -> None:
        """Wait until a process armed with SIGSTOP stands still. Raises `RunError` if it never reached its point."""
        stat = Path(f"/proc/{self.pids[ident]}/stat")
        stopped = lambda: stat.read_text().rpartition(")")[2].split()[0] == "T"  # noqa: E731
        self.wait_for(stopped, timeout_s, f"{ident} to stop at {self._order(ident)}")

    def resume(self, ident: str) -> None:
        """Let a stopped process go on."""
        os.kill(self.pids[ident], signal.SIGCONT)

    def _order(self, ident: str) -> str:
        order = self.orders / ident
        return order.read_text() if order.exists() else "its crash point"

    def kill(self, ident: str) -> None:
        """SIGKILL a process, whatever its role."""
        if ident == COORDINATOR:
            self.kill_coordinator()
        elif ident in self.aggregators:
            self.kill_aggregator(ident)
        else:
            self.kill_device(ident)

    def revive(self, ident: str) -> None:
        """Start a process again."""
        self.note("restart", party=ident)
        if ident == COORDINATOR:
            self.start_coordinator()
        elif ident in self.aggregators:
            self.start_aggregator(ident)
        else:
            self.start_device(ident)

    # ------------------------------------------------------------------ what came of it

    def judge(self) -> list[str]:
        """Stop the coordinator, and say what the independent checker finds in the history; nothing in a sound run.

        Memory is measured once more before. A round that this cuts short is left out: nobody was there to decide it.
        """
        self.note_memory()
        self.kill_coordinator()
        self.note("end")
        story = self.story()
        decided = {e["round"] for e in story if e["event"] == "outcome"}
        newest = max((e["round"] for e in story if e["event"] == "plan"), default=0)
        return checker.judge(e for e in story if newest in decided or e.get("round") != newest)

    def story(self) -> list[dict[str, Any]]:
        """The events of the run so far, by time."""
        with self.history_path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines.rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            self._told = sorted([*self._told, *map(json.loads, whole.splitlines())], key=lambda e: float(e["at"]))
        return self._told


__all__ = ["GRACE_S", "FaultFleet", "ForkedServices", "ProxiedBroker"]
