"""Loss, duplicates, delay and restarts: a round gives the exact sum over its Freeze, or FAILED, never a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulators.federation import Federation

from fedpruneshare.link.memory import Weather

pytestmark = [pytest.mark.timeout(300)]


def test_in_fair_weather_everybody_counts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 1, Weather(), rounds=3)
    assert federation.run() == 0
    assert [(line["phase"], line["contributors"], line["verified"]) for line in federation.outcomes()] == [
        ("APPLIED", 10, True)
    ] * 3
    assert len(federation.opened) == 3
    federation.check_sums()


@pytest.mark.parametrize("seed", range(4))
def test_in_bad_weather_every_sum_is_exact(tmp_path: Path, seed: int) -> None:
    weather = Weather(loss=0.08, duplication=0.15, delay_s=(0.0, 0.01))
    federation = Federation(tmp_path, seed, weather)
    assert federation.run() == 0
    assert [line["phase"] for line in federation.outcomes()] == ["APPLIED", "APPLIED"]
    assert len(federation.opened) == 2
    federation.check_sums()


def test_answers_do_not_pile_up_on_a_link_that_flaps(tmp_path: Path) -> None:
    """Each lost message also drops a connection, and each reconnect repeats answers: that must not feed on itself."""
    federation = Federation(tmp_path, 103, Weather(loss=0.3, duplication=0.5, delay_s=(0.0, 0.05)))
    federation.run()  # whether every round is APPLIED is a matter of luck in such weather
    federation.check_sums()
    traffic = [link.traffic.sent_messages for link in federation.links]
    assert sum(traffic) < 3000


@pytest.mark.parametrize("seed", range(3))
def test_aggregators_that_restart_lose_nothing(tmp_path: Path, seed: int) -> None:
    federation = Federation(tmp_path, seed, Weather(loss=0.03, duplication=0.1, delay_s=(0.0, 0.02)))
    code = federation.run(faults=True)
    found = federation.outcomes()
    federation.check_sums()
    assert len(federation.opened) == sum(line["phase"] == "APPLIED" for line in found)
    assert code == (0 if all(line["phase"] == "APPLIED" for line in found) else 1)
    assert federation.opened, found
