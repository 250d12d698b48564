"""Both brokers as processes: started, stopped, crashed, orphaned; and what their configuration refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.topics import AccessRule
from firmware_configs.brokers import Broker, is_loopback
from firmware_configs.brokers import mosquitto as mosquitto_module
from firmware_configs.brokers.embedded import NOTICE, embedded_broker, render_embedded
from firmware_configs.brokers.mosquitto import (
    CONTROL,
    BrokerTls,
    MosquittoSettings,
    find_mosquitto,
    mosquitto_broker,
    render_access_list,
    render_mosquitto,
    shipped_settings,
)

Make = Callable[..., Broker]
LAUNCHER = """
import sys, time
from pathlib import Path
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, mosquitto_broker
folder = Path(sys.argv[2])
broker = embedded_broker(folder) if sys.argv[1] == "iotcore" else mosquitto_broker(MosquittoSettings(folder))
broker.start()
print('pid', broker.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["iotcore", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, tmp_path: Path) -> Iterator[Make]:
    made: list[Broker] = []

    def build(name: str = "broker", port: int | None = None) -> Broker:
        folder = tmp_path / name
        if kind == "iotcore":
            made.append(embedded_broker(folder, port=port))
        else:
            made.append(mosquitto_broker(MosquittoSettings(folder), port=port))
        return made[-1]

    yield build
    for broker in made:
        broker.stop()


def accepts(address: BrokerAddress) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address.host, address.port)) == 0


def wait_gone(pid: int) -> bool:
    give_up_s = time.monotonic() + 60
    while time.monotonic() < give_up_s:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_start_stop_and_again_on_the_same_port(make: Make) -> None:
    broker = make()
    with pytest.raises(RuntimeError, match="no port"):
        _ = broker.address
    with broker:
        address, first = broker.address, broker.pid
        broker.start()
        assert broker.pid == first
        assert address.host == "127.0.0.1" and accepts(address)
        broker.restart()
        assert broker.address == address and broker.pid != first and accepts(address)
    assert not broker.is_running and not accepts(address)
    assert wait_gone(first)
    broker.stop()
    with pytest.raises(RuntimeError, match="running"):
        _ = broker.pid


def test_killed_by_its_pid_and_started_again(make: Make) -> None:
    broker = make()
    broker.start()
    address = broker.address
    assert broker.exit_code is None
    os.kill(broker.pid, signal.SIGKILL)
    give_up_s = time.monotonic() + 60
    while broker.is_running and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not broker.is_running
    assert broker.exit_code is not None
    broker.start()
    assert broker.address == address and accepts(address)
    broker.kill()
    assert not accepts(address)
    assert broker.exit_code is None  # ended, and not by itself


def test_its_port_is_nobody_elses_while_it_is_down(make: Make) -> None:
    """Until then a listener of somebody else could come to where everybody looks for it."""
    broker = make()
    broker.start()
    place = (broker.address.host, broker.address.port)
    broker.kill()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(place)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(place)
    broker.restart()
    assert accepts(broker.address)
    broker.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger on it
        other.bind(place)
        other.listen()


