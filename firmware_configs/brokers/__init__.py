"""Brokers this project configures and, for tests, demos and the testbed, starts as processes of their own.

`embedded.embedded_broker` (pip alone, loopback only) and `mosquitto.mosquitto_broker` (everything real) both give a
`Broker`. The calls block until it is up or gone; a broker never outlives the process that started it.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedpruneshare.errors import SettingsError
from fedpruneshare.link import BrokerAddress
from firmware_configs.brokers.namespaces import call_in_network, command_in_network

#: Writes the configuration for an address and returns the arguments of `child.py` (what to run, with what).
Render = Callable[[BrokerAddress], list[str]]

LOOPBACK: Final = "127.0.0.1"
_CHILD: Final = Path(__file__).with_name("child.py")
#: Bounds for what hangs: a broker that fails ends by itself, and a crowded machine may take a while to start one.
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.01


class Broker:
    """A broker process: started and stopped by this handle, its port its own from the first start until `stop`.

    With `port` None the kernel names a free one at the first start. What the process prints goes to `broker.log` in
    `folder`. With `namespace` it runs in that network namespace (`firmware_configs.brokers.namespaces`) and listens
    there. As a context manager it starts on entry and stops on exit.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        render: Render,
        host: str = LOOPBACK,
        port: int | None = None,
        namespace: str = "",
    ) -> None:
        self._name = name
        self._folder = folder
        self._render = render
        self._host = host
        self._port = port
        self._namespace = namespace
        self.speaks_tls = False
        """Whether its address says so; the factory that renders the configuration sets it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._holder: socket.socket | None = None

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self.is_running and self._process else "stopped"
        return f"Broker({self._name} at {self._host}:{self._port}, {state})"

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> BrokerAddress:
        """Where it listens. A `RuntimeError` before the first start, unless the port was given."""
        if self._port is None:
            raise RuntimeError(f"{self!r} has no port before its first start")
        return BrokerAddress(self._host, self._port, self.speaks_tls)

    @property
    def pid(self) -> int:
        """Its process id. A `RuntimeError` while it does not run."""
        if self._process is None or not self.is_running:
            raise RuntimeError(f"{self!r}, expected a running one")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How its process ended by itself (negative: by which signal); None while it lives, and where it was ended."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it and return when its listener accepts. Nothing happens if it runs.

        Raises `SettingsError` if its port is taken, or with the end of its log if it ends or does not accept within a
        minute.
        """
        if self.is_running:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._holder is None:
            self._holder = _holder(self._host, self._port or 0, self._namespace)
        port: int = self._holder.getsockname()[1]
        address = BrokerAddress(self._host, port, self.speaks_tls)
        self._process = self._launch(address)
        try:
            self._wait_ready(self._process, address)
        except SettingsError:
            self._end(signal.SIGKILL)
            self._let_go()
            raise
        self._port = port

    def stop(self) -> None:
        """End it with SIGTERM (Mosquitto saves its data), after a while with SIGKILL, and let go of its port.

        Idempotent.
        """
        self._end(signal.SIGTERM)
        self._let_go()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; nobody else is given its port. Idempotent."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it with SIGTERM if it runs, and start it on the same port with the data it left on disk."""
        self._end(signal.SIGTERM)
        self.start()

    def _let_go(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def _launch(self, address: BrokerAddress) -> subprocess.Popen[bytes]:
        child = [sys.executable, "-P", str(_CHILD), str(os.getpid()), *self._render(address)]
        command = command_in_network(self._namespace, child)
        with (self._folder / "broker.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches the launcher, which stops its brokers last.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )

    def _wait_ready(self, process: subprocess.Popen[bytes], address: BrokerAddress) -> None:
        give_up_s = time.monotonic() + _START_S
        while time.monotonic() < give_up_s:
            accepts = call_in_network(self._namespace, lambda: _accepts(address))
            if process.poll() is not None:
                raise SettingsError(f"{self._name} broker ended with code {process.returncode}: {self._log_end()}")
            if accepts:
                return
            time.sleep(_POLL_S)
        raise SettingsError(f"{self._name} broker does not accept at {address} after {_START_S} s: {self._log_end()}")

    def _log_end(self) -> str:
        return (self._folder / "broker.log").read_text(errors="replace")[-1000:].strip() or "(nothing logged)"

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)


def is_loopback(host: str) -> bool:
    """Whether a host is an address of this machine only. A name is not: what it means is decided elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _holder(host: str, port: int, namespace: str) -> socket.socket:
    """A socket bound to a port, a free one for 0, that never listens.

    As long as it is open nobody else is given the port, while a broker, which sets SO_REUSEADDR too, may bind it, also
    again after a crash. Without that somebody else's listener could be taken for the broker's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = call_in_network(namespace, lambda: socket.socket(family))
    try:
        if port:  # connections of a broker before may still linger on it
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        holder.close()
        raise SettingsError(f"broker at {host}:{port}: {error}, expected a free port of this machine") from None
    return holder


def _accepts(address: BrokerAddress) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout=1.0):
            return True
    except OSError:
        return False


__all__ = ["LOOPBACK", "Broker", "Render", "is_loopback"]
