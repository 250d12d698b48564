"""Is a link what it was asked to be? Measured before a run, each way: delay and loss with few packets, rate with many.

The packets go over links made as those of the devices are, from namespace to namespace. They carry the time they were
sent at; the kernel notes when they arrive, so that a busy machine delays the measurement but not its result.
"""

from __future__ import annotations

import math
import select
import socket
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from fedpruneshare.errors import RunError
from firmware_configs.brokers.namespaces import call_in_network
from testbed.links.emulator import wander_step_s
from testbed.links.settings import LinkProfile

#: How far off a link may be.
TOLERANCE: Final = 0.10
#: A delay this much too long is the machine's, not the link's, in milliseconds.
_LEAST_MS: Final = 1.0
_ATTEMPTS: Final = 3
_HEADERS_BYTES: Final = 42  # Ethernet, IP and UDP
_SMALL_FRAME_BYTES: Final = 60
_LARGE_FRAME_BYTES: Final = 1514
_DELAY_PHASE_S: Final = 2.0
#: As long as that at most, where it takes more packets to tell a loss from none.
_LONGEST_DELAY_PHASE_S: Final = 6.0
#: With so many packets lost on average, losing none is further off than chance allows for (`allowed_loss`).
_TELLING_LOSSES: Final = 10.0
_RATE_PHASE_S: Final = 1.5
_MOST_PACKETS_S: Final = 500.0
_OVERLOAD: Final = 1.3
#: Who cannot send all packets in so many times their time, and that much more, is given up: no link here is so quick.
_LATE_FACTOR: Final = 3.0
_LATE_S: Final = 10.0
#: After so many packets at once it is time to look at what has arrived.
_AT_ONCE: Final = 64
_CONNECT_S: Final = 15.0
_STAMP: Final = struct.Struct("!Iq")
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class Probe:
    """A link to be measured: its profile's name and settings, the device's namespace and address."""

    name: str
    profile: LinkProfile
    namespace: str
    address: str


@dataclass(frozen=True)
class WayFound:
    """What was measured in one direction. `rate_bit_s` of whole Ethernet frames, None where there is no limit."""

    rate_bit_s: float | None
    delay_ms: float
    packets: int
    lost: int


@dataclass
class _Flow:
    """Packets of one size sent at an even pace in one direction, and when they arrived."""

    sender: socket.socket
    receiver: socket.socket
    frame_bytes: int = _SMALL_FRAME_BYTES
    gap_s: float = 0.0
    count: int = 0
    sent: int = 0
    #: (number, sent, arrived), the times in nanoseconds
    arrivals: list[tuple[int, int, int]] = field(default_factory=list)

    def plan(self, frame_bytes: int, gap_s: float, seconds: float) -> None:
        """Start anew."""
        self.frame_bytes, self.gap_s, self.count = frame_bytes, gap_s, max(2, math.ceil(seconds / gap_s))
        self.sent, self.arrivals = 0, []

    def send_due(self, now_s: float) -> None:
        for _ in range(_AT_ONCE):
            if self.sent >= self.count or self.sent * self.gap_s > now_s:
                return
            payload = _STAMP.pack(self.sent, time.time_ns()).ljust(self.frame_bytes - _HEADERS_BYTES, b"\0")
            try:
                self.sender.send(payload)
            except BlockingIOError:
                return
            self.sent += 1

    def take_arrived(self) -> bool:
        taken = len(self.arrivals)
        while True:
            try:
                data, notes, _, _ = self.receiver.recvmsg(2048, 64)
            except BlockingIOError:
                return len(self.arrivals) > taken
            number, sent_ns = _STAMP.unpack_from(data)
            for _, kind, value in notes:
                if kind == _SO_TIMESTAMPNS:
                    seconds, rest_ns = struct.unpack("=qq", value)
                    self.arrivals.append((number, sent_ns, seconds * 1_000_000_000 + rest_ns))


def measure(probes: Sequence[Probe], services: str, address: str) -> dict[str, tuple[WayFound, WayFound]]:
    """Measure links, all at once: name -> (up, down). `services`, `address`: the brokers' namespace and address."""
    with ExitStack() as stack:
        flows = {probe.name: _flows(stack, probe, services, address) for probe in probes}
        for probe in probes:
            for flow, rate_bit_s in zip(flows[probe.name], _rates(probe.profile), strict=True):
                flow.plan(_SMALL_FRAME_BYTES, *delay_pace(probe.profile, rate_bit_s))
        _run([flow for pair in flows.values() for flow in pair], _quiet_s(probes))
        delays = {name: [_delay(flow) for flow in pair] for name, pair in flows.items()}
        limited = []
        for probe in probes:
            for flow, rate_bit_s in zip(flows[probe.name], _rates(probe.profile), strict=True):
                if rate_bit_s > 0:
                    _plan_rate(flow, probe.profile, rate_bit_s)
                    limited.append(flow)
        _run(limited, _quiet_s(probes))
        return {name: _found(pair, delays[name], limited) for name, pair in flows.items()}


