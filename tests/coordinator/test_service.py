"""What the coordinator does by itself; whole rounds are in tests/e2e."""

from __future__ import annotations

import asyncio
from pathlib import Path

from builders import AGGREGATORS
from simulators.federation import Federation

from coordinator.service import remaining_s
from fedpruneshare.link.memory import Weather


def test_an_open_round_ends_by_its_own_plan() -> None:
    """Settings may have another deadline after a restart; the devices have this one."""
    assert remaining_s(1000.0, 600.0, 1010.0) == 590.0
    assert remaining_s(1000.0, 600.0, 2000.0) == 0.0
    assert remaining_s(1000.0, 600.0, 0.0) == 600.0  # a clock that was set back


async def test_devices_that_nobody_could_hear_are_asked_again(tmp_path: Path) -> None:
    """Two rounds without any aggregator: no device missed them, and none says hello again when they are back."""
    federation = Federation(tmp_path, 9, Weather(), rounds=4, deadline_s=0.4, max_failed=2, absent=AGGREGATORS)

    async def come_back() -> None:
        while len(federation.outcomes()) < 2:
            await asyncio.sleep(0.05)
        federation.deadline_s = 12.0
        for name in AGGREGATORS:
            await federation.start_aggregator(name)

    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "rounds.jsonl").touch()
    back = asyncio.create_task(come_back())
    await federation.run()
    await back
    phases = [(line["phase"], line["contributors"]) for line in federation.outcomes()]
    assert phases[:2] == [("FAILED", 0)] * 2
    assert ("APPLIED", 10) in phases[2:]
