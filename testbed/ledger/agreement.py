"""The ledgers of a run against each other: a run whose books disagree has no figures (docs/measuring.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedpruneshare.errors import RunError
from fedpruneshare.topics import TABLE, Role, Topics
from testbed.ledger.framing import framing_bound
from testbed.ledger.rounds import BytesDown, BytesUp, DeviceRound, InterfaceBytes, LinkCounts, added
from testbed.links.settings import LinkProfile

#: How many disagreements a message names.
_NAMED: Final = 5
#: Below this rate, packets queue for so long that TCP takes them for lost and repeats them.
_BRISK_KBIT_S: Final = 5000.0
#: The longest number in a topic: segments and chunks.
_LONGEST_LEVEL: Final = "65535"


@dataclass(frozen=True)
class Wire:
    """What is known of a device's wire. `is_quiet`: nothing on it is lost, held back or slow enough to make TCP repeat.

    `links`: connections it holds. `topic_bytes`: its longest topic. `seconds`: how long it was connected at most.
    `is_cut`: the device was killed, perhaps between what its links counted and what it wrote down.
    """

    links: int
    topic_bytes: int
    seconds: float
    is_quiet: bool
    is_cut: bool = False


@dataclass(frozen=True)
class Agreement:
    """What the books say of each other. `faults` name device, found and expected; `conditions` go to the summary."""

    faults: tuple[str, ...]
    conditions: dict[str, Any]

    def check(self) -> None:
        """Raises `RunError` where a ledger disagrees."""
        if self.faults:
            more = len(self.faults) - _NAMED
            named = "\n".join(self.faults[:_NAMED]) + (f"\nand {more} more" if more > 0 else "")
            raise RunError(f"the ledgers of this run disagree, so that its bytes mean nothing:\n{named}")


def is_quiet(profile: LinkProfile) -> bool:
    """Whether TCP has no reason to repeat anything on such a link."""
    rates = [rate for rate in (profile.up_kbit_s, profile.down_kbit_s) if rate]
    return not profile.has_gaps and profile.loss_percent == 0 and all(rate >= _BRISK_KBIT_S for rate in rates)


def longest_topic(federation: str, device: str) -> int:
    """Bytes of the longest topic a device writes or reads."""
    topics = Topics(federation)
    own = [channel for channel in TABLE if channel.writer is Role.DEVICE or Role.DEVICE in channel.readers]
    levels = {channel.name: _levels(channel.pattern, device) for channel in own}
    return max(len(topics.name(channel.name, *levels[channel.name]).encode()) for channel in own)


def _levels(pattern: str, device: str) -> list[str]:
    return [device if part == "{device}" else _LONGEST_LEVEL for part in pattern.split("/") if part.startswith("{")]


def compare_books(
    ledgers: Mapping[str, Sequence[DeviceRound]],
    interface: Mapping[int, Mapping[str, InterfaceBytes]],
    wires: Mapping[str, Wire],
) -> Agreement:
    """Causes against links, and links against interfaces, device by device."""
    checked, unexplained, faults = 0, list[str](), list[str]()
    passed = _by_device(interface.values())
    for device, entries in ledgers.items():
        counts = link_counts(entries)
        if counts is None:
            continue
        checked += 1
        found = _cause_faults(device, entries, counts)
        wire = wires.get(device)
        (unexplained if wire is not None and wire.is_cut else faults).extend(found)
        if device in passed:
            strict, reported = _interface_faults(device, passed[device], counts, wires[device])
            faults += strict
            unexplained += reported
    conditions: dict[str, Any] = {"devices": len(ledgers), "payload_checked": checked}
    if passed:
        conditions |= {"interface_checked": len(passed)}
    if passed or unexplained:
        conditions |= {"unexplained": unexplained}
    return Agreement(tuple(faults), conditions)


def link_counts(entries: Sequence[DeviceRound]) -> LinkCounts | None:
    """What a device's links counted over a run; None where an entry does not say, or there is none."""
    found = [entry.traffic for entry in entries]
    if not found or None in found:
        return None
    return LinkCounts(*(sum(getattr(one, name) for one in found) for name in LinkCounts.__struct_fields__))


def _cause_faults(device: str, entries: Sequence[DeviceRound], counts: LinkCounts) -> Iterable[str]:
    """Every byte a link counted has a cause, and none has two."""
    up = sum((entry.up for entry in entries), BytesUp())
    down = sum((entry.down for entry in entries), BytesDown())
    shares = added(entry.shares_by for entry in entries)
    if up.total != counts.sent_bytes:
        yield f"{device}: found {up.total} bytes up by cause, expected the {counts.sent_bytes} its links sent"
    if down.total != counts.received_bytes:
        expected = f"the {counts.received_bytes} its links received"
        yield f"{device}: found {down.total} bytes down by cause, expected {expected}"
    if shares and sum(shares.values()) != up.shares:
        yield f"{device}: found {sum(shares.values())} share bytes by aggregator, expected {up.shares}"


def _interface_faults(
    device: str, passed: InterfaceBytes, counts: LinkCounts, wire: Wire
) -> tuple[list[str], list[str]]:
    """What fails the run, and what is only told: on a wire that loses, or after a device was cut off, nothing fails."""
    bound = framing_bound(counts, wire.topic_bytes, wire.seconds)
    payload = InterfaceBytes(counts.sent_bytes, counts.received_bytes)
    found = []
    for direction, name in (("up", "sent"), ("down", "received")):
        own, least, most = (getattr(one, direction) for one in (passed, payload, bound))
        if own < least:
            found.append(f"{device}: found {own} bytes {direction} at the interface, expected the {least} it {name}")
        elif own > most:
            expected = f"at most {most} for {least} bytes of payload and their framing"
            found.append(f"{device}: found {own} bytes {direction} at the interface, expected {expected}")
    is_strict = wire.is_quiet and not wire.is_cut and counts.connects <= wire.links
    return (found, []) if is_strict else ([], found)


def _by_device(rounds: Iterable[Mapping[str, InterfaceBytes]]) -> dict[str, InterfaceBytes]:
    total: dict[str, InterfaceBytes] = {}
    for found in rounds:
        for device, own in found.items():
            before = total.get(device, InterfaceBytes(0, 0))
            total[device] = InterfaceBytes(before.up + own.up, before.down + own.down)
    return total
