"""What a board goes through: warming as its profile says, throttling and recovering, draining to the end; pure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.board.profiles import board_names, load_board
from testbed.boards.battery import Battery, SpentJoules
from testbed.boards.board import HEAT, Board
from testbed.boards.settings import BoardEmulation
from testbed.boards.thermal import BoardHeat, steady_c

PI4 = load_board("raspberry-pi-4b")


def board(ambient_c: float = 60.0, **settings: float) -> Board:
    heat = BoardHeat.idle(PI4, BoardEmulation(cpu="auto", thermal=True, ambient_c=ambient_c, **settings))  # type: ignore[arg-type]
    return Board("device-00", PI4, 0.1, heat)


def test_an_idle_board_is_as_much_warmer_than_the_air_as_what_it_draws_says() -> None:
    """Pi 4: 13 °C for 1.4 W more, so 1.6 W idle are 14.9 °C."""
    assert steady_c(PI4, 25.0, 0.0) == pytest.approx(25 + 13 / 1.4 * 1.6)
    assert steady_c(PI4, 25.0, 1.0) == pytest.approx(25 + 13 / 1.4 * 3.0)
    assert board(25.0).heat is not None
    assert board(25.0).heat.temperature_c == pytest.approx(39.857, abs=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", board_names())
def test_no_profile_throttles_idle_at_room_temperature(name: str) -> None:
    profile = load_board(name)
    assert steady_c(profile, 25.0, 0.0) < profile.thermal.limit_c


def test_after_one_time_constant_63_percent_of_the_way_is_done() -> None:
    heat = board(25.0).heat
    assert heat is not None
    heat.pass_time(PI4.thermal.time_constant_s, 1.0)
    assert heat.temperature_c == pytest.approx(39.857 + 13 * (1 - math.exp(-1)), abs=1e-3)


@given(steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 3)), max_size=30), ambient_c=st.floats(-40, 100))
def test_temperature_stays_between_idle_and_busy(steps: list[tuple[float, float]], ambient_c: float) -> None:
    heat = BoardHeat.idle(PI4, BoardEmulation(ambient_c=ambient_c))
    for seconds, use in steps:
        heat.pass_time(seconds, use)
        assert steady_c(PI4, ambient_c, 0) - 1e-9 <= heat.temperature_c <= steady_c(PI4, ambient_c, 1) + 1e-9


def test_how_often_one_looks_does_not_change_how_warm_it_gets() -> None:
    once, often = BoardHeat.idle(PI4, BoardEmulation()), BoardHeat.idle(PI4, BoardEmulation())
    once.pass_time(60.0, 0.7)
    for _ in range(240):
        often.pass_time(0.25, 0.7)
    assert often.temperature_c == pytest.approx(once.temperature_c)


def test_a_hot_board_throttles_and_recovers_only_when_it_is_cooler_by_the_hysteresis() -> None:
    """60 °C of air: 74.9 °C idle, 87.9 °C busy, limit 80 °C."""
    one = board()
    news = [text for _ in range(600) for text in one.warm(1.0, 0.1)]
    assert [str(item.text).split(" (")[0] for item in news] == ["device-00 throttled at 80.0 °C"]
    assert one.slowed == {HEAT: 0.67}
    assert one.share_now == pytest.approx(0.067)
    calm = 0
    while one.is_throttled:
        news += one.warm(1.0, 0.0)
        calm += 1
    assert one.heat is not None
    assert one.heat.temperature_c == pytest.approx(77.0, abs=0.1)
    assert news[-1].text.startswith("device-00 back at full speed at 77")
    assert calm > 10
    assert one.share_now == pytest.approx(0.1)


def test_being_throttled_cools_because_less_is_done() -> None:
    """At 67 % it settles 4.3 °C lower than at full clock: 60 + 14.9 + 0.67 · 13 = 83.6 °C."""
    one = board()
    for _ in range(3000):
        list(one.warm(1.0, one.share_now))
    assert one.heat is not None
    assert one.heat.temperature_c == pytest.approx(83.57, abs=0.05)


def test_a_board_without_heat_never_throttles() -> None:
    assert list(Board("device-00", PI4, 0.1).warm(1000.0, 100.0)) == []


# --------------------------------------------------------------------------- battery


def test_a_battery_loses_what_was_spent() -> None:
    battery = Battery(1.0, 90.0)
    assert battery.percent == 90.0
    battery.spent_j = 360.0
    assert battery.percent == pytest.approx(80.0)
    battery.spent_j = 1e6
    assert battery.percent == 0.0
    assert battery.is_empty


def test_a_board_goes_dark_once() -> None:
    one = Board("device-00", PI4, 0.1, battery=Battery(0.01, 50.0))
    assert list(one.drain(17.0)) == []
    (news,) = one.drain(18.5)
    assert news.is_gone
    assert "battery empty" in news.text
    assert list(one.drain(19.0)) == []


def test_a_killed_device_is_told_once_for_each_time() -> None:
    one = Board("device-00", PI4, 0.1)
    assert list(one.count_kills(0, 100)) == []
    (news,) = one.count_kills(1, 100)
    assert news.is_gone
    assert "100 MiB" in news.text
    assert list(one.count_kills(1, 100)) == []


def test_joules_are_read_on_from_where_the_ledger_ended(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    spent = SpentJoules(ledger)
    assert spent.read() == 0.0
    lines = [
        {"round": 0, "energy": {"idle": {"joules": 2.0}}},
        {"round": 1, "energy": {"train": {"joules": 3.5}, "send": {"joules": None}}},
        {"round": 2, "status": "killed"},
    ]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"round": 2, "ener')
    assert spent.read() == 5.5
    assert spent.read() == 5.5
    ledger.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1]]))
    assert spent.read() == 9.0
