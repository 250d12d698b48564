"""What the coordinator does by itself; whole rounds are in tests/e2e."""

from __future__ import annotations

import time

from builders import view

from coordinator.ledger import RoundLedger
from coordinator.service import Coordinator
from coordinator.store import OpenRound


def test_an_open_round_ends_by_its_own_plan() -> None:
    """Settings may have another deadline after a restart; the devices have this one."""
    coordinator = object.__new__(Coordinator)
    coordinator._ledger = RoundLedger(view(deadline_s=600.0))
    assert 580.0 < coordinator._remaining_s(OpenRound(1, b"", time.time() - 10.0)) <= 590.0
    assert coordinator._remaining_s(OpenRound(1, b"", time.time() - 1000.0)) == 0.0
    assert coordinator._remaining_s(OpenRound(1, b"", time.time() + 1000.0)) == 600.0  # a clock that was set back