def test_port_that_is_taken(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        broker = make(port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match="expected a free port"):
            broker.start()
        assert not broker.is_running


def test_broker_that_cannot_run_says_why(make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = make()
    other = {"iotcore": ["embedded", "/nowhere.toml"], "mosquitto": ["program", sys.executable, "-c", "1/0"]}
    monkeypatch.setattr(broker, "_render", lambda _address: other[kind])
    with pytest.raises(SettingsError, match=r"(?s)broker ended with code \d+: .*(nowhere|ZeroDivision)"):
        broker.start()
    assert not broker.is_running


def test_two_at_once_have_two_ports(make: Make) -> None:
    with make("one") as one, make("two") as two:
        assert one.address.port != two.address.port


def test_does_not_outlive_a_killed_launcher(kind: str, tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, kind, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd(), text=True
    )
    assert launcher.stdout is not None
    pid = int(next(line for line in launcher.stdout if line.startswith("pid ")).split()[1])
    try:
        assert psutil.pid_exists(pid)
        launcher.kill()
        launcher.wait(60)
        assert wait_gone(pid)
    finally:
        launcher.kill()
        launcher.stdout.close()
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


# --------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "broker.example", ""])
def test_unprotected_brokers_refuse_any_address_but_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a loopback address"):
        embedded_broker(tmp_path, host=host)
    with pytest.raises(SettingsError, match="loopback"):
        render_mosquitto(BrokerAddress(host, 1883), MosquittoSettings(tmp_path))


def test_loopback_addresses() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("127.8.8.8") and is_loopback("::1")
    assert not is_loopback("localhost")


def test_embedded_configuration() -> None:
    text = render_embedded(BrokerAddress("127.0.0.1", 4711), segments=7, connections=99)
    for line in (
        'listen = "127.0.0.1:4711"',
        "max_payload_size = 1048576",
        "max_segment_size = 8388608",
        "max_segment_count = 7",
        "max_connections = 99",
        "dynamic_filters = true",
    ):
        assert line in text
    assert "v4" not in text and "$" not in text
    assert render_embedded(BrokerAddress("::1", 1), segments=2, connections=1).count('"[::1]:1"') == 1


def test_embedded_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with embedded_broker(tmp_path):
        pass
    assert NOTICE in capsys.readouterr().out
    assert "no access list, no client certificates, nothing on disk" in NOTICE


def test_mosquitto_configuration(tmp_path: Path) -> None:
    text = render_mosquitto(BrokerAddress("127.0.0.1", 4711), MosquittoSettings(tmp_path, queued_mib=3))
    for line in (
        "listener 4711 127.0.0.1",
        "allow_anonymous true",
        "max_packet_size 1048576",
        "max_inflight_messages 20",
        "max_queued_messages 100000",
        "max_queued_bytes 3145728",
        "set_tcp_nodelay true",
        "persistence true",
        "autosave_interval 30",
        "persistent_client_expiration 7d",
    ):
        assert line in text.splitlines()
    assert "acl_file" not in text and "\nmessage_size_limit" not in text


def test_mosquitto_for_others_speaks_tls(tmp_path: Path) -> None:
    settings = MosquittoSettings(tmp_path, allow_anonymous=False, access_list="user a\n")
    with pytest.raises(SettingsError, match=r"clients without TLS at 0\.0\.0\.0"):
        render_mosquitto(BrokerAddress("0.0.0.0", 1883), settings)
    text = render_mosquitto(BrokerAddress("127.0.0.1", 1883), settings)
    assert "allow_anonymous false" in text
    assert f"acl_file {tmp_path / 'access.acl'}" in text


def test_access_list_has_one_block_a_user() -> None:
    rules = [AccessRule("d1", "write", "up/d1"), AccessRule("agg", "read", "up/+"), AccessRule("d1", "read", "ack/d1")]
    assert render_access_list(rules) == "user d1\ntopic write up/d1\ntopic read ack/d1\n\nuser agg\ntopic read up/+\n"


def test_mosquitto_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosquitto_module, "find_mosquitto", lambda: None)
    with pytest.raises(SettingsError, match="expected it installed"):
        mosquitto_broker(MosquittoSettings(tmp_path))


@pytest.mark.mosquitto
def test_mosquitto_is_found_outside_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_mosquitto()
    assert found is not None
    if found.parent in (Path("/usr/sbin"), Path("/usr/local/sbin")):
        monkeypatch.setenv("PATH", "/nowhere")
        assert find_mosquitto() == found


@pytest.mark.mosquitto
def test_mosquitto_takes_its_configuration_without_a_word(tmp_path: Path) -> None:
    settings = MosquittoSettings(tmp_path, access_list="topic readwrite #\n")
    with mosquitto_broker(settings):
        pass
    complaints = [line for line in (tmp_path / "broker.log").read_text().splitlines() if "root" not in line]
    assert complaints == []


# --------------------------------------------------------------------------- as it ships


@dataclass(frozen=True)
class Names:
    federation: str = "lab"
    coordinator_id: str = "head"
    aggregators: tuple[str, ...] = ("north", "south")
    devices: tuple[str, ...] = ("pi-01", "pi-02")


def shipped(tmp_path: Path, broker: str, host: str = "0.0.0.0") -> tuple[list[str], MosquittoSettings]:
    files = BrokerTls(*(Path("/etc/fps") / name for name in ("ca.pem", "server.pem", "server.key", "crl.pem")))
    settings = shipped_settings(tmp_path, Names(), broker, files)
    return render_mosquitto(BrokerAddress(host, 8883, tls=True), settings).splitlines(), settings


def test_shipped_brokers_take_certificates_alone_and_keep_their_limits(tmp_path: Path) -> None:
    for broker in (CONTROL, "north"):
        lines, _ = shipped(tmp_path, broker)
        for line in (
            "listener 8883 0.0.0.0",
            "allow_anonymous false",
            "tls_version tlsv1.3",
            "require_certificate true",
            "use_subject_as_username true",
            "use_username_as_clientid true",
            f"acl_file {tmp_path}/access.acl",
            "cafile /etc/fps/ca.pem",
            "certfile /etc/fps/server.pem",
            "keyfile /etc/fps/server.key",
            "crlfile /etc/fps/crl.pem",
            "max_packet_size 1048576",
            "max_queued_messages 100000",
            "memory_limit 1073741824",
            "max_keepalive 3600",
            "sys_interval 0",
            "max_qos 1",
        ):
            assert line in lines, line
        assert len([line for line in lines if line.startswith("listener")]) == 1
        assert not any("$" in line for line in lines)


def test_shipped_control_broker_keeps_what_is_retained_and_the_others_nothing(tmp_path: Path) -> None:
    control, own = shipped(tmp_path, CONTROL)[0], shipped(tmp_path, "north")[0]
    assert {"retain_available true", "persistence true", "autosave_on_changes true"} <= set(control)
    assert {"retain_available false", "persistence false"} <= set(own)


def test_who_is_on_the_list_of_a_shipped_broker(tmp_path: Path) -> None:
    def users(broker: str) -> set[str]:
        text = shipped(tmp_path, broker)[1].access_list or ""
        return {line.removeprefix("user ") for line in text.splitlines() if line.startswith("user ")}

    devices = {"CN=pi-01,OU=device,O=lab", "CN=pi-02,OU=device,O=lab"}
    aggregators = {"CN=north,OU=aggregator,O=lab", "CN=south,OU=aggregator,O=lab"}
    assert users("north") == devices | {"CN=north,OU=aggregator,O=lab"}
    assert users(CONTROL) == devices | aggregators | {"CN=head,OU=coordinator,O=lab"}
    with pytest.raises(SettingsError, match="no broker 'west', expected one of control, north, south"):
        users("west")


def test_a_broker_with_tls_needs_a_list_and_no_anonymous_clients(tmp_path: Path) -> None:
    _, settings = shipped(tmp_path, CONTROL)
    for wrong in ({"allow_anonymous": True}, {"access_list": None}, {"access_list": " \n"}):
        with pytest.raises(SettingsError, match="needs an access list"):
            render_mosquitto(BrokerAddress("0.0.0.0", 8883, tls=True), replace(settings, **wrong))
