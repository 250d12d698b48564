"""Brokers that move: a service goes to where the newest directory has them (docs/protocol.md §7.1).

What a service keeps outlives a restart, so that going over is one: it ends where it is, and begins there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from fedpruneshare.directory import Directory
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import Party

_log = structlog.get_logger()

#: Where the brokers listen that a service is connected to, by whose they are.
Brokers = Mapping[str, BrokerAddress]


def brokers_of(directory: Directory) -> dict[str, BrokerAddress]:
    """Those of the coordinator and of all aggregators, in their order."""
    return {
        directory.coordinator_id: directory.coordinator.address,
        **{ident: service.address for ident, service in directory.aggregators.items()},
    }


def control_broker(directory: Directory) -> Brokers:
    """That of the coordinator alone."""
    return {directory.coordinator_id: directory.coordinator.address}


class Guest(Protocol):
    """A service at work at its brokers."""

    async def run(self) -> int:
        """Work until the end (its exit code), or until cancelled."""

    async def until_free(self) -> None:
        """Its brokers have moved: return once it loses nothing by being stopped."""

    async def stop(self) -> None:
        """Disconnect, with everything kept; called in the end, whether it has run or not."""


async def follow(party: Party, places: Callable[[Directory], Brokers], at: Callable[[Brokers], Guest]) -> int:
    """Have a service run at its brokers, anew whenever a directory came into force that has them elsewhere.

    `places`: those it is connected to; `at`: makes it, not started. Returns its exit code, raises what it raises.
    """
    while True:
        brokers, has_moved = places(party.directory), asyncio.Event()
        guest = at(brokers)

        def look(here: Brokers = brokers, moved: asyncio.Event = has_moved) -> None:
            if places(party.directory) != here:
                moved.set()

        forget = party.on_change(look)
        running = asyncio.create_task(guest.run())
        leaving = asyncio.create_task(_leave(has_moved, guest))
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forget()
            has_ended = running.done()
            for task in (running, leaving):
                task.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)
            await guest.stop()
        if has_ended or not running.cancelled():
            return running.result()
        leaving.result()
        _log.warning("brokers-moved", party=party.ident, directory=party.directory.version)


async def _leave(has_moved: asyncio.Event, guest: Guest) -> None:
    await has_moved.wait()
    await guest.until_free()
