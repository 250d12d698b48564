"""The table `[fleet.ray]` of a scenario: which Ray cluster runs the devices, and how many of them where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.errors import Fault, SettingsError
from firmware_configs.brokers import LOOPBACK, is_loopback

if TYPE_CHECKING:
    from testbed.scenario import Scenario

RAY: Final = "ray"
_MAX_NODES: Final = 1000


class RaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Heeded with `fleet.engine = "ray"` alone (docs/ray.md).

    address: of the cluster to join, `HOST:PORT` or `auto` for the one that runs on this machine; empty: one is started
    here for the run. nodes: how many of its nodes are used, those with most CPUs first, 0 for all; of a cluster started
    here, how many it has (0: one). devices_per_actor: at most so many devices share one parent process, 0 for all of a
    node. cpus_per_device: what is reserved for a device of the CPUs Ray knows of; 0: nothing, devices are spread
    by the CPUs of the nodes and share them.
    """

    address: str = ""
    nodes: Annotated[int, Meta(ge=0, le=_MAX_NODES)] = 0
    devices_per_actor: Annotated[int, Meta(ge=0)] = 0
    cpus_per_device: Annotated[float, Meta(ge=0, le=64)] = 0.0


def ray_faults(scenario: Scenario) -> Iterator[Fault]:
    """What the tables ask of a fleet on Ray that cannot be done, and what is said to no effect."""
    ray, brokers = scenario.fleet.ray, scenario.brokers
    if scenario.fleet.engine != RAY:
        if ray != RaySettings():
            yield Fault("fleet.ray", f"keys with fleet.engine = {scenario.fleet.engine!r}", f"fleet.engine = {RAY!r}")
        if not is_loopback(brokers.host):
            expected = f"a loopback address such as {LOOPBACK} with fleet.engine = {scenario.fleet.engine!r}"
            yield Fault("brokers.host", brokers.host, expected, "nothing on another machine connects to it")
        return
    if "://" in ray.address:
        hint = "start the run on a machine of the cluster, or join it there with `ray start`"
        yield Fault("fleet.ray.address", ray.address, "HOST:PORT, auto or nothing", hint)
    if not is_loopback(brokers.host) and brokers.kind == "embedded":
        hint = "the embedded broker protects nothing, so it is for this machine alone"
        yield Fault("brokers.kind", f'"embedded" at {brokers.host}', '"mosquitto" where other machines connect', hint)


@dataclass(frozen=True)
class Node:
    """A node of the cluster; `ident` is Ray's name for it."""

    ident: str
    host: str
    address: str
    cpus: float

    def __str__(self) -> str:
        return f"node {self.host} ({self.address})"


@dataclass(frozen=True)
class Post:
    """Devices that share a parent process on a node, and the CPUs reserved for them."""

    node: Node
    names: tuple[str, ...]
    cpus: float


def plan_posts(names: Sequence[str], nodes: Sequence[Node], settings: RaySettings) -> list[Post]:
    """Spread devices over nodes in proportion to their CPUs, neighbours in the list on different nodes.

    The same nodes in any order give the same posts. Raises `SettingsError` where the nodes are fewer than asked for or
    have too few CPUs.
    """
    chosen = sorted(nodes, key=lambda node: (-node.cpus, node.host, node.address, node.ident))
    chosen = chosen[: settings.nodes or None]
    if not chosen or len(chosen) < settings.nodes:
        raise SettingsError(f"fleet.ray.nodes: found {len(chosen)} nodes with CPUs, expected {settings.nodes or 1}")
    rooms = [_room(node, settings, len(names)) for node in chosen]
    if sum(rooms) < len(names):
        raise SettingsError(
            f"fleet.ray.cpus_per_device: found {settings.cpus_per_device:g} for each of {len(names)} devices, "
            f"expected at most what {', '.join(f'{node} with {node.cpus:g} CPUs' for node in chosen)} can give"
        )
    taken: list[list[str]] = [[] for _ in chosen]
    for name in names:
        free = [index for index, room in enumerate(rooms) if len(taken[index]) < room]
        index = min(free, key=lambda one: ((len(taken[one]) + 1) / chosen[one].cpus, one))
        taken[index].append(name)
    return [post for node, own in zip(chosen, taken, strict=True) for post in _posts(node, own, settings)]


def _room(node: Node, settings: RaySettings, most: int) -> int:
    """How many devices a node can take: each post reserves whole CPUs from one upwards, as Ray wants it."""
    if not settings.cpus_per_device:
        return most
    room = min(most, int(node.cpus / settings.cpus_per_device + 1e-9))
    while room and sum(post.cpus for post in _posts(node, ["?"] * room, settings)) > node.cpus:
        room -= 1
    return room


def _posts(node: Node, names: Sequence[str], settings: RaySettings) -> Iterator[Post]:
    size = settings.devices_per_actor or max(1, len(names))
    for first in range(0, len(names), size):
        own = tuple(names[first : first + size])
        cpus = len(own) * settings.cpus_per_device
        yield Post(node, own, float(ceil(cpus - 1e-9)) if cpus > 1 else cpus)
