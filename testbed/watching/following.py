"""Following a fleet from its start to the end of its coordinator: what is shown, and what is written as it happens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from fedpruneshare.errors import RunError
from testbed.federation import CONTROL
from testbed.fleet import Fleet
from testbed.ledger.device_book import DeviceBook, read_partial
from testbed.ledger.journal import PATIENCE_S, Journal
from testbed.ledger.rounds import CoordinatorRound, DeviceRound
from testbed.watching.progress import Progress
from testbed.watching.state import RunPhase, RunState, device_state, in_order, write_progress

#: What a round may take beyond its own time-outs before the run is given up: evaluation, a crowded machine.
_SLACK_S: Final = 60.0
_START_S: Final = 120.0
_LOOK_EVERY_S: Final = 0.5
#: In a larger fleet only so many devices are asked what they are doing, to see that a round begins; how the round ended
#: for each stands in its ledger.
_ASKED_DEVICES: Final = 64


@dataclass
class Follower:
    """Follows one run. `state` says how it stands, in progress.json in the run's folder and on the terminal."""

    fleet: Fleet
    journal: Journal
    progress: Progress
    state: RunState

    def __post_init__(self) -> None:
        self._rounds: list[CoordinatorRound] = []
        self._closed_at: dict[int, float] = {}
        self._lost: set[str] = set()
        self._lost_brokers: set[str] = set()
        self._looked_at = float("-inf")
        self._has_begun = False

    @property
    def book(self) -> DeviceBook:
        """What the devices have written down."""
        return self.journal.book

    def follow(self) -> int:
        """Return the coordinator's exit code once it has ended. Raises `RunError` where nothing moves."""
        rounds = self.fleet.scenario.rounds
        # As the round's own time-outs add up; the first round may also wait for its devices.
        round_s = rounds.deadline_s + 2 * rounds.grace_s + rounds.sum_timeout_s + rounds.wait_for_devices_s + _SLACK_S
        limit_s = round_s + _START_S
        while True:
            self.fleet.wait_for(self._has_moved, limit_s, "the next round")
            code, limit_s = self.fleet.coordinator_exit(), round_s
            self._take_in(self.fleet.rounds())
            self._tell_lost(is_over=code is not None)
            if code is not None:
                self._settle()
                return code

    def finish(self, rounds: list[CoordinatorRound]) -> None:
        """The devices have ended: take in the rest of what they wrote, and what passed since the last round."""
        self.journal.interface.mark(0)
        self.book.read()
        self.book.read_unfinished()
        self._take_in(rounds)
        while self.journal.written < len(self._rounds):
            self.journal.append(self._rounds)

    def conclude(self, succeeded: bool) -> None:
        """Say how the run has ended."""
        self._show("finished" if succeeded else "failed")

    # ------------------------------------------------------------------ looking

    def _has_moved(self) -> bool:
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._tell_lost_brokers()
            self._look()
        return self.fleet.coordinator_exit() is not None or len(self.fleet.rounds()) > len(self._rounds)

    def _look(self) -> None:
        self.book.read()
        partials = self._partials()
        self._has_begun = self._has_begun or self._round_under_way(partials) > 0
        if not self._has_begun:
            self.journal.interface.mark(0)  # what passes before the first round belongs to none
        self._write_ready()
        self._show("running", partials)
        self._looked_at = time.monotonic()

    def _partials(self) -> Mapping[str, DeviceRound | None]:
        devices = self.fleet.devices
        asked = devices[:: -(-len(devices) // _ASKED_DEVICES)]
        return {device: read_partial(self.fleet.folder.ledger(device)) for device in asked}

    def _round_under_way(self, partials: Mapping[str, DeviceRound | None]) -> int:
        """The newest round any device is in or has ended; 0 before the first."""
        at = (entry.round for entry in partials.values() if entry is not None)
        return max(*self.book.uplink, *at, 0, 0)

    # ------------------------------------------------------------------ rounds

    def _take_in(self, rounds: list[CoordinatorRound]) -> None:
        new = rounds[len(self._rounds) :]
        for line in new:
            self.journal.interface.mark(line.round)
            self._closed_at[line.round] = time.monotonic()
        self._rounds = rounds
        if new:
            self._has_begun = True
            self._look()
        for line in new:
            self.progress.round_done(line, self.book.uplink.total())

    def _write_ready(self) -> None:
        running: list[str] | None = None
        while self.journal.written < len(self._rounds):
            closed = self._rounds[self.journal.written]
            if time.monotonic() - self._closed_at[closed.round] < PATIENCE_S:
                running = running or [device for device in self.fleet.devices if self.fleet.is_running(device)]
                if not self.journal.is_final(closed, running):
                    return
            self.journal.append(self._rounds)

    def _settle(self) -> None:
        """Let the devices end the last round, so that it is told as it went."""
        until = time.monotonic() + PATIENCE_S
        while self.journal.written < len(self._rounds) and time.monotonic() < until:
            time.sleep(0.05)
            self._look()

    def _tell_lost(self, *, is_over: bool) -> None:
        for ident, ended in self.fleet.lost().items():
            if not is_over and ident not in self._lost:
                self.progress.say(f"{ident} ended by itself with code {ended}: see logs/{ident}.log")
                self._lost.add(ident)

    def _tell_lost_brokers(self) -> None:
        """Raises `RunError` where the control broker has ended: without it no round ends any more."""
        for name, code in self.fleet.lost_brokers().items():
            if name == CONTROL:
                raise RunError(f"the {name} broker ended by itself with code {code}, expected it to outlive the run")
            if name not in self._lost_brokers:
                self._lost_brokers.add(name)
                text = f"the broker of {name} ended by itself with code {code}"
                self.fleet.events.note(text)
                self.progress.say(text)

    # ------------------------------------------------------------------ showing

    def _show(self, phase: RunPhase, partials: Mapping[str, DeviceRound | None] | None = None) -> None:
        number = self._round_under_way(partials or {})
        passed = self.journal.interface.by_round
        each = [one for own in passed.values() for one in own.values()]
        self.state = msgspec.structs.replace(
            self.state,
            state=phase,
            updated_at=time.time(),
            round=number,
            rounds_applied=sum(line.phase == "APPLIED" for line in self._rounds),
            rounds_failed=sum(line.phase == "FAILED" for line in self._rounds),
            accuracies=tuple(line.accuracy for line in self._rounds if line.accuracy is not None),
            uplink_bytes=self.book.uplink.total() + sum(one.up.total for one in (partials or {}).values() if one),
            downlink_bytes=self.book.downlink.total() + sum(one.down.total for one in (partials or {}).values() if one),
            wire_up=sum(one.up for one in each) if passed else None,
            wire_down=sum(one.down for one in each) if passed else None,
            joules={source: round(joules, 3) for source, joules in self.book.joules.items()},
            devices=self._device_states(number, partials) if partials is not None else self.state.devices,
            events=tuple(text for _, text in self.journal.happened()[-10:]),
        )
        write_progress(self.journal.folder, self.state)
        self.progress.show(self.state)

    def _device_states(self, number: int, partials: Mapping[str, DeviceRound | None]) -> dict[str, int]:
        if len(partials) == len(self.fleet.devices):
            return in_order(
                [
                    device_state(self.fleet.is_running(device), now, self.book.newest(device), number)
                    for device, now in partials.items()
                ]
            )
        ended = self.book.round(number)
        states = [device_state(True, None, entries[-1], number) for entries in ended.values()]
        return in_order([*states, *["at work"] * (len(self.fleet.devices) - len(ended))])


def new_state(fleet: Fleet, arm: str) -> RunState:
    """The state of a run that begins."""
    scenario, now = fleet.scenario, time.time()
    return RunState(
        scenario=scenario.name, arm=arm, seed=fleet.seed, started_at=now, updated_at=now,
        rounds=scenario.rounds.count, metric=fleet.metric,
    )  # fmt: skip
