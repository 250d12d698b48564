"""The emulator at work: frames from a TAP device, through the `Direction` they take, into the TAP at the other end."""

from __future__ import annotations

import ctypes
import gc
import heapq
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Final

from testbed.links.emulator import Direction

_FRAME_BYTES: Final = 65_536
#: Frames taken from one device before the others are looked at.
_BATCH: Final = 64
_CLOCK_MONOTONIC: Final = 1
_TFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Timer:
    """A descriptor that becomes readable at a time, to the microsecond; a wait of `epoll` ends on milliseconds only."""

    def __init__(self) -> None:
        self.descriptor: Final = int(_LIBC.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS))
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create was refused")
        self._set_s = 0.0

    def set(self, at_s: float) -> None:
        """Wake at a time of `time.monotonic`; 0 for never."""
        if at_s == self._set_s:
            return
        self._set_s = at_s
        seconds = int(at_s)
        # A time that is over must not be 0, which would switch the timer off.
        value = struct.pack("=qqqq", 0, 0, seconds, max(1, int((at_s - seconds) * 1e9)) if at_s else 0)
        _LIBC.timerfd_settime(self.descriptor, 1, value, None)

    def clear(self) -> None:
        """Take note that it woke."""
        os.read(self.descriptor, 8)
        self._set_s = 0.0


class Emulator:
    """Carries frames between pairs of TAP descriptors until told to end."""

    def __init__(self) -> None:
        self._ways: dict[int, tuple[Direction, int]] = {}
        self._due: list[tuple[float, int, Direction, int, bytes]] = []
        self._number = 0
        self._began_s = time.monotonic()
        self._timer = Timer()
        self._epoll = select.epoll()
        self._epoll.register(self._timer.descriptor, select.EPOLLIN)

    def connect(self, source: int, direction: Direction, sink: int) -> None:
        """Frames read from `source` go through `direction` into `sink`."""
        self._ways[source] = (direction, sink)
        self._epoll.register(source, select.EPOLLIN)

    def run(self, control: int, obey: Callable[[bytes], None]) -> None:
        """Until the end of input at the descriptor `control`, whose bytes go to `obey`."""
        self._epoll.register(control, select.EPOLLIN)
        self._began_s = time.monotonic()
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing below makes cycles, and a collection would hold every link up
        while True:
            self._timer.set(self._due[0][0] if self._due else 0.0)
            for descriptor, _ in self._epoll.poll():
                if descriptor in self._ways:
                    self._take(descriptor)
                elif descriptor == control:
                    data = os.read(control, 65_536)
                    if not data:
                        return
                    obey(data)
                else:
                    self._timer.clear()
            self._deliver()

    def _take(self, source: int) -> None:
        """Read what waits at a device, and note when it arrives."""
        direction, sink = self._ways[source]
        for _ in range(_BATCH):
            try:
                frame = os.read(source, _FRAME_BYTES)
            except BlockingIOError:
                return
            arrives_s = direction.offer(time.monotonic() - self._began_s, len(frame))
            if arrives_s is not None:
                self._number += 1
                heapq.heappush(self._due, (self._began_s + arrives_s, self._number, direction, sink, frame))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, direction, sink, frame = heapq.heappop(self._due)
            direction.arrived()
            try:
                os.write(sink, frame)
            except OSError:
                direction.counts["queue_full"] += 1  # the kernel would not take it: an interface that is down
