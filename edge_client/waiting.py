"""Small things around a round's tasks: ending them, what time is left, how long a step took."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def cancel(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Cancel tasks and wait for them; their results, exceptions included."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def until(ends_at: float) -> float:
    """Seconds until a time of the loop's monotonic clock; 0 when it has passed."""
    return max(0.0, ends_at - asyncio.get_running_loop().time())


def lap(started: float) -> tuple[float, float]:
    """(seconds since `started`, now) by `time.monotonic`."""
    now = time.monotonic()
    return round(now - started, 4), now
