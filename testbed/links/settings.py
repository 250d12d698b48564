"""The `[links]` table of a scenario: what lies between each device and the brokers, and which back end makes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.errors import Fault
from fedpruneshare.party import LinkSettings

BackendName = Literal["none", "auto", "netem", "tap", "htb", "application"]
Amount = Annotated[float, Meta(ge=0)]

_KBIT: Final = 1000.0
#: What TCP, IP and Ethernet add to a chunk, rounded up.
_FRAMING: Final = 1.1


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of link. Everything off by default: a profile says only what it limits.

    Rates are of Ethernet frames (0: not limited), the delay is one way, the jitter is how far it wanders to either
    side of it, and the loss is of packets, each way. An outage begins every `outage_every_s` seconds on average, at
    times drawn from the seed, and loses what is sent for `outage_s`. With a duty cycle the radio is on for the first
    `duty_on_s` of each `duty_period_s`; what is sent meanwhile waits. `metered`: somebody pays by the byte.
    """

    up_kbit_s: Amount = 0.0
    down_kbit_s: Amount = 0.0
    delay_ms: Amount = 0.0
    jitter_ms: Amount = 0.0
    loss_percent: Annotated[float, Meta(ge=0, le=50)] = 0.0
    outage_every_s: Amount = 0.0
    outage_s: Amount = 0.0
    duty_period_s: Amount = 0.0
    duty_on_s: Amount = 0.0
    metered: bool = False

    @property
    def up_bit_s(self) -> float:
        """Bits a second from the device, 0 for no limit."""
        return self.up_kbit_s * _KBIT

    @property
    def down_bit_s(self) -> float:
        """Bits a second to the device, 0 for no limit."""
        return self.down_kbit_s * _KBIT

    @property
    def has_gaps(self) -> bool:
        """Whether there are times at which nothing passes."""
        return self.outage_every_s > 0 or self.duty_period_s > 0

    @property
    def has_path(self) -> bool:
        """Whether delay, jitter or loss is asked for."""
        return self.delay_ms > 0 or self.jitter_ms > 0 or self.loss_percent > 0

    def steady(self) -> LinkProfile:
        """The same without outages and duty cycle: what a self-test can measure in seconds."""
        return msgspec.structs.replace(self, outage_every_s=0.0, outage_s=0.0, duty_period_s=0.0, duty_on_s=0.0)

    def faults(self, path: str) -> Iterator[Fault]:
        """Checks between keys."""
        if self.jitter_ms > self.delay_ms:
            yield Fault(f"{path}.jitter_ms", f"{self.jitter_ms:g}", f"at most delay_ms = {self.delay_ms:g}")
        if (self.outage_every_s > 0) != (self.outage_s > 0):
            yield Fault(f"{path}.outage_s", f"{self.outage_s:g}", "outage_every_s and outage_s both, or neither")
        elif self.outage_s >= self.outage_every_s > 0:
            yield Fault(f"{path}.outage_s", f"{self.outage_s:g}", f"below outage_every_s = {self.outage_every_s:g}")
        if self.duty_period_s > 0 and not 0 < self.duty_on_s < self.duty_period_s:
            expected = f"above 0 and below duty_period_s = {self.duty_period_s:g}"
            yield Fault(f"{path}.duty_on_s", f"{self.duty_on_s:g}", expected)


#: A link without limits: of a device whose group names no profile.
FREE: Final = LinkProfile()


class LinkEmulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table itself (docs/links.md).

    `auto`: netem where the kernel has it and it does what is asked, else tap; without root, application. `self_test`
    measures each profile in use before the run and refuses one that is off by more than a tenth.
    """

    backend: BackendName = "none"
    congestion_control: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,15}$")] = "cubic"
    self_test: bool = True
    profiles: dict[str, LinkProfile] = {}

    def profile(self, name: str) -> LinkProfile:
        """A profile by name; the empty name is a link without limits."""
        return self.profiles[name] if name else FREE

    def faults(self, path: str) -> Iterator[Fault]:
        """What the chosen back end cannot make."""
        for name, profile in self.profiles.items():
            place = f"{path}.profiles.{name}"
            if self.backend == "htb" and (profile.has_path or profile.has_gaps):
                expected = "rates alone, for backend htb makes nothing else"
                yield Fault(place, "delay, jitter, loss, outages or a duty cycle", expected, "tap makes all of them")
            if self.backend == "netem" and profile.has_gaps:
                expected = "neither with backend netem"
                yield Fault(place, "outages or a duty cycle", expected, "tap makes them; auto takes it where needed")


def link_faults(emulation: LinkEmulation, groups: Sequence[str], engine: str) -> Iterator[Fault]:
    """What other tables make wrong. `groups`: the profile each device group names; `engine`: what runs the devices."""
    if emulation.backend != "none" and engine != "process":
        expected = "none, for only devices with a process each have a link each"
        yield Fault("links.backend", f"{emulation.backend!r} with fleet.engine = {engine!r}", expected)
    for index, name in enumerate(groups):
        if name and name not in emulation.profiles:
            known = ", ".join(emulation.profiles) or "none is there"
            near = difflib.get_close_matches(name, emulation.profiles, n=1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            yield Fault(f"fleet.groups.{index}.link", f"the text {name!r}", f"one of links.profiles: {known}", hint)


def patience(profile: LinkProfile, base: LinkSettings, under_way_bytes: int) -> LinkSettings:
    """How long a device waits for its broker: as `base`, and longer where its link needs it.

    `under_way_bytes`: what the device hands to all brokers together before it waits for an answer. It may all queue
    ahead of a message or a sign of life, which a broker waits for in vain otherwise, and cuts the connection.
    """
    slowest = min((rate for rate in (profile.up_bit_s, profile.down_bit_s) if rate > 0), default=0.0)
    queue_s = under_way_bytes * _FRAMING * 8 / slowest if slowest else 0.0
    gap_s = 2 * profile.outage_s + max(0.0, profile.duty_period_s - profile.duty_on_s)
    if profile.duty_period_s > 0:
        queue_s *= profile.duty_period_s / profile.duty_on_s
    wait_s = 4 * profile.delay_ms / 1000 + gap_s
    return msgspec.structs.replace(
        base,
        keepalive_s=min(3600, max(base.keepalive_s, round(2 * (queue_s + wait_s)))),
        connect_timeout_s=max(base.connect_timeout_s, queue_s + 4 * wait_s),
        publish_timeout_s=max(base.publish_timeout_s, 2 * queue_s + 4 * wait_s),
    )
