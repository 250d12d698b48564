"""A TCP proxy that misbehaves on command: between a party and its broker, where `tc netem` would lie on a real machine.

    with Proxy(broker.address) as proxy:         # parties connect to proxy.address
        proxy.delay_s = 0.5                      # settings may be changed at any time
        proxy.cut_after(1200)                    # the next 1,200 bytes up pass, then that connection is reset
        proxy.partition()                        # nobody gets through until proxy.heal()

It runs in a thread of its own. Bytes are what it forwards; where the stream is plain MQTT it can also double and swap
PUBLISH packets. Everything random comes from the seed.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar

from fedpruneshare.link import BrokerAddress

T = TypeVar("T")
#: `up`: from the party to the broker.
Way = Literal["up", "down"]
_READ: Final = 65_536
_CALL_S: Final = 10.0
_PUBLISH: Final = 3
#: A packet that is to come after the next one waits for that so long.
_LATEST_S: Final = 0.2
#: With a rate, bytes go out so often.
_STEP_S: Final = 0.02
#: Closing sends a reset, as a peer does that is gone: what was on its way is lost.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Line:
    """One connection through the proxy, and what has to be remembered of each way of it."""

    party: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    partial: dict[Way, bytes] = field(default_factory=lambda: {"up": b"", "down": b""})
    kept_back: dict[Way, bytes] = field(default_factory=lambda: {"up": b"", "down": b""})
    is_half_open: bool = False

    def release(self, way: Way) -> None:
        """Write what was kept back."""
        late, self.kept_back[way] = self.kept_back[way], b""
        sink = self.broker if way == "up" else self.party
        if late and not sink.is_closing():
            sink.write(late)

    def reset(self) -> None:
        """End both connections at once; unsent bytes are thrown away."""
        for writer in (self.party, self.broker):
            _reset(writer)


class Proxy:
    """Forwards connections from `address` to `target`; a context manager. Calls return when they have taken effect.

    `delay_s`: what every piece waits. `rate`: bytes a second and way, 0 for no limit. `duplicate`, `swap`: the chances
    of a PUBLISH to come twice, or after the next one (only where `is_mqtt`: plain MQTT, not TLS).
    """

    def __init__(self, target: BrokerAddress, *, seed: int = 0, is_mqtt: bool = True) -> None:
        self.target = target
        self.delay_s = 0.0
        self.rate = 0.0
        self.duplicate = 0.0
        self.swap = 0.0
        self.forwarded: dict[Way, int] = {"up": 0, "down": 0}
        #: What it has really done so far: connections reset, cut and silenced, pieces delayed, held and throttled,
        #: packets doubled and swapped. What was asked for may have met nothing.
        self.done: Counter[str] = Counter()
        self._rng, self._is_mqtt = random.Random(seed), is_mqtt
        self._lines: set[_Line] = set()
        self._left: dict[Way, int | None] = {"up": None, "down": None}
        self._is_open = True
        self._loop = asyncio.new_event_loop()
        self._flow = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._address: BrokerAddress | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> BrokerAddress:
        """Where parties connect. A `RuntimeError` before the start."""
        if self._address is None:
            raise RuntimeError("the proxy has not been started")
        return self._address

    def start(self) -> None:
        """Listen on a port of the kernel's choice. Idempotent."""
        if self._address is not None:
            return
        self._thread.start()
        self._flow.set()

        async def listen() -> BrokerAddress:
            self._server = await asyncio.start_server(self._serve, self.target.host, 0)
            return replace(self.target, port=self._server.sockets[0].getsockname()[1])

        self._address = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(_CALL_S)

    def stop(self) -> None:
        """End every connection and the thread. Idempotent."""
        if self._loop.is_closed() or self._address is None:
            return

        async def end() -> None:
            assert self._server is not None
            self._server.close()
            self._reset_all()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(_CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()

    # ------------------------------------------------------------------ what can be done to it

    @property
    def connections(self) -> int:
        """How many connections pass through."""
        return len(self._lines)

    def drop(self) -> None:
        """Reset every connection; new ones may come at once."""
        self._call(self._reset_all)

    def partition(self) -> None:
        """Reset every connection, and every new one until `heal`."""

        def cut_off() -> None:
            self._is_open = False
            self._reset_all()

        self._call(cut_off)

    def hold(self) -> None:
        """Keep bytes back, in both ways, until `heal`; connections stay and new ones are accepted."""
        self._call(self._flow.clear)

    def half_open(self) -> None:
        """Leave parties with connections nobody is at the other end of: the broker's side is gone, theirs is silent."""

        def silence() -> None:
            self.done["silenced"] += len(self._lines)
            for line in self._lines:
                line.is_half_open = True
                _reset(line.broker)

        self._call(silence)

    def cut_after(self, count: int, way: Way = "up") -> None:
        """Reset the connection that carries the byte number `count` from now on, before that byte; once."""
        self._call(lambda: self._left.__setitem__(way, count))

    def heal(self) -> None:
        """Forward everything again, as it comes. Connections that are half-open are reset."""

        def mend() -> None:
            self._is_open, self._left = True, {"up": None, "down": None}
            self.delay_s = self.rate = self.duplicate = self.swap = 0.0
            for line in [line for line in self._lines if line.is_half_open]:
                line.reset()
            self._flow.set()

        self._call(mend)

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_CALL_S)

    def _reset_all(self) -> None:
        self.done["reset"] += len(self._lines)
        for line in list(self._lines):
            line.reset()

    # ------------------------------------------------------------------ forwarding

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            _reset(writer)
            return
        try:
            back, onward = await asyncio.open_connection(self.target.host, self.target.port)
        except OSError:
            _reset(writer)
            return
        line = _Line(writer, onward)
        self._lines.add(line)
        pumps = [
            asyncio.ensure_future(self._pump(line, "up", reader, onward)),
            asyncio.ensure_future(self._pump(line, "down", back, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            while line.is_half_open and not writer.is_closing():
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            pass  # the end of the proxy; asyncio would log it as an error of this connection
        finally:
            for pump in pumps:
                pump.cancel()
            line.reset()
            self._lines.discard(line)

    async def _pump(self, line: _Line, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(_READ):
                if self.delay_s:
                    self.done["delayed"] += 1
                    await asyncio.sleep(self.delay_s)
                self.done["held"] += not self._flow.is_set()
                await self._flow.wait()
                for piece in self._pieces(line, way, data):
                    await self._forward(line, way, piece, sink)

    async def _forward(self, line: _Line, way: Way, piece: bytes, sink: asyncio.StreamWriter) -> None:
        if line.is_half_open:
            return
        left = self._left[way]
        if left is not None and left < len(piece):
            self._left[way] = None
            self.done["cut"] += 1
            sink.write(piece[:left])
            await sink.drain()
            line.reset()
            return
        if left is not None:
            self._left[way] = left - len(piece)
        self.forwarded[way] += len(piece)
        self.done["throttled"] += self.rate > 0
        step = max(1, int(self.rate * _STEP_S)) if self.rate else len(piece)
        for start in range(0, len(piece), step):
            if self.rate:
                await asyncio.sleep(step / self.rate)
            sink.write(piece[start : start + step])
            await sink.drain()

    def _pieces(self, line: _Line, way: Way, data: bytes) -> Iterator[bytes]:
        """What to forward now: in plain MQTT whole packets, some of them twice or in another order."""
        if not self._is_mqtt:
            yield data
            return
        packets, line.partial[way] = split_packets(line.partial[way] + data)
        for packet in packets:
            is_publish = packet[0] >> 4 == _PUBLISH
            if is_publish and self.swap and not line.kept_back[way] and self._rng.random() < self.swap:
                self.done["swapped"] += 1
                line.kept_back[way] = packet
                self._loop.call_later(_LATEST_S, line.release, way)  # nothing else may come
                continue
            yield packet
            if is_publish and self.duplicate and self._rng.random() < self.duplicate:
                self.done["doubled"] += 1
                yield packet
            line.release(way)


def split_packets(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole MQTT packets at the front of `data`, and the rest (MQTT 5.0 §2.1)."""
    packets: list[bytes] = []
    start = 0
    while True:
        length, shift, at = 0, 0, start + 1
        while at < len(data):
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        else:
            return packets, data[start:]
        if at + length > len(data):
            return packets, data[start:]
        packets.append(data[start : at + length])
        start = at + length


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


__all__ = ["Proxy", "Way", "split_packets"]
