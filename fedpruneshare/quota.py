"""How much of one device is looked at in a round, counted before any signature (docs/protocol.md §4.2).

A signature costs more than counting does, and what follows from it may cost a commit. What is above the quota, of
nobody on the roster, or longer than allowed is dropped unanswered, so that a device gone wrong, or somebody on a broker
that checks no names, takes from nobody but that device.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

import structlog

from fedpruneshare.link import Delivery
from fedpruneshare.messages import KINDS
from fedpruneshare.party import Party
from fedpruneshare.sealing import ENVELOPE_BYTES, Opened
from fedpruneshare.topics import CHANNELS
from fedpruneshare.wire_types import MAX_DEVICES

_log = structlog.get_logger()
#: Messages of a device on one channel in a round: some at once, then one every so often. A device that says hello after
#: fifty reconnects, and to a reader that reconnects as often, stays far below.
_MESSAGES: Final = 256
_SECONDS_A_MESSAGE: Final = 10
#: So much of a name that stands in a topic is looked at: no party's is longer.
_NAME_CHARACTERS: Final = 40


@dataclass(frozen=True)
class Allowance:
    """What one device may send in a round. `longest_bytes`: of one message."""

    messages: int
    total_bytes: int
    longest_bytes: int


def usual_allowance(channel: str, deadline_s: float = 0.0) -> Allowance:
    """For a channel on which a device says little, in a round that long; without one for as long as none is open."""
    longest = max(KINDS[kind][1] for kind in CHANNELS[channel].kinds) + ENVELOPE_BYTES
    messages = _MESSAGES + int(deadline_s / _SECONDS_A_MESSAGE)
    return Allowance(messages, messages * longest, longest)


class Quota:
    """Counts what each device has sent since the round began. Rules only."""

    def __init__(self, allowed: Allowance) -> None:
        """`allowed`: while no round has been open yet."""
        self._allowed = allowed
        self._messages: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def open_round(self, allowed: Allowance) -> None:
        """Begin to count anew."""
        self._allowed = allowed
        self._messages, self._bytes = {}, {}

    def refuse(self, device_id: str, size_bytes: int, roster: Container[str]) -> str:
        """Count one message of a device; why it is not to be looked at, empty if it may be."""
        if device_id not in roster:
            return "not on the roster"
        messages, total = self._messages.get(device_id, 0) + 1, self._bytes.get(device_id, 0) + size_bytes
        self._messages[device_id], self._bytes[device_id] = messages, total
        if size_bytes > self._allowed.longest_bytes:
            return f"message of {size_bytes} bytes, expected at most {self._allowed.longest_bytes}"
        if messages > self._allowed.messages:
            return f"message {messages} of this round, expected at most {self._allowed.messages}"
        if total > self._allowed.total_bytes:
            return f"{total} bytes in this round, expected at most {self._allowed.total_bytes}"
        return ""


class Turnstile:
    """Lets through what devices say on one channel: first counted by the name in the topic, then authenticated."""

    def __init__(self, party: Party, channel: str) -> None:
        self._party, self._channel = party, channel
        self._quota = Quota(usual_allowance(channel))
        self._named: set[str] = set()

    def open_round(self, allowed: Allowance) -> None:
        """A round has opened: what devices have sent is counted anew."""
        self._quota.open_round(allowed)
        self._named = set()

    def take(self, delivery: Delivery) -> Opened | None:
        """As `Party.take`, for a device that speaks for itself, within its quota. One line a device and round says no.

        Names are cut, and few, before they are kept: whose broker has no access list may write any topic.
        """
        device_id = self._party.topics.party(self._channel, delivery.topic)[:_NAME_CHARACTERS]
        if reason := self._quota.refuse(device_id, len(delivery.payload), self._party.directory.devices):
            if device_id not in self._named and len(self._named) < MAX_DEVICES:
                _log.warning("message-dropped", channel=self._channel, device=device_id, reason=reason)
                self._named.add(device_id)
            return None
        opened = self._party.take(self._channel, delivery)
        if opened is not None and opened.sender != device_id:
            reason = "published on another device's topic"
            _log.warning("message-refused", topic=delivery.topic, device=opened.sender, reason=reason)
            return None
        return opened