def _flows(stack: ExitStack, probe: Probe, services: str, address: str) -> tuple[_Flow, _Flow]:
    """A pair of sockets, one in each namespace, that send to each other: (up, down)."""

    def bound(where: str) -> socket.socket:
        handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        handle.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        handle.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        handle.setblocking(False)
        handle.bind((where, 0))
        return handle

    device = stack.enter_context(call_in_network(probe.namespace, lambda: bound(probe.address)))
    service = stack.enter_context(call_in_network(services, lambda: bound(address)))
    device.connect(service.getsockname())
    service.connect(device.getsockname())
    return _Flow(device, service), _Flow(service, device)


def _rates(profile: LinkProfile) -> tuple[float, float]:
    return profile.up_bit_s, profile.down_bit_s


def delay_pace(profile: LinkProfile, rate_bit_s: float) -> tuple[float, float]:
    """(seconds between small packets, seconds in all): at most half of the rate, and enough packets for the loss."""
    gap_s = max(1 / _MOST_PACKETS_S, 2 * _SMALL_FRAME_BYTES * 8 / (rate_bit_s or math.inf))
    chance = profile.loss_percent / 100
    enough_s = _TELLING_LOSSES * (1 - chance) / chance * gap_s + gap_s if chance else 0.0
    return gap_s, min(_LONGEST_DELAY_PHASE_S, max(_DELAY_PHASE_S, enough_s))


def _plan_rate(flow: _Flow, profile: LinkProfile, rate_bit_s: float) -> None:
    """More than the link carries, so that its own pace shows; longer where jitter blurs the first and last arrival."""
    seconds = max(_RATE_PHASE_S, 40 * profile.jitter_ms / 1000)
    frame_bytes = min(_LARGE_FRAME_BYTES, max(_SMALL_FRAME_BYTES, int(rate_bit_s * seconds / 8 / 60)))
    offered_bit_s = _OVERLOAD * rate_bit_s / (1 - profile.loss_percent / 100)
    flow.plan(frame_bytes, frame_bytes * 8 / offered_bit_s, seconds)


def _quiet_s(probes: Sequence[Probe]) -> float:
    """After how long without an arrival none is to be expected any more."""
    return 0.25 + 2 * max((probe.profile.delay_ms for probe in probes), default=0.0) / 1000


def _run(flows: list[_Flow], quiet_s: float) -> None:
    """Send everything on time and take what arrives, until all is sent and nothing has come for `quiet_s`.

    Where not even the sending keeps up, what was not sent counts as lost, and the rate is what arrived.
    """
    began_s = last_s = time.monotonic()
    give_up_s = _LATE_FACTOR * max((flow.count * flow.gap_s for flow in flows), default=0.0) + _LATE_S + quiet_s
    by_socket = {flow.receiver: flow for flow in flows}
    while flows:
        now_s = time.monotonic() - began_s
        if now_s > give_up_s:
            return
        for flow in flows:
            flow.send_due(now_s)
        waiting = [flow for flow in flows if flow.sent < flow.count]
        if waiting:
            last_s = time.monotonic()
        elif time.monotonic() - last_s > quiet_s:
            return
        wait_s = min((flow.sent * flow.gap_s for flow in waiting), default=math.inf) - now_s
        ready, _, _ = select.select(list(by_socket), [], [], min(0.05, max(0.0, wait_s)))
        if any([by_socket[handle].take_arrived() for handle in ready]):
            last_s = time.monotonic()


def _delay(flow: _Flow) -> tuple[float, int, int]:
    """(median delay in ms, packets, lost)."""
    delays_ns = [arrived_ns - sent_ns for _, sent_ns, arrived_ns in flow.arrivals]
    lost = flow.count - len({number for number, _, _ in flow.arrivals})
    return statistics.median(delays_ns) / 1e6 if delays_ns else math.inf, flow.count, lost


def _found(
    pair: tuple[_Flow, _Flow], delays: Sequence[tuple[float, int, int]], limited: Sequence[_Flow]
) -> tuple[WayFound, WayFound]:
    up, down = (
        WayFound(_rate_bit_s(flow) if flow in limited else None, *delay)
        for flow, delay in zip(pair, delays, strict=True)
    )
    return up, down


