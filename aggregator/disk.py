"""What to do while the disk does not take what must be kept: go on trying, and answer nothing meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from fedpruneshare.errors import StoreDamagedError, StoreError

_log = structlog.get_logger()
_PAUSE_S: Final = 1.0


class Disk:
    """Runs steps that keep something, each again after a pause while the disk is full or failing.

    A step checks, stores, notes and answers, in this order; one that could not store has done nothing, so that it may
    simply be run again. A damaged store ends the service: `damage` is then done.
    """

    def __init__(self) -> None:
        self._again: dict[str, asyncio.TimerHandle] = {}
        self.damage: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def keep(self, name: str, step: Callable[[], None]) -> None:
        """Run a step now; a later one of the same name takes its place where it has to be run again."""
        self.forget(name)
        try:
            step()
        except StoreError as error:
            _log.error("disk-does-not-take-it", step=name, error=str(error), again_in_s=_PAUSE_S)
            loop = asyncio.get_running_loop()
            self._again[name] = loop.call_later(_PAUSE_S, partial(self.keep, name, step))
        except StoreDamagedError as error:
            self.end(error)

    def forget(self, *names: str) -> None:
        """Do not run these steps again; without names none."""
        for name in names or tuple(self._again):
            if name in self._again:
                self._again.pop(name).cancel()

    def end(self, error: StoreDamagedError) -> None:
        """The store is damaged: say so to whoever awaits `damage`."""
        _log.error("store-damaged", error=str(error))
        if not self.damage.done():
            self.damage.set_exception(error)
