"""A node's host of devices, without Ray: private files, what is handed back, and nothing left when it is killed."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from edge_client.settings import DeviceSettings, DeviceTask
from fedpruneshare.errors import RunError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import PartySettings
from fedpruneshare.settings import load_settings
from testbed.devices import DeviceProcesses
from testbed.engines import ray_node
from testbed.engines.ray_node import DeviceFiles, NodeHost

SECRET = b'{"signing": "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"}'
ZYGOTE = """
import sys, time
from pathlib import Path
from testbed.zygote import Work, serve

def device(name, settings):
    store = settings.parent.parent / name
    (store / "ledger.partial").write_text("half")
    (store / "ledger.jsonl").write_text("first line\\n")
    print("up", flush=True)
    while not (store / "go").exists():
        time.sleep(0.01)
    with open(store / "ledger.jsonl", "a") as file:
        file.write("second line\\n")
    (store / "ledger.partial").unlink()
    return 7

sys.exit(serve(lambda: Work(device, lambda seed, bundle: None)))
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeHost]:
    script = tmp_path / "zygote.py"
    script.write_text(ZYGOTE)
    monkeypatch.setattr(ray_node, "DeviceProcesses", partial(DeviceProcesses, zygote=(sys.executable, str(script))))
    monkeypatch.setenv("PYTHONPATH", "")
    made = NodeHost(str(tmp_path))
    made.launch("task", str(tmp_path), "")
    made.wait_ready()
    yield made
    made.stop(1.0)
    made.close()


def files(name: str) -> DeviceFiles:
    party = PartySettings("/head/keys/x.json", "/head/config/directory.json", "0" * 64)
    settings = DeviceSettings(party=party, task=DeviceTask("task", 0, 2, "/head/data"), store="/head/state/x")
    return DeviceFiles(name, settings, SECRET, b"directory")


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_private_and_gone_with_the_devices(host: NodeHost) -> None:
    host.start(files("device-00"))
    key = host.folder / "keys" / "device-00.json"
    assert key.read_bytes() == SECRET
    assert (mode(host.folder), mode(key.parent), mode(key)) == (0o700, 0o700, 0o600)
    config = host.folder / "config" / "device-00.toml"
    settings = load_settings(config, DeviceSettings)
    assert settings.party.key_file == str(key)
    assert Path(settings.party.directory).read_bytes() == b"directory"
    assert settings.store == str(host.folder / "device-00")
    assert settings.task.data_dir == str(host.folder.parent)
    until(lambda: b"up" in host.read("logs/device-00.log", 0))
    host.stop(0.1)
    assert not key.exists()
    assert b"up" in host.read("logs/device-00.log", 0)
    host.close()
    assert not host.folder.exists()


def test_no_key_in_what_is_shown() -> None:
    assert SECRET.decode() not in repr(files("device-00"))
    assert "9c56cc51" not in repr(files("device-00"))


def test_news_start_where_the_last_ended(host: NodeHost) -> None:
    host.start(files("device-00"))
    with pytest.raises(RunError, match="device-00 runs already"):
        host.start(files("device-00"))
    until(lambda: b"up\n" in host.news({}).written.get("logs/device-00.log", b""))
    first = host.news({})
    assert first.codes == {}
    assert first.written == {"logs/device-00.log": b"up\n", "device-00/ledger.jsonl": b"first line\n"}
    assert first.partials == {"device-00": b"half"}
    offsets = {file: len(data) for file, data in first.written.items()}
    assert host.news(offsets).written == {}
    (host.folder / "device-00" / "go").touch()
    until(lambda: host.news(offsets).codes == {"device-00": 7})
    last = host.news(offsets)
    assert last.written == {"device-00/ledger.jsonl": b"second line\n"}
    assert last.partials == {}
    assert host.start(files("device-00")) > 0
    assert host.news(offsets).codes == {}


def test_a_killed_device_is_gone_when_the_call_returns(host: NodeHost) -> None:
    pid = host.start(files("device-00"))
    host.kill("device-00")
    assert not psutil.pid_exists(pid)
    assert host.news({}).codes == {"device-00": -signal.SIGKILL}


def test_a_node_without_the_data_folder_looks_in_its_own(host: NodeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPRUNESHARE_DATA", "/node/data")
    launched: list[Path] = []
    monkeypatch.setattr(host._devices, "launch", lambda task, data, split: launched.append(data))
    host.launch("task", "/head/data", "")
    host.launch("task", str(host.folder), "")
    monkeypatch.delenv("FEDPRUNESHARE_DATA")
    host.launch("task", "/head/data", "")
    assert launched == [Path("/node/data"), host.folder, Path("/head/data")]


def test_a_broker_out_of_reach_is_named(host: NodeHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert host.reach([BrokerAddress("127.0.0.1", port)]) == ""
    assert host.reach([BrokerAddress("127.0.0.1", port)]).startswith(f"127.0.0.1:{port}: ")


def test_nothing_is_left_of_a_killed_host(tmp_path: Path) -> None:
    script = tmp_path / "zygote.py"
    script.write_text(ZYGOTE)
    holder = f"""
import sys, time, importlib.util
from functools import partial
from testbed.engines import ray_node
from testbed.devices import DeviceProcesses
spec = importlib.util.spec_from_file_location("here", {__file__!r})
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
ray_node.DeviceProcesses = partial(DeviceProcesses, zygote=(sys.executable, {str(script)!r}))
host = ray_node.NodeHost({str(tmp_path)!r})
host.launch("task", {str(tmp_path)!r}, "")
host.wait_ready()
print(host.folder, host.start(here.files("device-00")), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        assert (Path(folder) / "keys" / "device-00.json").exists()
    finally:
        process.kill()
        process.wait()
    until(lambda: not psutil.pid_exists(int(pid)))
    until(lambda: not Path(folder).exists())
