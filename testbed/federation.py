"""The files of one run: throw-away keys, the root-signed directory, and the settings of every service.

OUT/summary.json, rounds.jsonl, report.html, model.onnx, settings.toml   the run's results
OUT/logs/                one log a process
OUT/state/               readable by the owner only:
    keys/                private keys; deleted as soon as the fleet has stopped
    config/              one TOML file a service, and the signed directory
    coordinator/, aggregator-1/, device-00/ …   what each service stores
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aggregator.settings import AggregatorFloors, AggregatorSettings
from coordinator.settings import CoordinatorSettings
from edge_client.board.profiles import find_board, load_board
from edge_client.ciphers import own_ciphers
from edge_client.energy.settings import EnergySettings
from edge_client.settings import DeviceLimits, DeviceSettings, DeviceTask
from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service, party_keys, write_directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.link.tls import TlsSettings
from fedpruneshare.party import LinkSettings, PartySettings
from fedpruneshare.sealing import Identity
from fedpruneshare.settings import render_toml
from testbed.links.network import Network
from testbed.links.settings import patience
from testbed.scenario import DeviceGroup, Scenario

if TYPE_CHECKING:
    from testbed.boards.emulation import Boards

COORDINATOR: Final = "coordinator"
#: The broker of the coordinator; an aggregator's broker has the aggregator's name.
CONTROL: Final = "control"
FEDERATION: Final = "testbed"
_LINK: Final = LinkSettings(reconnect_max_s=2.0)


def aggregator_ids(scenario: Scenario) -> tuple[str, ...]:
    """`aggregator-1` to `aggregator-n`."""
    return tuple(f"aggregator-{number}" for number in range(1, scenario.aggregators.count + 1))


def device_ids(scenario: Scenario) -> tuple[str, ...]:
    """`device-00` and on: the number is the device's part of the data."""
    width = max(2, len(str(scenario.fleet.devices - 1)))
    return tuple(f"device-{index:0{width}d}" for index in range(scenario.fleet.devices))


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are."""

    root: Path

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.root / "logs"

    @property
    def state(self) -> Path:
        """Everything that is not a result."""
        return self.root / "state"

    @property
    def keys(self) -> Path:
        """Private keys, while the fleet runs."""
        return self.state / "keys"

    @property
    def directory(self) -> Path:
        """The root-signed directory."""
        return self.state / "config" / "directory.json"

    @property
    def bundle(self) -> Path:
        """The task bundle."""
        return self.state / "config" / "task.bundle"

    @property
    def coordinator_rounds(self) -> Path:
        """The coordinator's rounds.jsonl."""
        return self.store(COORDINATOR) / "rounds.jsonl"

    def key(self, ident: str) -> Path:
        """Private keys of a party."""
        return self.keys / f"{ident}.json"

    def config(self, ident: str) -> Path:
        """Settings file of a service."""
        return self.state / "config" / f"{ident}.toml"

    def shaping(self, device_id: str) -> Path:
        """What the links of a device are shaped as, where they are shaped in its own process."""
        return self.config(device_id).with_suffix(".link.json")

    def store(self, ident: str) -> Path:
        """Folder a service stores in."""
        return self.state / ident

    def ledger(self, device_id: str) -> Path:
        """Ledger of a device."""
        return self.store(device_id) / "ledger.jsonl"

    def create(self) -> None:
        """Make the folders; what is private is open to its owner only."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.keys.mkdir(mode=0o700, exist_ok=True)
        self.directory.parent.mkdir(exist_ok=True)

    def delete_keys(self) -> None:
        """Throw the private keys away: nothing signed or sealed in this run can be made or opened again."""
        shutil.rmtree(self.keys, ignore_errors=True)

    def delete_state(self) -> None:
        """Delete what the services stored, once the results have been drawn from it."""
        shutil.rmtree(self.state, ignore_errors=True)


@dataclass(frozen=True)
class Federation:
    """What the files of one run are written from. `data_dir`: where devices look for the full data.

    `tls`: the certificate of each party, where the brokers want one.
    """

    scenario: Scenario
    seed: int
    folder: RunFolder
    data_dir: Path
    brokers: Mapping[str, BrokerAddress]
    boards: Boards | None = None
    network: Network | None = None
    tls: Mapping[str, TlsSettings] = field(default_factory=dict)

    def write(self) -> Directory:
        """Make keys for every party, sign the directory with a root key that is kept nowhere, render all settings."""
        root = Identity.generate("root")
        directory = self._directory()
        write_directory(self.folder.directory, directory, root)
        root_key = root.public()[0].signing.hex()
        self._write_settings(COORDINATOR, self._coordinator(root_key))
        for ident in aggregator_ids(self.scenario):
            self._write_settings(ident, self._aggregator(ident, root_key))
        for index, ident in enumerate(device_ids(self.scenario)):
            self._write_settings(ident, self._device(index, ident, root_key))
            if self.network is not None and self.network.choice.backend == "application":
                self.folder.shaping(ident).write_bytes(self.network.shaping(ident))
        return directory

    def _directory(self) -> Directory:
        rounds = self.scenario.rounds
        return Directory(
            federation=FEDERATION,
            version=1,
            coordinator_id=COORDINATOR,
            coordinator=self._service(COORDINATOR, self.brokers[CONTROL]),
            aggregators={ident: self._service(ident, self.brokers[ident]) for ident in aggregator_ids(self.scenario)},
            devices={ident: DeviceEntry(self._new_keys(ident)) for ident in device_ids(self.scenario)},
            min_devices=rounds.min_devices,
            min_devices_segment=rounds.min_devices_segment,
            plain_updates=self.scenario.sharing.reveal == "plain",
        )

    def _service(self, ident: str, broker: BrokerAddress) -> Service:
        return Service(self._new_keys(ident), broker.host, broker.port, broker.tls)

    def _new_keys(self, ident: str) -> tuple[PartyKeys, ...]:
        identity = Identity.generate(ident)
        identity.save(self.folder.key(ident))
        return tuple(party_keys(public) for public in identity.public())

    def _write_settings(self, ident: str, settings: msgspec.Struct) -> None:
        self.folder.store(ident).mkdir(mode=0o700, exist_ok=True)
        self.folder.config(ident).write_text(render_toml(settings), "utf-8")

    def _party(self, ident: str, root_key: str) -> PartySettings:
        where = (str(self.folder.key(ident)), str(self.folder.directory), root_key, str(self.folder.store(ident)))
        return PartySettings(*where)

    def _coordinator(self, root_key: str) -> CoordinatorSettings:
        scenario = self.scenario
        rounds = msgspec.structs.replace(scenario.rounds, seed=self.seed, max_failed=scenario.max_failed_rounds)
        return CoordinatorSettings(
            party=self._party(COORDINATOR, root_key),
            bundle=str(self.folder.bundle),
            store=str(self.folder.store(COORDINATOR)),
            rounds=rounds,
            sharing=scenario.sharing,
            pruning=scenario.pruning,
            coding=scenario.coding,
            training=scenario.training,
            averaging=scenario.averaging,
            link=self._link(COORDINATOR),
        )

    def _aggregator(self, ident: str, root_key: str) -> AggregatorSettings:
        rounds, sharing = self.scenario.rounds, self.scenario.sharing
        # The operator of the scenario is that of its aggregators.
        allowed = {"allow_reveal_each": sharing.reveal == "each", "allow_plain": sharing.reveal == "plain"}
        return AggregatorSettings(
            party=self._party(ident, root_key),
            store=str(self.folder.store(ident)),
            floors=AggregatorFloors(
                rounds.min_devices,
                rounds.min_devices_segment,
                max(sharing.t, 1),
                differencing_rounds=rounds.differencing_rounds,
                **allowed,
            ),
            link=self._link(ident),
        )

    def _device_task(self, index: int) -> DeviceTask:
        task, devices = self.scenario.task, self.scenario.fleet.devices
        part = (index, devices, str(self.data_dir), self.seed)
        return DeviceTask(task.name, *part, split=task.split, alpha=task.alpha, shards=task.shards)

    def _device(self, index: int, ident: str, root_key: str) -> DeviceSettings:
        fleet = self.scenario.fleet
        group = fleet.members()[index]
        return DeviceSettings(
            party=self._party(ident, root_key),
            task=self._device_task(index),
            store=str(self.folder.store(ident)),
            board=group.board,
            root=str(self.boards.root(ident)) if self.boards else "/",
            adaptive=fleet.adaptive,
            limits=DeviceLimits(rung_max=group.rung_max, prg=own_ciphers(fleet.prg).prg.value),
            energy=_energy_of(group, self.boards is not None and self.boards.is_slowed),
            link=self._device_link(ident),
        )

    def _link(self, ident: str) -> LinkSettings:
        return msgspec.structs.replace(_LINK, tls=self.tls.get(ident))

    def _device_link(self, ident: str) -> LinkSettings:
        """A slow link needs patience: what is under way to all aggregators may queue ahead of a sign of life."""
        link = self._link(ident)
        if self.network is None or self.network.choice.backend == "none":
            return link
        chunk_bytes, chunks = self.scenario.coding.chunk_bytes, DeviceLimits().outstanding_chunks
        under_way_bytes = len(aggregator_ids(self.scenario)) * chunks * chunk_bytes
        return patience(self.network.profile(ident), link, under_way_bytes)


def _energy_of(group: DeviceGroup, is_slowed: bool) -> EnergySettings:
    """The model of the board a device stands for, which would take longer than this machine does, or nothing."""
    if not group.board:
        return EnergySettings(meter="none")
    scale = load_board(group.board).train_scale / find_board(Path("/")).train_scale
    return EnergySettings(
        meter="model",
        work_scale=scale,
        work_is_slowed=is_slowed,
        battery_wh=group.battery_wh,
        horizon_rounds=group.horizon_rounds,
    )
