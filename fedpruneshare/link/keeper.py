"""Keeping a connection up: the first attempt, jittered reconnects, and whom to tell (docs/protocol.md §3.1).

Knows nothing of MQTT: an attempt is a coroutine that returns the future of its own loss.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from fedpruneshare.errors import CertificateDateError, DisconnectedError, LinkError, RefusedError
from fedpruneshare.link import ConnectHandler, LinkLimits

log = structlog.get_logger()

#: Connects within so many seconds or raises `LinkError`; the future resolves to the reason when the connection falls.
Attempt = Callable[[float], Awaitable[asyncio.Future[str]]]
#: So many connections in a row that end soon after they began are told with what is most probably behind them.
_OFTEN: Final = 3
_TWICE: Final = "is this party running twice, here or from a copy elsewhere? A broker ends the older connection"


class Keeper:
    """Runs one attempt after another, from `connect` to `stop`."""

    def __init__(self, name: str, attempt: Attempt, limits: LinkLimits, rng: random.Random) -> None:
        self.greetings: list[ConnectHandler] = []
        self._name = name
        self._attempt = attempt
        self._limits = limits
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[LinkError | None] | None = None

    async def connect(self, wait: bool) -> None:
        """Return with the first connection, and keep it up from then on until `stop`.

        Raises `RefusedError` at once, other `LinkError`s after `connect_timeout_s`, or never with `wait`.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(wait, self._first), name=f"keeper of {self._name}")
        error = await asyncio.shield(self._first)
        if error is not None:
            raise error

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel everything; what is left to be waited for."""
        if self._first is not None and not self._first.done():
            self._first.set_result(DisconnectedError("the link was closed while it was connecting"))
        if self._task is None:
            return []
        self._task.cancel()
        return [self._task]

    async def _run(self, wait: bool, first: asyncio.Future[LinkError | None]) -> None:
        try:
            lost = await self._connect_first(wait)
        except LinkError as error:
            first.set_result(error)
            return
        first.set_result(None)
        is_first, failures, short_lived = True, 0, 0
        while True:
            opened_s = time.monotonic()
            await self._greet(lost, is_first)
            # Shielded: the future is the connection's, and cancelling us must not mark it as lost.
            reason = await asyncio.shield(lost)
            short_lived += 1
            if time.monotonic() - opened_s > self._limits.reconnect_max_s:
                failures = short_lived = 0
            hint = {"hint": _TWICE} if short_lived >= _OFTEN else {}
            log.warning("connection lost", broker=self._name, reason=reason, **hint)
            lost, failures = await self._reconnect(failures)
            is_first = False

    async def _connect_first(self, wait: bool) -> asyncio.Future[str]:
        limit_s = self._limits.connect_timeout_s
        give_up_s = math.inf if wait else time.monotonic() + limit_s
        failures, told = 0, None
        while True:
            begun_s = time.monotonic()
            allowed_s = min(limit_s, give_up_s - begun_s)
            try:
                return await self._attempt(allowed_s)
            except RefusedError:
                raise
            except LinkError as error:
                # An earlier reason says more than that the last attempt, with the little time it had, got no answer.
                is_cut_short = allowed_s < limit_s and time.monotonic() - begun_s >= allowed_s
                told = told if told and (is_cut_short or isinstance(told, CertificateDateError)) else error
                pause_s = self._pause_s(failures)
                if time.monotonic() + pause_s >= give_up_s:
                    raise told from None
                log.info("broker not reached yet", broker=self._name, reason=str(error))
            failures += 1
            await asyncio.sleep(pause_s)

    async def _reconnect(self, failures: int) -> tuple[asyncio.Future[str], int]:
        # The count lives on over short connections, so that a broker which accepts and drops is not hammered.
        while True:
            await asyncio.sleep(self._pause_s(failures))
            failures += 1
            try:
                lost = await self._attempt(self._limits.connect_timeout_s)
            except LinkError as error:
                log.warning("reconnect failed", broker=self._name, reason=str(error), failures=failures)
                continue
            log.info("reconnected", broker=self._name, failures=failures)
            return lost, failures

    def _pause_s(self, failures: int) -> float:
        # Full jitter: a thousand devices must not come back to a restarted broker in step.
        cap_s = min(self._limits.reconnect_max_s, self._limits.reconnect_min_s * 2.0 ** min(failures, 30))
        return self._rng.uniform(0.0, cap_s)

    async def _greet(self, lost: asyncio.Future[str], is_first: bool) -> None:
        greeting = asyncio.create_task(self._run_greetings(is_first))
        try:
            watched: set[asyncio.Future[Any]] = {greeting, lost}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeting.cancel()

    async def _run_greetings(self, is_first: bool) -> None:
        for handler in self.greetings:
            try:
                await handler(is_first)
            except LinkError as error:
                log.warning("on_connect handler was cut short", broker=self._name, reason=str(error))
            except Exception:
                log.exception("on_connect handler failed", broker=self._name)


__all__ = ["Attempt", "Keeper"]
