"""What the coordinator does by itself; whole rounds are in tests/e2e."""

from __future__ import annotations

from coordinator.service import remaining_s


def test_an_open_round_ends_by_its_own_plan() -> None:
    """Settings may have another deadline after a restart; the devices have this one."""
    assert remaining_s(1000.0, 600.0, 1010.0) == 590.0
    assert remaining_s(1000.0, 600.0, 2000.0) == 0.0
    assert remaining_s(1000.0, 600.0, 0.0) == 600.0  # a clock that was set back
