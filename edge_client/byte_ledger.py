"""The device's byte ledger: every MQTT payload byte by direction and cause, as it happens (docs/protocol.md §9.1).

Bytes are counted where the links count theirs: up when a connection has the payload, whether or not an answer ever
comes, and down when it arrives, whether or not anybody still wants it. So both counts must be the same (`LinkCounts`).
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import structlog

from fedpruneshare.link import Link

_log = structlog.get_logger()

#: Cause of what arrives, by the channel in its topic (docs/protocol.md §2); everything else is `other`.
_CAUSES: Final = {"round": "plan", "model": "model", "ack": "receipts"}
_CHANNEL_LEVEL: Final = 3
_MOST_UNWRITTEN: Final = 1000
#: A ledger longer than this becomes the old one, `ledger.jsonl.1`, instead of the one that was it before.
_MOST_BYTES: Final = 32 * 1024 * 1024


@dataclass
class Up:
    """Bytes sent: shares at first transmission, shares sent again, everything else."""

    shares: int = 0
    resent: int = 0
    control: int = 0


@dataclass
class Down:
    """Bytes received: model segments, plans, receipts (and calls for missing chunks), everything else."""

    model: int = 0
    plan: int = 0
    receipts: int = 0
    other: int = 0


@dataclass
class LinkCounts:
    """What a device's links counted for themselves, all of them together (`fedpruneshare.link.Traffic`)."""

    sent_bytes: int = 0
    sent_messages: int = 0
    received_bytes: int = 0
    received_messages: int = 0
    connects: int = 0

    def __sub__(self, other: LinkCounts) -> LinkCounts:
        return LinkCounts(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))

    @staticmethod
    def of(links: Iterable[Link]) -> LinkCounts:
        """The counts of several links, added."""
        traffic = [link.traffic for link in links]
        return LinkCounts(*(sum(getattr(one, own.name) for one in traffic) for own in fields(LinkCounts)))


@dataclass
class RoundEntry:
    """What one round cost this device; `round` 0 is what passed outside any round.

    `status` says how it ended here, `receipts` how many aggregators hold the whole share, `seconds` are by phase.
    `energy`: by phase, as `edge_client.energy.parts.ledger_energy` gives it. `spans`: (phase, from, to) in seconds
    since 1970, for the record of an external meter. `shares_by`: bytes of `up.shares` by aggregator. `traffic`: what
    the links counted since the entry before this one; the plan that starts the next round may be in it. `phase`: what
    the device was doing last.
    """

    round: int = 0
    rung: int | None = None
    status: str = ""
    constraint: str = ""
    reason: str = ""
    receipts: int = 0
    up: Up = field(default_factory=Up)
    down: Down = field(default_factory=Down)
    seconds: dict[str, float] = field(default_factory=dict)
    width: float | None = None
    local_steps: int = 0
    prediction: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    examples: int = 0
    weight: int = 0
    loss: float | None = None
    shares_by: dict[str, int] = field(default_factory=dict)
    traffic: LinkCounts | None = None
    phase: str = ""


