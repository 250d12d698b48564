"""What runs on a node of a Ray cluster: devices in a private folder, and what they wrote, handed to the head.

`NodeHost` is made a Ray actor by `testbed.engines.ray_cluster` and knows nothing of Ray itself. It launches the same
parent of devices as a run on one machine does (`testbed.devices`), from the thread that all its calls come in.

    FOLDER/                  readable by the owner only; deleted at the end, also where this process is killed
        keys/NAME.json       private keys of a device (0600); deleted once the devices have ended
        config/              settings of the devices and the signed directory
        logs/                one log a device, and that of their parent
        NAME/                what a device stores
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from edge_client.board.profiles import find_board
from edge_client.datasets import DATA_VARIABLE
from edge_client.settings import DeviceSettings, SplitKind
from fedpruneshare import __version__
from fedpruneshare.bundle import Bundle
from fedpruneshare.errors import RunError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.settings import render_toml
from testbed.devices import DeviceProcesses

BUNDLE: Final = "task.bundle"
#: Pieces in which files travel: small enough for Ray to carry them beside everything else.
PIECE_BYTES: Final = 8 << 20
_CONNECT_S: Final = 5.0
#: What must be of one version on all nodes, for the same seed to give the same numbers and the messages to fit.
_PACKAGES: Final = ("numpy", "torch", "msgspec")


@dataclass(frozen=True)
class DeviceFiles:
    """What a device needs to run elsewhere. The key file is secret, so nothing of it is shown."""

    name: str
    settings: DeviceSettings
    key: bytes = field(repr=False)
    directory: bytes = field(repr=False)


@dataclass(frozen=True)
class About:
    """What a node says of itself. `train_scale`: that of its board profile (docs/boards.md)."""

    versions: dict[str, str]
    train_scale: float


@dataclass(frozen=True)
class Exported:
    """A bundle a node has made: its length, which data it is of, and SHA-256 of its contents."""

    size_bytes: int
    data_source: str
    digest: bytes


@dataclass(frozen=True)
class News:
    """What happened since it was asked last.

    `codes`: exit codes of ended devices. `written`: file -> what it holds after the known offset. `partials`: the
    unfinished ledger entry of each device that has one.
    """

    codes: dict[str, int]
    written: dict[str, bytes] = field(repr=False)
    partials: dict[str, bytes] = field(repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether no file had more to say than fits."""
        return all(len(data) < PIECE_BYTES for data in self.written.values())


