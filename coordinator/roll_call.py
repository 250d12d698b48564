"""Waiting for the devices to have said hello (docs/protocol.md §2); who was not heard is asked for by name.

A broker keeps every hello and hands over what it keeps when somebody subscribes: but of all that match, only as many as
it may have in flight or in a queue. The rest it drops unsaid (the embedded one beyond 100). So devices that were there
before the coordinator can stay unheard; a subscription to their own topics brings their hellos.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from typing import Final

import structlog

from coordinator.desk import Desk
from fedpruneshare.errors import LinkError

_log = structlog.get_logger()
#: How long nobody is asked, then how long between two calls; doubled up to the longest: most of the missing are off.
_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0
#: So many are asked for together, and this long their hellos may take.
_AT_ONCE: Final = 64
_ANSWER_S: Final = 1.0


async def await_devices(
    desk: Desk, is_enough: Callable[[], bool], unheard: Callable[[], Set[str]], limit_s: float
) -> None:
    """Wait until enough devices are here, at most so long. `unheard`: those that never said hello, as far as known."""
    clock = asyncio.get_running_loop().time
    end, pause_s = clock() + limit_s, _PAUSE_S
    while not await desk.wait_until(is_enough, min(pause_s, end - clock())) and clock() < end:
        missing = sorted(unheard())
        _log.info("devices-awaited", unheard=len(missing))
        for start in range(0, len(missing), _AT_ONCE):
            if is_enough() or clock() >= end:
                return
            await _call(desk, missing[start : start + _AT_ONCE], unheard)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _call(desk: Desk, devices: Sequence[str], unheard: Callable[[], Set[str]]) -> None:
    try:
        await desk.hear(devices, lambda: unheard().isdisjoint(devices), _ANSWER_S)
    except LinkError as error:  # when the connection is back, the broker hands over what it keeps anyhow
        _log.debug("roll-call-broken-off", reason=str(error))
