"""A freeze quorum with the real coordinator, dealer checks, bad weather and aggregators that restart at random."""

from __future__ import annotations

from pathlib import Path

from simulators.federation import Federation

from coordinator.settings import SharingSettings
from fedpruneshare.link.memory import Weather


def test_rounds_with_a_quorum_are_exact_though_aggregators_come_and_go(tmp_path: Path) -> None:
    weather = Weather(loss=0.05, duplication=0.1, delay_s=(0.0, 0.02))
    sharing = SharingSettings(freeze_quorum=3, dealer_checks=1)
    federation = Federation(tmp_path, 3, weather, rounds=3, sharing=sharing)
    federation.run(faults=True)
    federation.check_sums()
    assert "APPLIED" in [line["phase"] for line in federation.outcomes()]
