"""Interfaces as the kernel has them: TAP devices, offloads, addresses. Needs Linux and CAP_NET_ADMIN.

Everything here acts on the namespace the calling thread is in.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

MTU_BYTES: Final = 1500
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI: Final = 0x0002 | 0x1000
_SIOCETHTOOL: Final = 0x8946
#: Name -> (command that asks, command that sets).
_OFFLOADS: Final = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}
_NUD_PERMANENT: Final = 0x80


@dataclass(frozen=True)
class End:
    """One end of a point-to-point link: its interface, its address and its hardware address."""

    interface: str
    address: str
    hardware: str


def open_tap(name: str) -> int:
    """Make a TAP device and return the descriptor its frames are read from and written to, without blocking."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
    return descriptor


def set_up_end(own: End, peer: End, congestion_control: str) -> None:
    """Give an interface its address, and the one route to its peer, over which TCP uses `congestion_control`.

    The route names the algorithm because a namespace may not: there only those count that the host lets everybody
    use. The peer's hardware address is written down, so that no question about it is lost on the way.
    """
    with IPRoute() as route:
        index = route.link_lookup(ifname=own.interface)[0]
        route.link("set", index=index, address=own.hardware, mtu=MTU_BYTES)
        route.link("set", index=index, state="up")
        loopback = route.link_lookup(ifname="lo")[0]
        if own.address not in {item.get_attr("IFA_ADDRESS") for item in route.get_addr(index=loopback)}:
            route.addr("add", index=index, address=own.address, prefixlen=32)
        metrics = {"cc_algo": congestion_control}
        route.route("add", dst=f"{peer.address}/32", oif=index, scope=253, prefsrc=own.address, metrics=metrics)
        route.neigh("add", dst=peer.address, lladdr=peer.hardware, ifindex=index, state=_NUD_PERMANENT)


def quieten() -> None:
    """Bring loopback up and switch IPv6 off, whose advertisements would be counted as somebody's traffic."""
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
    for which in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if switch.exists():
            switch.write_text("1\n")


def offloads_off(interface: str) -> None:
    """Switch segmentation and receive offloads off: with them counters and losses see packets of up to 64 kB."""
    for _, command in _OFFLOADS.values():
        _ethtool(interface, command, 0)


def offloads(interface: str) -> dict[str, bool]:
    """Which offloads are on."""
    return {name: bool(_ethtool(interface, ask, 0)) for name, (ask, _) in _OFFLOADS.items()}


def _ethtool(interface: str, command: int, value: int) -> int:
    answer = array.array("I", [command, value])
    request = struct.pack("16sQ", interface.encode(), answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SIOCETHTOOL, request)
    return answer[1]