def _rate_bit_s(flow: _Flow) -> float:
    """Of the arrivals after the first tenth, which a shaper may let through faster."""
    times = sorted(arrived_ns for _, _, arrived_ns in flow.arrivals)[len(flow.arrivals) // 10 :]
    if len(times) < 2 or times[-1] <= times[0]:
        return 0.0
    return (len(times) - 1) * flow.frame_bytes * 8e9 / (times[-1] - times[0])


# --------------------------------------------------------------------------- judging


def check(probes: Sequence[Probe], services: str, address: str) -> dict[str, Any]:
    """Measure all links, and those that are off again one by one: profile -> what was found, for the record.

    Raises `RunError` with everything that is still off after three attempts.
    """
    results: dict[str, Any] = {}
    wrong = {probe.name: (probe, [""]) for probe in probes}
    for attempt in range(1, _ATTEMPTS + 1):
        left = [probe for probe, _ in wrong.values()]
        for group in [left] if attempt == 1 else [[probe] for probe in left]:
            found = measure(group, services, address)
            for probe in group:
                results[probe.name] = _record(probe.profile, found[probe.name], attempt)
                wrong[probe.name] = (probe, judge(probe.profile, found[probe.name]))
        wrong = {name: entry for name, entry in wrong.items() if entry[1]}
        if not wrong:
            return results
    text = "; ".join(f"links.profiles.{name} {'; '.join(faults)}" for name, (_, faults) in wrong.items())
    raise RunError(f"the links are not what was asked, measured {_ATTEMPTS} times: {text}")


def _record(profile: LinkProfile, found: tuple[WayFound, WayFound], attempt: int) -> dict[str, Any]:
    record: dict[str, Any] = {"attempts": attempt}
    for way, rate_bit_s, one in zip(("up", "down"), _rates(profile), found, strict=True):
        record[way] = {
            "kbit_s": None if one.rate_bit_s is None else round(one.rate_bit_s / 1000, 1),
            "delay_ms": round(one.delay_ms, 3),
            "delay_expected_ms": round(expected_delay_ms(profile, rate_bit_s), 3),
            "packets": one.packets,
            "lost": one.lost,
            "loss_told_from_none": tells_loss(profile, one.packets),
        }
    return record


def congestion_control(probe: Probe, services: str, address: str) -> dict[str, str]:
    """The algorithm that each end of a TCP connection over a link uses. Raises `RunError` if there is none."""
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(call_in_network(services, lambda: socket.create_server((address, 0))))
            listener.settimeout(_CONNECT_S)
            where = listener.getsockname()
            device = stack.enter_context(
                call_in_network(probe.namespace, lambda: socket.create_connection(where, timeout=_CONNECT_S))
            )
            service = stack.enter_context(listener.accept()[0])
        except OSError as error:
            raise RunError(f"no connection over a link of profile {probe.name}: {error}, expected one") from None
        return {name: _algorithm(handle) for name, handle in (("device", device), ("services", service))}


def _algorithm(handle: socket.socket) -> str:
    return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def judge(profile: LinkProfile, found: tuple[WayFound, WayFound]) -> list[str]:
    """What is off by more than a tenth, each naming found and expected; nothing for a sound link."""
    ways = zip(("up", "down"), _rates(profile), found, strict=True)
    return [complaint for way, rate_bit_s, one in ways for complaint in _judge_way(profile, way, rate_bit_s, one)]


def _judge_way(profile: LinkProfile, way: str, rate_bit_s: float, found: WayFound) -> Iterator[str]:
    if rate_bit_s > 0 and abs((found.rate_bit_s or 0.0) - rate_bit_s) > TOLERANCE * rate_bit_s:
        yield f"{way}: found {(found.rate_bit_s or 0.0) / 1000:.4g} kbit/s, expected {rate_bit_s / 1000:.4g}"
    expected_ms, allowed_ms = expected_delay_ms(profile, rate_bit_s), allowed_delay_ms(profile, rate_bit_s)
    if not abs(found.delay_ms - expected_ms) <= allowed_ms:
        yield f"{way}: found a delay of {found.delay_ms:.4g} ms, expected {expected_ms:.4g} within {allowed_ms:.2g}"
    lost, allowed = profile.loss_percent / 100 * found.packets, allowed_loss(profile, found.packets)
    if abs(found.lost - lost) > allowed:
        expected = f"expected {lost:.1f} within {allowed:.1f}"
        yield f"{way}: found {found.lost} of {found.packets} packets lost, {expected}"


def expected_delay_ms(profile: LinkProfile, rate_bit_s: float) -> float:
    """Of a small packet that waits for no other."""
    return profile.delay_ms + (1000 * _SMALL_FRAME_BYTES * 8 / rate_bit_s if rate_bit_s > 0 else 0.0)


def allowed_delay_ms(profile: LinkProfile, rate_bit_s: float) -> float:
    """A tenth, or what jitter leaves open in so short a time (four standard deviations), a millisecond at least.

    HTB, which makes rates alone, lets a small packet through at once: there the time it takes at the link's rate is
    allowed on top.
    """
    levels = _DELAY_PHASE_S / wander_step_s(profile.jitter_ms / 1000)
    blur_ms = 4 * profile.jitter_ms / math.sqrt(3 * max(1.0, levels))
    sending_ms = expected_delay_ms(profile, rate_bit_s) - profile.delay_ms
    allowed_ms = max(TOLERANCE * expected_delay_ms(profile, rate_bit_s), blur_ms, _LEAST_MS)
    return allowed_ms if profile.has_path else allowed_ms + sending_ms


def allowed_loss(profile: LinkProfile, packets: int) -> float:
    """Packets: a tenth of those expected or three standard deviations of their number, two in a thousand at least."""
    chance = profile.loss_percent / 100
    return max(TOLERANCE * chance * packets, 3 * math.sqrt(packets * chance * (1 - chance)), 0.002 * packets)


def tells_loss(profile: LinkProfile, packets: int) -> bool:
    """Whether so many packets are enough for a link that loses none to be refused; true where none is to be lost."""
    return profile.loss_percent == 0 or profile.loss_percent / 100 * packets > allowed_loss(profile, packets)
