"""What the run asks of Ray itself: joining a cluster, its nodes, and node hosts that are called over it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fedpruneshare.errors import FedPruneShareError, RunError, SettingsError
from testbed.engines.ray_node import NodeHost
from testbed.engines.ray_settings import Node, Post

_CONNECT_S: Final = 10.0
_GONE: Final = "expected fedpruneshare[testbed,ray] of the same version installed there, and room for one more process"


def require_ray() -> None:
    """Raises `SettingsError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise SettingsError('fleet.engine = "ray": Ray is not installed, expected it: pip install "fedpruneshare[ray]"')


class RemoteHost:
    """A `NodeHost` on another node. Its calls raise `RunError` or `TaskError` with the node's name."""

    def __init__(self, post: Post, base: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.post = post
        self.is_gone = False
        where = NodeAffinitySchedulingStrategy(post.node.ident, soft=False)
        actor: Any = ray.remote(NodeHost)
        self._actor: Any = actor.options(num_cpus=post.cpus, scheduling_strategy=where, max_restarts=0).remote(base)

    def begin(self, method: str, *arguments: Any) -> Any:
        """Call a method without waiting; `result` waits."""
        return getattr(self._actor, method).remote(*arguments)

    def result(self, call: Any, timeout_s: float) -> Any:
        """What a call returns. An error it raises on the node is raised here, in the same class."""
        import ray

        try:
            return ray.get(call, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise RunError(f"{self.post.node} did not answer in {timeout_s:g} s") from None
        except ray.exceptions.ActorUnavailableError as error:
            raise RunError(f"{self.post.node} cannot be reached now ({_in_short(error)})") from None
        except ray.exceptions.RayActorError as error:
            self.is_gone = True
            raise RunError(f"{self.post.node}: its devices' host is gone ({_in_short(error)}); {_GONE}") from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FedPruneShareError):
                raise type(cause)(f"{self.post.node}: {cause}") from None
            raise RunError(f"{self.post.node}: {_in_short(error)}") from None

    def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method and wait for what it returns."""
        return self.result(self.begin(method, *arguments), timeout_s)

    def end(self) -> None:
        """End the process on the node at once; what it left there is deleted by its cleaner."""
        import ray

        ray.kill(self._actor)


def call_all(hosts: Sequence[RemoteHost], method: str, *arguments: Any, timeout_s: float) -> list[Any]:
    """The same call on several hosts at the same time. Raises what the first of them raises."""
    calls = [host.begin(method, *arguments) for host in hosts]
    return [host.result(call, timeout_s) for host, call in zip(hosts, calls, strict=True)]


def _in_short(error: Exception) -> str:
    """The last line of Ray's message, which says what was raised; the lines above are its own stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --------------------------------------------------------------------------- joining


def connect(address: str, variables: Mapping[str, str]) -> None:
    """Join the cluster at HOST:PORT, or `auto`, with further environment variables meanwhile.

    Raises `SettingsError` where there is none or it will not have this process.
    """
    if address != "auto":
        _check_reachable(address)
    # A call after the end must not start a cluster of Ray's own making, as it otherwise does.
    with _environment({**variables, "RAY_ENABLE_AUTO_CONNECT": "0"}), _own_signal_handlers():
        import ray

        _read_variables_again()
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            reason = _in_short(error)
            raise SettingsError(
                f"fleet.ray.address: {address}: {reason}; expected a running cluster, and its token"
            ) from None


def disconnect() -> None:
    """Leave the cluster."""
    import ray

    ray.shutdown()


def version() -> str:
    """Of Ray."""
    import ray

    return str(ray.__version__)


def living_nodes() -> list[Node]:
    """The nodes of the cluster that have CPUs to offer."""
    import ray

    nodes = []
    for entry in ray.nodes():
        cpus = float(entry["Resources"].get("CPU", 0.0))
        if entry["Alive"] and cpus > 0:
            nodes.append(Node(entry["NodeID"], entry["NodeManagerHostname"], entry["NodeManagerAddress"], cpus))
    return nodes


def own_address() -> str:
    """Of this machine, as the cluster knows it."""
    import ray

    return str(ray.util.get_node_ip_address())


def _read_variables_again() -> None:
    """Ray reads how to authenticate when it is first imported, which may have been long ago."""
    with contextlib.suppress(ImportError, AttributeError):
        core: Any = importlib.import_module("ray._raylet")
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()


def _check_reachable(address: str) -> None:
    """Ray tries for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"fleet.ray.address: {address!r}, expected HOST:PORT, auto or nothing")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        raise SettingsError(f"fleet.ray.address: {address}: {error}, expected the head of a cluster there") from None


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, which here stops a run in good order."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)
