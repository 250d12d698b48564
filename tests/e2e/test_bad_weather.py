"""Loss, duplicates, delay and restarts: a round gives the exact sum over its Freeze, or FAILED, never a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulators.federation import Federation

import coordinator.service as coordinator_service
from coordinator.opening import Opening, Round
from fedpruneshare.link.memory import Weather

pytestmark = [pytest.mark.timeout(170)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """Every round that was opened, as the coordinator held it at that moment."""
    rounds: list[Round] = []
    real = coordinator_service.open_and_apply

    def recording(current: Round, *rest: Any) -> Opening:
        rounds.append(current)
        return real(current, *rest)

    monkeypatch.setattr(coordinator_service, "open_and_apply", recording)
    return rounds


def check_sums(federation: Federation, opened: list[Round]) -> None:
    """The opened words are the plain integer sum over the Freeze, segment by segment, bit for bit."""
    for current in opened:
        view, freeze = current.ledger.view, current.ledger.frozen
        expected = []
        for segment in freeze.segments:
            start, words = sum(view.segment_words[:segment]), view.segment_words[segment]
            total = np.zeros(words, dtype=np.uint64)
            for c in freeze.contributors:
                if c.rung >= segment:
                    total += federation.uploaded[c.device_id, c.upload_id][start : start + words]
            expected.append(total)
        assert np.array_equal(view.scheme.open(current.ledger.sums()), np.concatenate(expected))


def outcomes(federation: Federation) -> list[dict[str, Any]]:
    lines = (federation.folder / "coordinator" / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_in_fair_weather_everybody_counts(tmp_path: Path, opened: list[Round]) -> None:
    federation = Federation(tmp_path, 1, Weather(), rounds=3)
    assert await federation.run() == 0
    assert [(line["phase"], line["contributors"], line["verified"]) for line in outcomes(federation)] == [
        ("APPLIED", 10, True)
    ] * 3
    assert len(opened) == 3
    check_sums(federation, opened)


@pytest.mark.parametrize("seed", range(4))
async def test_in_bad_weather_every_sum_is_exact(tmp_path: Path, opened: list[Round], seed: int) -> None:
    weather = Weather(loss=0.08, duplication=0.15, delay_s=(0.0, 0.01))
    federation = Federation(tmp_path, seed, weather)
    assert await federation.run() == 0
    assert [line["phase"] for line in outcomes(federation)] == ["APPLIED", "APPLIED"]
    assert len(opened) == 2
    check_sums(federation, opened)


async def test_answers_do_not_pile_up_on_a_link_that_flaps(tmp_path: Path, opened: list[Round]) -> None:
    """Each lost message also drops a connection, and each reconnect repeats answers: that must not feed on itself."""
    federation = Federation(tmp_path, 103, Weather(loss=0.3, duplication=0.5, delay_s=(0.0, 0.05)))
    await federation.run()  # whether every round is APPLIED is a matter of luck in such weather
    check_sums(federation, opened)
    traffic = [link.traffic.sent_messages for link in federation.links]
    assert sum(traffic) < 3000


@pytest.mark.parametrize("seed", range(3))
async def test_aggregators_that_restart_lose_nothing(tmp_path: Path, opened: list[Round], seed: int) -> None:
    federation = Federation(tmp_path, seed, Weather(loss=0.03, duplication=0.1, delay_s=(0.0, 0.02)))
    code = await federation.run(faults=True)
    found = outcomes(federation)
    check_sums(federation, opened)
    assert len(opened) == sum(line["phase"] == "APPLIED" for line in found)
    assert code == (0 if all(line["phase"] == "APPLIED" for line in found) else 1)
    assert opened, found
