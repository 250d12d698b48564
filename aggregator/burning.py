"""Deletes what nobody may read any more, in slices: the loop is free in between (docs/protocol.md §4.5, §9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aggregator.disk import Disk
from aggregator.store import ShareStore

_STEP: Final = "burn"


class Burner:
    """Burns shares of rounds that are summed or over. `on_burned` is called once nothing of them is left.

    What is to be burned follows from the store, so that a restart goes on where power failed.
    """

    def __init__(self, store: ShareStore, disk: Disk, on_burned: Callable[[], None]) -> None:
        self._store, self._disk, self._on_burned = store, disk, on_burned
        self._next: asyncio.Handle | None = None

    def start(self) -> bool:
        """Burn what there is to be burned, from now on; whether there is anything."""
        self.stop()
        if self._store.is_burned():
            return False
        self._next = asyncio.get_running_loop().call_soon(self._disk.keep, _STEP, self._burn)
        return True

    def stop(self) -> None:
        """Burn no more; the next start goes on."""
        self._disk.forget(_STEP)
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _burn(self) -> None:
        self._store.burn_more()
        if not self.start():
            self._on_burned()