class ByteLedger:
    """Counts into the entry of the current round, which is appended to `ledger.jsonl` when the round ends.

    The unfinished entry stands in `ledger.partial` after every count, so that a killed process loses no byte: the
    next one appends it with status "killed", unless it was appended already (`ledger_bytes` in it says how long
    `ledger.jsonl` was before): killed while it ends an entry, it counts no byte twice. With `is_durable` false there is
    no such file, and lines are not synced: for thousands of emulated devices on one disk. While the disk takes no
    lines they wait in memory, the last thousand of them: a device does not end for want of figures. What has grown long
    is kept once, as `ledger.jsonl.1`: nor does it fill its disk with them.
    """

    def __init__(self, folder: Path, *, is_durable: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._partial = folder / "ledger.jsonl", folder / "ledger.partial"
        self._is_durable = is_durable
        self._links: tuple[Link, ...] = ()
        self._reported = LinkCounts()
        self._plan_waiting = 0
        self._unwritten: deque[dict[str, Any]] = deque(maxlen=_MOST_UNWRITTEN)
        self._is_failing = False
        self.entry = RoundEntry()
        self._recover()

    def _recover(self) -> None:
        try:
            line = dict(json.loads(self._partial.read_bytes()))
            size_bytes = float(line.pop("ledger_bytes", math.inf))
        except (OSError, ValueError, TypeError, RecursionError):  # damaged: the figures of one round are lost
            return
        if self._size_bytes() > size_bytes:
            self._partial.unlink()
            return
        self._append({**line, "status": "killed"})

    def _size_bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def watch(self, links: Iterable[Link]) -> None:
        """Count whatever arrives over these links from now on, by the channel of its topic."""
        self._links = tuple(links)
        for link in self._links:
            link.traffic.on_received = self._on_received

    def _on_received(self, topic: str, size_bytes: int) -> None:
        channel = topic.split("/", _CHANNEL_LEVEL + 1)[_CHANNEL_LEVEL:][:1]
        cause = _CAUSES.get(channel[0], "other") if channel else "other"
        if cause == "plan":  # of the round that it starts, if it does
            self._plan_waiting += size_bytes
            self._save_partial()
        else:
            self.received(cause, size_bytes)

    def sent(self, cause: str, size_bytes: int, aggregator: str = "") -> None:
        """Count a payload sent; `cause` is a field of `Up`. Shares also count by `aggregator`, where it is given."""
        setattr(self.entry.up, cause, getattr(self.entry.up, cause) + size_bytes)
        if cause == "shares" and aggregator:
            self.entry.shares_by[aggregator] = self.entry.shares_by.get(aggregator, 0) + size_bytes
        self._save_partial()

    def received(self, cause: str, size_bytes: int) -> None:
        """Count a payload received; `cause` is a field of `Down`. What comes over watched links is counted already."""
        setattr(self.entry.down, cause, getattr(self.entry.down, cause) + size_bytes)
        self._save_partial()

    def enter(self, phase: str) -> None:
        """Note what the device is doing from here on, for whoever watches it; only within a round."""
        if self.entry.round:
            self.entry.phase = phase
            self._save_partial()

    def plan_dropped(self, size_bytes: int) -> None:
        """A plan that arrived starts no round: it belongs to the entry under way."""
        self._plan_waiting -= size_bytes
        self.received("plan", size_bytes)

    def begin(self, round_id: int, plan_bytes: int = 0) -> None:
        """Write what was counted before and start a round's entry with the bytes of its plan."""
        self.end()
        self._turn_over()
        self.entry = RoundEntry(round=round_id)
        self._plan_waiting -= plan_bytes
        if plan_bytes:
            self.received("plan", plan_bytes)

    def _turn_over(self) -> None:
        """Between two entries: what `ledger.partial` may hold then is in no line yet."""
        if self._size_bytes() > _MOST_BYTES:
            self._keep(self._set_aside)

    def _set_aside(self) -> None:
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))

    def end(self) -> None:
        """Append the entry; what follows counts as outside any round until the next `begin`."""
        if self.entry != RoundEntry():
            now = LinkCounts.of(self._links)
            self.entry.traffic = now - self._reported if self._links else None
            self._append(asdict(self.entry))
            self._reported = now
        self.entry = RoundEntry()
        if self._plan_waiting:
            self._save_partial()

    def close(self) -> None:
        """`end` for good, once the links are closed: a plan that nobody took up is counted, too."""
        if self._plan_waiting:
            self.plan_dropped(self._plan_waiting)
        self.end()

    def _save_partial(self) -> None:
        # Not synced: it must survive a killed process, for which the page cache suffices.
        if not self._is_durable:
            return
        line = asdict(self.entry)
        line["down"]["plan"] += self._plan_waiting
        line["traffic"] = asdict(LinkCounts.of(self._links) - self._reported) if self._links else None
        line["ledger_bytes"] = self._size_bytes()
        self._keep(lambda: self._write_partial(line))

    def _write_partial(self, line: dict[str, Any]) -> None:
        written = self._partial.with_name(self._partial.name + ".part")
        written.write_text(json.dumps(line))
        written.replace(self._partial)

    def _append(self, line: dict[str, Any]) -> None:
        self._unwritten.append(line)
        self._keep(self._write_lines)

    def _write_lines(self) -> None:
        size_bytes = self._size_bytes()
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in self._unwritten))
                file.flush()
                if self._is_durable:
                    os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # half a line must not stay
                os.truncate(self._path, size_bytes)
            raise
        self._unwritten.clear()
        if self._is_durable:
            self._partial.unlink(missing_ok=True)

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._is_failing:
                _log.error("figures-not-kept", path=str(self._path), reason=str(error))
            self._is_failing = True
        else:
            self._is_failing = False
