"""`fleet.engine = "ray"`: real devices on the nodes of a Ray cluster (docs/ray.md).

On each node one process, or several, hosts devices as a run on one machine does (`testbed.engines.ray_node`). Their
settings and keys go there when they start; what they write to logs and ledgers comes back twice a second, so that
the run folder is as with processes. The rest of what a device stores stays on its node and is deleted with it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from edge_client.board.profiles import find_board
from edge_client.settings import DeviceSettings, SplitKind
from fedpruneshare.directory import Directory, read_directory
from fedpruneshare.errors import FedPruneShareError, RunError, SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.settings import load_settings
from firmware_configs.brokers import is_loopback
from testbed.engines import ray_cluster
from testbed.engines.ray_cluster import RemoteHost, call_all
from testbed.engines.ray_local import LocalRay, local_environment
from testbed.engines.ray_node import BUNDLE, About, DeviceFiles, Exported, News, own_about
from testbed.engines.ray_settings import RAY, plan_posts
from testbed.federation import device_ids
from testbed.places import HERE, Place
from testbed.scenario import Scenario

_NEWS_S: Final = 0.5
_READY_S: Final = 240.0
_EXPORT_S: Final = 240.0
_REPLY_S: Final = 60.0
_log = structlog.get_logger()


@dataclass
class _Station:
    """A host and what is known of it. `files`: what is followed on it -> the file here."""

    host: RemoteHost
    number: int
    about: About
    is_checked: bool = False
    started: set[str] = field(default_factory=set)
    codes: dict[str, int] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    stores: dict[str, Path] = field(default_factory=dict)


class RayDevices:
    """Devices on the nodes of a cluster, started, signalled and watched by name."""

    def __init__(self, scenario: Scenario, logs: Path) -> None:
        self._settings, self._broker_host = scenario.fleet.ray, scenario.brokers.host
        self._names = device_ids(scenario)
        self._logs = logs
        self._local = LocalRay(logs / "ray.log")
        self._launch: tuple[str, Path, SplitKind] = ("", Path(), "")
        self._hosts: list[RemoteHost] = []
        self._stations: list[_Station] = []
        self._of: dict[str, _Station] = {}
        self._is_connected = False
        # The thread that fetches news and the one that uses this object never ask a host at the same time.
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._follower: threading.Thread | None = None

    # ------------------------------------------------------------------ starting

    def launch(self, task: str, data_dir: Path, split: SplitKind = "") -> None:
        """Start a cluster on this machine unless one is to be joined. Raises `SettingsError` without Ray."""
        ray_cluster.require_ray()
        self._launch = (task, data_dir, split)
        if not self._settings.address:
            self._local.launch(self._settings.nodes or 1, os.cpu_count() or 1)

    def wait_ready(self) -> None:
        """Join the cluster and return once every host can start devices.

        Raises `TaskError` if the task cannot be used there, `SettingsError` where nodes are missing, too small or of
        another version, or cannot reach the brokers, `RunError` where a host does not start.
        """
        address = self._settings.address
        is_local = not address
        ray_cluster.connect(address or self._local.address(), local_environment() if is_local else {})
        self._is_connected = True
        posts = plan_posts(self._names, ray_cluster.living_nodes(), self._settings)
        self._check_brokers_are_near([post.node.address for post in posts])
        base = str(self._local.folder) if is_local else ""
        self._hosts = [RemoteHost(post, base) for post in posts if post.names]
        abouts = call_all(self._hosts, "about", timeout_s=_READY_S)
        self._check_versions(abouts)
        self._stations = [
            _Station(host, number, about)
            for number, (host, about) in enumerate(zip(self._hosts, abouts, strict=True), 1)
        ]
        self._of = {name: station for station in self._stations for name in station.host.post.names}
        for station in self._stations:
            station.files["logs/zygote.log"] = self._logs / f"zygote-{station.number}.log"
            station.files["export.log"] = self._logs / f"export-{station.number}.log"
        task, data_dir, split = self._launch
        call_all(self._hosts, "launch", task, str(data_dir), split, timeout_s=_REPLY_S)
        folders = call_all(self._hosts, "wait_ready", timeout_s=_READY_S)
        for station, folder in zip(self._stations, folders, strict=True):
            _log.info("node", node=str(station.host.post.node), devices=len(station.host.post.names), data=folder)
        self._follower = threading.Thread(target=self._follow, name="ray-news", daemon=True)
        self._follower.start()

    def _check_brokers_are_near(self, addresses: Sequence[str]) -> None:
        own = ray_cluster.own_address()
        for address in addresses:
            if address != own and is_loopback(self._broker_host):
                raise SettingsError(
                    f"brokers.host: found {self._broker_host}, which node {address} cannot reach, expected an address "
                    f'of this machine that it can, such as {own}, with brokers.kind = "mosquitto"'
                )

    def _check_versions(self, abouts: Sequence[About]) -> None:
        own = own_about().versions
        for host, about in zip(self._hosts, abouts, strict=True):
            for package, version in about.versions.items():
                if version != own[package]:
                    found = f"{host.post.node} has {package} {version}"
                    raise SettingsError(f"{found}, expected {own[package]}, as on this machine")

    def export(self, seed: int, bundle: Path) -> None:
        """Fetch the task's bundle with initial weights from `seed` from the first node.

        Every node makes one, which shows what data it has. Raises `TaskError` with the reason, `SettingsError` where
        one node has the full data and another only the fixture.
        """
        first = {station.host.post.node: station for station in reversed(self._stations)}
        stations = sorted(first.values(), key=lambda station: station.number)
        with self._lock:
            made: list[Exported] = call_all([station.host for station in stations], "export", seed, timeout_s=_EXPORT_S)
        for station, one in zip(stations, made, strict=True):
            self._check_same(station, one, stations[0], made[0])
        with open(bundle, "wb") as file:
            while file.tell() < made[0].size_bytes:
                piece = stations[0].host.call("read", BUNDLE, file.tell(), timeout_s=_REPLY_S)
                if not piece:
                    raise RunError(f"{stations[0].host.post.node}: {BUNDLE} ends after {file.tell()} bytes")
                file.write(piece)

    def _check_same(self, station: _Station, one: Exported, first: _Station, other: Exported) -> None:
        node, reference = station.host.post.node, first.host.post.node
        if one.data_source != other.data_source:
            raise SettingsError(
                f"task.data_dir: {node} has the {one.data_source} data, {reference} the {other.data_source} data; "
                f"expected the same on every node, in {self._launch[1]} or the node's own $FEDPRUNESHARE_DATA"
            )
        if one.digest != other.digest:
            _log.warning("nodes make different bundles", node=str(node), reference=str(reference))

    def start(self, name: str, settings: Path, place: Place = HERE) -> int:
        """Start a device on its node and return its pid there. Raises `RunError` where it runs or its node is gone."""
        if place:
            raise SettingsError(f"{name} in {place}, expected no network or control group of its own with engine ray")
        with self._lock:
            station = self._of[name]
            if name in station.started and name not in station.codes:
                raise RunError(f"{name} runs already, expected it to have ended before it is started again")
            if station.host.is_gone:
                raise RunError(f"{name}: {station.host.post.node} is gone, expected it to be there")
            given = load_settings(settings, DeviceSettings)
            directory = Path(given.party.directory)
            if not station.is_checked:
                self._check_reach(station, read_directory(directory, given.party.root_key))
            station.files[f"logs/{name}.log"] = self._logs / f"{name}.log"
            station.files[f"{name}/ledger.jsonl"] = Path(given.store) / "ledger.jsonl"
            station.stores[name] = Path(given.store)
            key = Path(given.party.key_file).read_bytes()
            files = DeviceFiles(name, _on_board_of(station.about, given), key, directory.read_bytes())
            pid = int(station.host.call("start", files, timeout_s=_REPLY_S))
            station.codes.pop(name, None)
            station.started.add(name)
            return pid

    def _check_reach(self, station: _Station, directory: Directory) -> None:
        services = (directory.coordinator, *directory.aggregators.values())
        brokers: list[BrokerAddress] = [service.address for service in services]
        reason = station.host.call("reach", brokers, timeout_s=_REPLY_S)
        if reason:
            raise SettingsError(
                f"brokers.host: {station.host.post.node} cannot reach the broker at {reason}; expected an address and "
                "ports that the nodes can reach"
            )
        station.is_checked = True

    # ------------------------------------------------------------------ watching

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not ended, as of the last news."""
        with self._lock:
            station = self._of[name]
            return name in station.started and name not in station.codes

    def exit_code(self, name: str) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs, as of the last news."""
        with self._lock:
            return self._of[name].codes.get(name)

    def ended(self) -> dict[str, int]:
        """Exit code of every device that has ended and was not started again, as of the last news."""
        with self._lock:
            return {name: code for station in self._stations for name, code in station.codes.items()}

    def conditions(self) -> dict[str, Any]:
        """What the summary says: the version of Ray, and the nodes with their devices."""
        nodes: dict[str, dict[str, Any]] = {}
        for host in self._hosts:
            node = host.post.node
            entry = nodes.setdefault(node.ident, {"host": node.host, "cpus": node.cpus, "devices": 0})
            entry["devices"] += len(host.post.names)
        numbered = {str(number): entry for number, entry in enumerate(nodes.values(), 1)}
        return {"name": RAY, "version": ray_cluster.version(), "nodes": numbered}

    def _follow(self) -> None:
        while not self._is_over.wait(_NEWS_S):
            try:
                with self._lock:
                    self._take_news()
            except Exception as error:
                _log.warning("no news of devices", error=str(error))

    def _take_news(self) -> None:
        """Ask every host once; a host that is gone took its devices with it."""
        asked = [station for station in self._stations if not station.host.is_gone]
        calls = [station.host.begin("news", _offsets(station)) for station in asked]
        for station, call in zip(asked, calls, strict=True):
            try:
                news: News = station.host.result(call, _REPLY_S)
                _take_in(station, news)
                while not news.is_complete:
                    news = station.host.call("news", _offsets(station), timeout_s=_REPLY_S)
                    _take_in(station, news)
            except RunError as error:
                _log.warning("no news of devices", error=str(error))
            if station.host.is_gone:
                station.codes |= {name: -signal.SIGKILL for name in station.started - station.codes.keys()}

    # ------------------------------------------------------------------ ending

    def kill(self, name: str) -> None:
        """SIGKILL, as a loss of power would; returns when the process is gone and what it wrote is here."""
        with self._lock:
            self._of[name].host.call("kill", name, timeout_s=_REPLY_S)
            self._take_news()

    def stop(self, grace_s: float) -> None:
        """End all devices, fetch what they wrote last, and leave the cluster or end it. Never raises."""
        self._is_over.set()
        if self._follower is not None:
            self._follower.join()
        try:
            if self._is_connected:
                self._stop_hosts(grace_s)
        except Exception as error:
            _log.warning("while stopping", error=str(error))
        finally:
            if self._is_connected:
                ray_cluster.disconnect()
            self._is_connected = False
            self._local.stop()

    def _stop_hosts(self, grace_s: float) -> None:
        living = [host for host in self._hosts if not host.is_gone]
        try:
            _call_each(living, "stop", grace_s, timeout_s=2 * grace_s + _REPLY_S)
            self._take_news()
            _call_each(living, "close", timeout_s=_REPLY_S)
        finally:
            for host in self._hosts:
                host.end()
            self._hosts = []


def _call_each(hosts: Sequence[RemoteHost], method: str, *arguments: Any, timeout_s: float) -> None:
    """The same call on several hosts; one that fails does not keep the others from it."""
    for host, call in [(host, host.begin(method, *arguments)) for host in hosts]:
        try:
            host.result(call, timeout_s)
        except FedPruneShareError as error:
            _log.warning("while stopping", method=method, error=str(error))


def _offsets(station: _Station) -> dict[str, int]:
    return {file: path.stat().st_size for file, path in station.files.items() if path.exists()}


def _take_in(station: _Station, news: News) -> None:
    for file, data in news.written.items():
        if (path := station.files.get(file)) is not None:
            with open(path, "ab") as target:
                target.write(data)
    for name, store in station.stores.items():
        partial = store / "ledger.partial"
        if name in news.partials:
            partial.write_bytes(news.partials[name])
        else:
            partial.unlink(missing_ok=True)
    station.codes = dict(news.codes)


def _on_board_of(about: About, settings: DeviceSettings) -> DeviceSettings:
    """With modelled joules as they are where the work is done by the node's processor and not by this machine's."""
    if settings.energy.meter != "model":
        return settings
    scale = settings.energy.work_scale * find_board(Path("/")).train_scale / about.train_scale
    return msgspec.structs.replace(settings, energy=msgspec.structs.replace(settings.energy, work_scale=scale))
