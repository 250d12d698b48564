"""What an aggregator publishes: answers that are tried once, and those that go on until they are taken (§3.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import structlog

from fedpruneshare.crash_points import reach
from fedpruneshare.errors import LinkError
from fedpruneshare.link import Link
from fedpruneshare.link.retry import Backoff, publish_until_taken
from fedpruneshare.messages import Message, Refusal
from fedpruneshare.party import Party

_log = structlog.get_logger()
#: Chunks of an answer that are sealed and on their way at a time (docs/protocol.md §3.3).
_OUTSTANDING: Final = 4
#: Receipts and refusals on their way; whoever gets none asks again.
_MOST_ANSWERS: Final = 4096


@dataclass(frozen=True)
class Letter:
    """What is published on the control broker while a round is open. `part` tells several on one channel apart.

    A payload is made when it is its turn: answers can be large.
    """

    channel: str
    make: Callable[[], bytes]
    part: bytes | int = 0


class Post:
    """Publishes beside whatever arrives next."""

    def __init__(self, party: Party, control: Link, backoff: Backoff) -> None:
        self._party, self._control, self._backoff = party, control, backoff
        self._publishing: dict[tuple[str, bytes | int], asyncio.Task[None]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_OUTSTANDING)

    async def stop(self) -> None:
        """Give up what is on its way."""
        under_way = [*self._publishing.values(), *self._answering]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def publish_while(self, is_wanted: Callable[[], bool], round_name: str, letter: Letter) -> None:
        """Publish on the control broker in the background until it is taken or no longer wanted.

        What is still on its way for the same round is not published a second time beside it: answers are repeated after
        every reconnect, and on a bad link they would pile up.
        """
        key = letter.channel, letter.part
        running = self._publishing.get(key)
        if running is not None and running.get_name() == round_name:
            return
        topic = self._party.topics.name(letter.channel, self._party.ident)

        async def publish() -> None:
            async with self._slots if letter.channel == "sum" else nullcontext():
                if not is_wanted():
                    return
                message = (topic, letter.make())
                try:
                    is_taken = await publish_until_taken(self._control, message, self._backoff, is_wanted=is_wanted)
                    if is_taken and letter.channel == "sum":
                        reach("aggregator.sum-sent")
                except LinkError as error:
                    _log.error("publish-failed", topic=topic, error=str(error))

        task = asyncio.get_running_loop().create_task(publish(), name=round_name)
        self._publishing[key] = task
        task.add_done_callback(lambda done: self._published(key, done))

    def _published(self, key: tuple[str, bytes | int], task: asyncio.Task[None]) -> None:
        if self._publishing.get(key) is task:
            del self._publishing[key]

    def refuse(self, channel: str, round_id: int, of: bytes, reason: str) -> None:
        """One try, repeated whenever what is refused comes again."""
        topic = self._party.topics.name(channel, self._party.ident)
        self.answer(self._control, topic, Refusal(round_id, of, reason[:500]))

    def answer(self, link: Link, topic: str, message: Message, point: str = "") -> None:
        """One try, beside whatever arrives next: who needs the answer asks again. `point` is reached with it.

        A handler that waited for the broker to take it would wait for ever where the broker (the embedded one) first
        waits for what it has delivered to be acknowledged, with more than 100 uploads on their way.
        """
        if len(self._answering) >= _MOST_ANSWERS:
            _log.info("answer-lost", topic=topic, error=f"{_MOST_ANSWERS} answers are on their way already")
            return

        async def publish() -> None:
            try:
                await link.publish(topic, self._party.sign(message))
            except LinkError as error:
                _log.info("answer-lost", topic=topic, error=str(error))
                return
            if point:
                reach(point)

        task = asyncio.get_running_loop().create_task(publish())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
