"""What is told of attempts to connect that all fail. Time is simulated: each takes as long as it says."""

from __future__ import annotations

import asyncio
import random

import pytest
from simulators.virtual_time import VirtualLoop, run
from structlog.testing import capture_logs

from fedpruneshare.errors import CertificateDateError, LinkError
from fedpruneshare.link import LinkLimits
from fedpruneshare.link.keeper import Keeper

LIMITS = LinkLimits(connect_timeout_s=1.0, reconnect_min_s=0.01, reconnect_max_s=0.01)


def told(*reasons: LinkError) -> str:
    """Why a connect failed whose attempts fail so, one after the other, and whose last one uses up its time."""
    why: str = run(VirtualLoop(), _told(list(reasons)))
    return why


async def _told(left: list[LinkError]) -> str:
    async def attempt(timeout_s: float) -> asyncio.Future[str]:
        if left:
            raise left.pop(0)
        await asyncio.sleep(timeout_s)
        raise LinkError(f"no answer, expected one within {timeout_s:.1f} s")

    keeper = Keeper("broker", attempt, LIMITS, random.Random(1))
    with pytest.raises(LinkError) as caught:
        await keeper.connect(wait=False)
    assert not left
    return str(caught.value)


def test_the_last_attempt_that_had_too_little_time_does_not_hide_the_reason() -> None:
    assert told(LinkError("first"), LinkError("nobody listens")) == "nobody listens"


def test_a_broker_that_never_answers_is_told_with_the_whole_time() -> None:
    assert told() == "no answer, expected one within 1.0 s"


def test_a_wrong_date_is_told_whatever_comes_later() -> None:
    assert told(CertificateDateError("the clock is wrong"), LinkError("closed")) == "the clock is wrong"


def test_who_is_thrown_out_again_and_again_is_told_what_may_be_behind_it() -> None:
    """Where a broker knows parties by certificates, a copy of one ends its connection, and it that of the copy."""
    with capture_logs() as lines:
        run(VirtualLoop(), _thrown_out())
    lost = [line for line in lines if line["event"] == "connection lost"]
    assert ["running twice" in line.get("hint", "") for line in lost] == [False, False, True, True]


async def _thrown_out() -> None:
    connections: list[asyncio.Future[str]] = []

    async def attempt(_: float) -> asyncio.Future[str]:
        connections.append(asyncio.get_running_loop().create_future())
        return connections[-1]

    limits = LinkLimits(reconnect_min_s=0.001, reconnect_max_s=0.5)
    keeper = Keeper("broker", attempt, limits, random.Random(1))
    await keeper.connect(wait=False)
    for count in range(1, 5):
        async with asyncio.timeout(60.0):
            while len(connections) < count:
                await asyncio.sleep(0.001)
        connections[-1].set_result("closed without a reason")
    async with asyncio.timeout(60.0):
        while len(connections) < 5:
            await asyncio.sleep(0.001)
    await asyncio.wait(keeper.stop())
