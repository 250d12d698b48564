"""The process that holds a run's namespaces and carries its links: `python -m testbed.links.keeper`.

The namespaces have no names: they live as long as this process holds a descriptor of them or a process is in one, so
nothing of them is left after the run, however it ends. Others enter them by `/proc/PID/fd/N`.

One JSON line comes on standard input: {"backend": "tap" | "netem" | "htb", "congestion_control": …,
"links": {NAME: {"profile": {…}, "seed": …}}}. The answer is {"ready": {"services": N, "links": {NAME: [N, ADDRESS]},
"offloads": {…}, "priority": …}} or {"error": …}. Each further line is answered with what became of packets, where this
process carried them: {NAME: {"up": {…}, "down": {…}}}. It ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from pyroute2 import IPRoute, NetlinkError

from fedpruneshare.errors import SettingsError
from firmware_configs.brokers.namespaces import enter_network, new_network
from testbed.links import interfaces, queueing
from testbed.links.emulator import Direction, both_ways
from testbed.links.interfaces import End
from testbed.links.settings import LinkProfile
from testbed.links.tap import Emulator

#: Where every broker of a fleet listens: one address that each device reaches by a link of its own.
SERVICES_ADDRESS: Final = "10.77.0.1"
DEVICE_INTERFACE: Final = "radio0"
_REAL_TIME_PRIORITY: Final = 1
_NICE: Final = -15
Shape = Callable[[IPRoute, int, LinkProfile, float], None]
_SHAPERS: Final[dict[str, Shape]] = {"netem": queueing.shape_with_netem, "htb": queueing.shape_with_htb}


@dataclass(frozen=True)
class LinkOrder:
    """One link to make: its number, its profile and the seed of its losses, jitter and outages."""

    number: int
    profile: LinkProfile
    seed: int

    @property
    def device_end(self) -> End:
        """The end in the device's namespace."""
        high, low = divmod(self.number, 250)
        return End(
            DEVICE_INTERFACE,
            f"10.77.{1 + high}.{1 + low}",
            f"02:77:00:00:{self.number >> 8:02x}:{self.number & 255:02x}",
        )

    @property
    def services_end(self) -> End:
        """The end where the brokers are."""
        hardware = f"02:77:01:00:{self.number >> 8:02x}:{self.number & 255:02x}"
        return End(f"link{self.number}", SERVICES_ADDRESS, hardware)


class Keeper:
    """Makes the namespaces and links of one run."""

    def __init__(self, backend: str, congestion_control: str) -> None:
        self._backend, self._congestion_control = backend, congestion_control
        self.emulator = Emulator()
        self.ways: dict[str, tuple[Direction, Direction]] = {}
        self.services = self._new_namespace()
        self._enter(self.services)
        with IPRoute() as route:
            loopback = route.link_lookup(ifname="lo")[0]
            route.addr("add", index=loopback, address=SERVICES_ADDRESS, prefixlen=32)
        self._air = self._new_namespace() if backend in _SHAPERS else -1

    def add(self, name: str, order: LinkOrder) -> int:
        """Make one link and the namespace of its device; the descriptor of that."""
        device = self._new_namespace()
        if self._backend in _SHAPERS:
            self._join_by_bridge(order, device)
        else:
            self._join_by_tap(name, order, device)
        for namespace, own, peer in (
            (device, order.device_end, order.services_end),
            (self.services, order.services_end, order.device_end),
        ):
            self._enter(namespace)
            interfaces.offloads_off(own.interface)
            interfaces.set_up_end(own, peer, self._congestion_control)
        return device

    def offloads(self, device: int) -> dict[str, bool]:
        """Which offloads are on at a device's end."""
        self._enter(device)
        return interfaces.offloads(DEVICE_INTERFACE)

    def _new_namespace(self) -> int:
        new_network()
        interfaces.quieten()
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _enter(self, namespace: int) -> None:
        enter_network(f"/proc/self/fd/{namespace}")

    def _join_by_tap(self, name: str, order: LinkOrder, device: int) -> None:
        self._enter(device)
        near = interfaces.open_tap(order.device_end.interface)
        self._enter(self.services)
        far = interfaces.open_tap(order.services_end.interface)
        up, down = both_ways(order.profile, order.seed)
        self.emulator.connect(near, up, far)
        self.emulator.connect(far, down, near)
        self.ways[name] = (up, down)

    def _join_by_bridge(self, order: LinkOrder, device: int) -> None:
        """Device ═ veth ═ bridge ═ veth ═ services; the bridge's two ports are shaped (`testbed.links.queueing`)."""
        self._enter(self._air)
        to_device, to_services, bridge = (f"{kind}{order.number}" for kind in ("d", "s", "b"))
        with IPRoute() as route:
            for own, end, namespace in (
                (to_device, order.device_end, device),
                (to_services, order.services_end, self.services),
            ):
                peer = {"ifname": end.interface, "net_ns_fd": namespace}
                route.link("add", ifname=own, kind="veth", peer=peer)
            route.link("add", ifname=bridge, kind="bridge")
            across = route.link_lookup(ifname=bridge)[0]
            route.link("set", index=across, state="up")
            shape, profile = _SHAPERS[self._backend], order.profile
            for own, rate_bit_s in ((to_device, profile.down_bit_s), (to_services, profile.up_bit_s)):
                index = route.link_lookup(ifname=own)[0]
                interfaces.offloads_off(own)
                route.link("set", index=index, master=across, mtu=interfaces.MTU_BYTES, state="up")
                shape(route, index, profile, rate_bit_s)

    def run(self) -> None:
        """Carry frames and answer until the end of input."""
        self.emulator.run(0, self._obey)

    def _obey(self, data: bytes) -> None:
        for _ in range(data.count(b"\n")):
            _say({name: {"up": up.counts, "down": down.counts} for name, (up, down) in self.ways.items()})


def build(order: dict[str, Any]) -> tuple[Keeper, dict[str, Any]]:
    """Make everything an order asks for; the keeper and what is said of it. Raises `OSError` or `NetlinkError`."""
    keeper = Keeper(order["backend"], order["congestion_control"])
    links: dict[str, tuple[int, str]] = {}
    found: dict[str, bool] = {}
    for number, (name, link) in enumerate(order["links"].items()):
        made = LinkOrder(number, msgspec.convert(link["profile"], LinkProfile), link["seed"])
        links[name] = (keeper.add(name, made), made.device_end.address)
        for which, is_on in keeper.offloads(links[name][0]).items():
            found[which] = found.get(which, False) or is_on
    return keeper, {"services": keeper.services, "links": links, "offloads": found, "priority": _hurry()}


def _hurry() -> str:
    """Come before the fleet where the machine is crowded: a link that waits for a processor is a slower link."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_REAL_TIME_PRIORITY))
        return "real time"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def main() -> int:
    """Read the order, build, keep; the exit code."""
    try:
        keeper, ready = build(json.loads(sys.stdin.buffer.readline()))
    except (OSError, NetlinkError, SettingsError) as error:
        _say({"error": f"{type(error).__name__}: {error}"})
        return 2
    _say({"ready": ready})
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
