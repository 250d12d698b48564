"""When an aggregator leaves a broker that a newer directory has elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from builders import AGGREGATORS, view
from simulators.lab import Lab, play

FIRST = AGGREGATORS[0]


def test_a_broker_that_moved_is_left_once_the_open_round_is_over(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start(FIRST)
        aggregator = lab.aggregators[FIRST]
        await asyncio.wait_for(aggregator.until_free(), 1)  # no round is open
        await lab.open(view(1))
        leaving = asyncio.create_task(aggregator.until_free())
        await lab.quiet()
        assert not leaving.done()
        await lab.end(view(1))
        await asyncio.wait_for(leaving, 1)

    play(tmp_path, scene)


def test_a_round_whose_end_is_not_heard_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """The control broker was left by the coordinator: by its deadline and a grace time the round is over."""

    async def scene(lab: Lab) -> None:
        await lab.start(FIRST)
        aggregator, loop = lab.aggregators[FIRST], asyncio.get_running_loop()
        await lab.open(view(1))
        began_s = loop.time()
        await aggregator.until_free()
        assert 120 <= loop.time() - began_s <= view(1).plan.deadline_s + 120
        assert aggregator._book.view is not None
        await lab.restart(FIRST)  # where it has gone over to
        assert lab.aggregators[FIRST]._book.view is not None

    play(tmp_path, scene)
