"""Brokers in a network namespace of their own: reachable there only, on any address; loopback alone elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from firmware_configs.brokers import LOOPBACK, Broker, _accepts
from firmware_configs.brokers.embedded import embedded_broker
from firmware_configs.brokers.mosquitto import MosquittoSettings, find_mosquitto, mosquitto_broker
from firmware_configs.brokers.namespaces import call_in_network

OUTSIDE = "192.0.2.1"
KEEPER = f"""
from pyroute2 import IPRoute
from firmware_configs.brokers.namespaces import new_network
new_network()
with IPRoute() as route:
    route.link("set", index=1, state="up")
    route.addr("add", index=1, address="{OUTSIDE}", prefixlen=32)
print("up", flush=True)
input()
"""
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can make network namespaces"
)


def embedded(folder: Path, namespace: str) -> Broker:
    return embedded_broker(folder, host=OUTSIDE, namespace=namespace)


def mosquitto(folder: Path, namespace: str) -> Broker:
    return mosquitto_broker(MosquittoSettings(folder, namespace=namespace), host=OUTSIDE)


@pytest.fixture
def namespace() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "up\n"
        yield f"/proc/{keeper.pid}/ns/net"
        keeper.communicate("end\n", timeout=250)


@needs_root
@pytest.mark.parametrize("make", [embedded, pytest.param(mosquitto, marks=pytest.mark.mosquitto)])
def test_a_broker_listens_inside_its_namespace_only(
    make: Callable[[Path, str], Broker], namespace: str, tmp_path: Path
) -> None:
    if make is mosquitto and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with make(tmp_path, namespace) as broker:
        address = broker.address
        assert address.host == OUTSIDE
        assert os.stat(f"/proc/{broker.pid}/ns/net").st_ino == os.stat(namespace).st_ino
        assert call_in_network(namespace, lambda: _accepts(address))
        assert not _accepts(BrokerAddress(LOOPBACK, address.port))
        broker.restart()
        assert broker.address == address
        assert call_in_network(namespace, lambda: _accepts(address))


@pytest.mark.parametrize("make", [embedded, pytest.param(mosquitto, marks=pytest.mark.mosquitto)])
@pytest.mark.parametrize("namespace", ["", "/proc/self/ns/net"])
def test_without_one_nothing_but_loopback_is_served(
    make: Callable[[Path, str], Broker], namespace: str, tmp_path: Path
) -> None:
    if make is mosquitto and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if namespace and sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    with pytest.raises(SettingsError, match="loopback"):
        make(tmp_path, namespace)
