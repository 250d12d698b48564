"""Publishing a control message until the broker has it (docs/protocol.md §3.2)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import structlog

from fedpruneshare.errors import LinkError, PayloadTooLargeError, RefusedError
from fedpruneshare.link import Link, PublishOptions

_log = structlog.get_logger()


@dataclass(frozen=True)
class Backoff:
    """Waits between tries: full jitter up to `first_s` doubled each time, at most `cap_s`."""

    rng: random.Random
    first_s: float = 0.2
    cap_s: float = 5.0

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after failed try number `attempt` (from 0)."""
        return self.rng.uniform(0.0, min(self.cap_s, self.first_s * 2.0 ** min(attempt, 16)))


async def publish_until_taken(
    link: Link,
    message: tuple[str, bytes],
    backoff: Backoff,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    **options: Unpack[PublishOptions],
) -> bool:
    """Publish `(topic, payload)` again and again until the broker takes it or it is no longer wanted.

    `options` are those of `Link.publish`, for every try.

    Returns whether it was taken.
    Raises `PayloadTooLargeError` and `RefusedError` at once: repeating would not help.
    """
    topic, payload = message
    attempt = 0
    while is_wanted():
        try:
            await link.publish(topic, payload, **options)
            return True
        except (PayloadTooLargeError, RefusedError):
            raise
        except LinkError as error:
            _log.info("publish-retry", topic=topic, attempt=attempt, error=str(error))
            await asyncio.sleep(backoff.wait_s(attempt))
            attempt += 1
    return False