class NodeHost:
    """Devices on one node. `base`: where the private folder is made; empty: the node's folder for temporary files."""

    def __init__(self, base: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fps-node-", dir=base or None))
        self._cleaner = _start_cleaner(self.folder)
        for name in ("keys", "config", "logs"):
            (self.folder / name).mkdir(mode=0o700)
        # Devices have no business with the cluster, and import this project from where it was found here.
        os.environ.pop("RAY_AUTH_TOKEN", None)
        root = str(Path(__file__).resolve().parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self._devices = DeviceProcesses(self.folder / "logs")
        self._data_dir = Path()
        self._names: list[str] = []

    def about(self) -> About:
        """Who this node is, and the versions of what it would run."""
        return own_about()

    def launch(self, task: str, data_dir: str, split: SplitKind) -> None:
        """Start the parent of the devices. Data are looked for in `data_dir`, else in this node's own data folder."""
        own = os.environ.get(DATA_VARIABLE)
        self._data_dir = Path(own) if own and not Path(data_dir).is_dir() else Path(data_dir)
        self._devices.launch(task, self._data_dir, split)

    def wait_ready(self) -> str:
        """The folder it looks for data in, once devices can be started. Raises `TaskError` or `RunError`."""
        self._devices.wait_ready()
        return str(self._data_dir)

    def export(self, seed: int) -> Exported:
        """Write the task's bundle, which `read` then gives piece by piece. Raises `TaskError`."""
        path = self.folder / BUNDLE
        self._devices.export(seed, path)
        bundle = Bundle.open(path)
        return Exported(path.stat().st_size, bundle.manifest.data_source, bundle.digest)

    def read(self, file: str, offset: int) -> bytes:
        """At most one piece of a file of the folder; nothing where it does not exist or ends there."""
        try:
            with open(self.folder / file, "rb") as stream:
                stream.seek(offset)
                return stream.read(PIECE_BYTES)
        except FileNotFoundError:
            return b""

    def reach(self, brokers: list[BrokerAddress]) -> str:
        """Why a broker cannot be reached from here, empty if all can."""
        for broker in brokers:
            try:
                socket.create_connection((broker.host, broker.port), _CONNECT_S).close()
            except OSError as error:
                return f"{broker.host}:{broker.port}: {error}"
        return ""

    def start(self, device: DeviceFiles) -> int:
        """Write the device's files, start it, and return its pid on this node. Raises `RunError` where it runs."""
        name = device.name
        if self._devices.is_running(name):
            raise RunError(f"{name} runs already, expected it to have ended before it is started again")
        key, directory = self.folder / "keys" / f"{name}.json", self.folder / "config" / "directory.json"
        _write_private(key, device.key)
        _write_private(directory, device.directory)
        store = self.folder / name
        store.mkdir(mode=0o700, exist_ok=True)
        given = device.settings
        settings = msgspec.structs.replace(
            given,
            party=msgspec.structs.replace(given.party, key_file=str(key), directory=str(directory)),
            task=msgspec.structs.replace(given.task, data_dir=str(self._data_dir)),
            store=str(store),
        )
        config = self.folder / "config" / f"{name}.toml"
        _write_private(config, render_toml(settings).encode())
        if name not in self._names:
            self._names.append(name)
        return self._devices.start(name, config)

    def kill(self, name: str) -> None:
        """SIGKILL a device; returns when it is gone."""
        self._devices.kill(name)

    def news(self, offsets: Mapping[str, int]) -> News:
        """Which devices have ended, and what was written to logs and ledgers after the offsets given for them."""
        codes = self._devices.ended()
        written = {file: data for file in self._followed() if (data := self.read(file, offsets.get(file, 0)))}
        partials = {name: data for name in self._names if (data := self.read(f"{name}/ledger.partial", 0))}
        return News(codes, written, partials)

    def _followed(self) -> list[str]:
        files = ["logs/zygote.log", "export.log"]
        for name in self._names:
            files += [f"logs/{name}.log", f"{name}/ledger.jsonl"]
        return files

    def stop(self, grace_s: float) -> None:
        """End all devices and their parent; what they wrote can still be read."""
        self._devices.stop(grace_s)
        shutil.rmtree(self.folder / "keys", ignore_errors=True)

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def own_about() -> About:
    """What this machine says of itself."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions |= {"fedpruneshare": __version__, "python": platform.python_version()}
    return About(versions, find_board(Path("/")).train_scale)


def _write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by the owner only."""
    partial = path.with_name(path.name + ".part")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    partial.replace(path)


# --------------------------------------------------------------------------- after a killed process


#: Two forks away, for Ray kills the children of its workers. It deletes for three seconds: a device that is just ending
#: may write, and even make the folder anew.
_CLEANER: Final = """
import os, shutil, sys, time
if os.fork():
    os._exit(0)
while os.read(0, 4096):
    pass
until_s = time.monotonic() + 3.0
while time.monotonic() < until_s or os.path.isdir(sys.argv[1]) and time.monotonic() < until_s + 10.0:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.05)
"""


def _start_cleaner(folder: Path) -> subprocess.Popen[bytes]:
    """A process that deletes the folder as soon as this one ends: keys must not outlive a node that is killed.

    It waits for the end of a pipe that only this process can write to.
    """
    command = [sys.executable, "-I", "-c", _CLEANER, str(folder)]
    null = subprocess.DEVNULL
    cleaner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    cleaner.wait()  # its child goes on
    return cleaner
