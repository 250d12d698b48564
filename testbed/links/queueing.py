"""The kernel's own shapers on the two middle ends of a link: netem, and HTB for rates alone.

A link of these back ends is two pairs of veth interfaces with a bridge between them, in a namespace of its own
("air"). What leaves the bridge towards the services is the uplink, towards the device the downlink. So a packet is
counted at the device's own interface before the shaper can drop it, as a radio counts what it sends.
"""

from __future__ import annotations

from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWQDISC, TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import sched_netem, tcmsg

from firmware_configs.brokers.namespaces import new_network
from testbed.links.emulator import QUEUE_PACKETS
from testbed.links.settings import LinkProfile

_ROOT: Final = "1:"
_ROOT_HANDLE: Final = 0x10000
_CLASS: Final = "1:10"
_CLASS_MINOR: Final = 0x10
_LEAF: Final = "10:"
_LARGEST_FRAME_BYTES: Final = 1514
#: How many bytes HTB may send at once above its rate: two frames, and what a tick of a slow timer needs.
_BURST_S: Final = 0.002


def netem_arguments(profile: LinkProfile, rate_bit_s: float) -> dict[str, Any]:
    """What `tc qdisc add … netem` is given: microseconds, percent, bits a second."""
    arguments: dict[str, Any] = {"limit": QUEUE_PACKETS, "delay": round(profile.delay_ms * 1000)}
    if profile.jitter_ms > 0:
        arguments["jitter"] = round(profile.jitter_ms * 1000)
    if profile.loss_percent > 0:
        arguments["loss"] = profile.loss_percent
    if rate_bit_s > 0:
        arguments["rate"] = f"{round(rate_bit_s)}bit"
    return arguments


def htb_arguments(rate_bit_s: float) -> dict[str, Any]:
    """What `tc class add … htb` is given."""
    burst = max(2 * _LARGEST_FRAME_BYTES, round(rate_bit_s / 8 * _BURST_S))
    return {"rate": f"{round(rate_bit_s)}bit", "burst": burst, "cburst": burst}


def netem_request(index: int, arguments: dict[str, Any]) -> tcmsg:
    """The message that adds netem to an interface. `IPRoute.tc` would send the rate twice, once as an estimator's."""
    message = tcmsg()
    message["header"]["type"] = RTM_NEWQDISC
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    message["index"], message["handle"], message["parent"] = index, _ROOT_HANDLE, TC_H_ROOT
    message["attrs"] = [("TCA_KIND", "netem"), ("TCA_OPTIONS", sched_netem.get_parameters(arguments))]
    return message


def shape_with_netem(route: IPRoute, index: int, profile: LinkProfile, rate_bit_s: float) -> None:
    """Shape what leaves an interface."""
    route.nlm_request_batch([netem_request(index, netem_arguments(profile, rate_bit_s))])


def shape_with_htb(route: IPRoute, index: int, profile: LinkProfile, rate_bit_s: float) -> None:
    """Limit the rate of what leaves an interface; its queue holds as many packets as the emulator's."""
    del profile  # its settings allow nothing beyond the rate
    if rate_bit_s <= 0:
        return
    route.tc("add", "htb", index, _ROOT, default=_CLASS_MINOR)
    route.tc("add-class", "htb", index, _CLASS, parent=_ROOT, **htb_arguments(rate_bit_s))
    route.tc("add", "pfifo", index, _LEAF, parent=_CLASS, limit=QUEUE_PACKETS)


def try_netem() -> str:
    """Why netem cannot be used here, empty if it can: tried on an interface of a namespace made for it.

    To be called in a thread of its own (`call_in_thread`), which then stays in that namespace.
    """
    new_network()
    with IPRoute() as route:
        try:
            shape_with_netem(route, route.link_lookup(ifname="lo")[0], LinkProfile(up_kbit_s=1.0), 1000.0)
        except NetlinkError as error:
            return f"the kernel refuses netem: {error.args[1]}"
    return ""
