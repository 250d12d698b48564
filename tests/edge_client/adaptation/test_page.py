"""docs/adaptation.md: its table is what the boards decide today, its settings are those that exist."""

from __future__ import annotations

import re

import decision_table as shown
import pytest

from edge_client.board.profiles import boards
from edge_client.settings import DeviceLimits

PAGE = shown.PAGE.read_text("utf-8")


def test_the_table_is_what_the_boards_decide() -> None:
    assert shown.page_with_table(PAGE) == PAGE, "out of date: PYTHONPATH=. python tests/decision_table.py"


def test_every_board_meets_three_links() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == [board.name for board in boards()] * len(shown.SCHEDULED)
    assert {row.count("|") + 1 for _, row in rows} == {len(shown.LINKS) * len(shown.DEADLINES_S)}
    assert len(shown.LINKS) == 3


@pytest.mark.parametrize("scheduled", shown.SCHEDULED)
def test_a_slower_link_or_less_time_never_gives_a_board_more(scheduled: float) -> None:
    for board in boards():
        for deadline_s in shown.DEADLINES_S:
            rungs = [shown.decision(board, link, scheduled, deadline_s).rung for link, _ in shown.LINKS]
            assert [-1 if rung is None else rung for rung in rungs] == sorted(
                (-1 if rung is None else rung for rung in rungs), reverse=True
            )


def test_the_page_shows_more_than_one_answer() -> None:
    cells = set(re.findall(r"[0-2–][^|]* (?:plan|deadline|memory|energy|temperature|battery)\b", PAGE))
    assert {"2 plan", "1 deadline", "0 deadline"} <= cells


def test_every_limit_of_a_decision_is_listed_with_its_default() -> None:
    for name in ("rung_max", "memory_mib", "temperature_c", "battery_reserve_percent", "deadline_safety", "up_margin"):
        default = getattr(DeviceLimits(), name)
        said = "none" if default is None else f"{default:g}"
        assert f"| `{name}` | {said} |" in PAGE


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no"):
        shown.page_with_table("# Nothing\n")
