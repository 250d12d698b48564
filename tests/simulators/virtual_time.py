"""An asyncio loop whose time is simulated: waiting costs nothing, and a process can lose power between two steps.

Each process of a simulation is a `Life`, entered through a context variable that its tasks and timers inherit. When a
life ends nothing of it is run any more, no `finally` either: as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

EPOCH_S = 1_800_000_000.0
"""The wall time at which every simulation begins."""


class PowerCutError(BaseException):
    """Ends the step that a process is in when it loses power; nothing may catch it."""


_life: contextvars.ContextVar[Any] = contextvars.ContextVar("life", default=None)


class Life:
    """One process from start to end. `skew_s`: how wrong its wall clock is."""

    def __init__(self, name: str, skew_s: float = 0.0) -> None:
        self.name, self.skew_s = name, skew_s
        self.is_over = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_life.set, self)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something as this process, as its signal handler would."""
        return self.context.copy().run(function, *args)

    def __repr__(self) -> str:
        return f"Life({self.name!r}, {'over' if self.is_over else 'on'})"


def current_life() -> Life | None:
    """The life whose step is being run."""
    life: Life | None = _life.get()
    return life


class StuckError(Exception):
    """Nothing will ever happen again, and somebody still waits."""


class _OfALife:
    """Makes of a callback one that is dropped once its life is over."""

    __slots__ = ()

    def _run(self) -> None:
        life = self._context.get(_life)  # type: ignore[attr-defined]
        if life is None or not life.is_over:
            super()._run()  # type: ignore[misc]


class _Step(_OfALife, asyncio.Handle):
    __slots__ = ()


class _TimedStep(_OfALife, asyncio.TimerHandle):
    __slots__ = ()


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without sockets or threads, at a time of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.set_task_factory(_keep_task)
        self.set_exception_handler(self._note_error)
        self.errors: list[dict[str, Any]] = []

    def time(self) -> float:
        return self.now_s

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), PowerCutError):
            self.errors.append(context)

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        self._timer_cancelled_count = 0
        if not self._ready:
            if not self._scheduled:
                raise StuckError("every task waits, and no timer runs")
            self.now_s = max(self.now_s, self._scheduled[0]._when)
        while self._scheduled and self._scheduled[0]._when <= self.now_s:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle._cancelled:
                with suppress(PowerCutError):  # the step ended; its life is over
                    handle._run()

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _TimedStep(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Step(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """In place of a thread: at once."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    # ------------------------------------------------------------------ lives

    def begin(self, life: Life, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as the main task of a life."""
        return self.create_task(work, context=life.context.copy())

    @staticmethod
    def cut(life: Life) -> None:
        """End a life in the middle of whatever it does."""
        life.is_over = True
        for task in life.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    @staticmethod
    def bury(lives: list[Life]) -> None:
        """Let go of what dead tasks still hold, quietly: their `finally` blocks run now, into files nobody reads."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                for task in [task for life in lives for task in life.tasks if not task.done()]:
                    with suppress(Exception, PowerCutError, asyncio.CancelledError):
                        task.get_coro().close()  # type: ignore[union-attr]
            for life in lives:
                life.tasks.clear()
        finally:
            sys.unraisablehook = hook


def _keep_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    life = _life.get()
    context = options.get("context")
    if context is not None:
        life = context.get(_life)
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    if life is not None:
        life.tasks.append(task)
    return task


@contextmanager
def simulated(loop: VirtualLoop) -> Iterator[None]:
    """While it lasts, `time` tells the loop's time, and to each life its own wall time."""

    def wall() -> float:
        life = _life.get()
        return EPOCH_S + loop.now_s + (life.skew_s if life else 0.0)

    real = time.time, time.monotonic, time.perf_counter
    time.time, time.monotonic, time.perf_counter = wall, loop.time, loop.time
    try:
        yield
    finally:
        time.time, time.monotonic, time.perf_counter = real


def run(loop: VirtualLoop, main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, and the lives it begins, to its end."""
    asyncio.set_event_loop(loop)
    try:
        with simulated(loop):
            return loop.run_until_complete(main)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


__all__ = ["EPOCH_S", "Future", "Life", "PowerCutError", "StuckError", "VirtualLoop", "current_life", "run"]
