"""What a run says, and does, when a broker of its fleet ends though nobody killed it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from fedpruneshare.errors import RunError
from testbed.fleet import Fleet
from testbed.ledger.journal import Journal
from testbed.scenario import load_scenario
from testbed.watching.following import Follower
from testbed.watching.progress import Progress
from testbed.watching.state import RunState


class LookedError(Exception):
    """The run went on to look at its devices."""


def following(lost: dict[str, int], said: list[str]) -> Follower:
    """Follows a fleet without processes, up to its first look at the devices."""

    def wait_for(condition: Callable[[], bool], _timeout_s: float, _what: str) -> bool:
        return condition()

    def read() -> None:
        raise LookedError

    fleet = SimpleNamespace(
        scenario=load_scenario("demo"), wait_for=wait_for, lost_brokers=lambda: lost,
        events=SimpleNamespace(note=lambda text: said.append(f"event: {text}")),
    )  # fmt: skip
    journal = SimpleNamespace(book=SimpleNamespace(read=read))
    return Follower(cast(Fleet, fleet), cast(Journal, journal), Progress(echo=said.append), RunState())


def test_without_the_control_broker_a_run_is_over() -> None:
    said: list[str] = []
    with pytest.raises(RunError, match="the control broker ended by itself with code -9"):
        following({"control": -9}, said).follow()


def test_an_aggregators_broker_that_ended_is_told_once_and_noted() -> None:
    said: list[str] = []
    follower = following({"aggregator-2": -11}, said)
    for _ in range(2):
        with pytest.raises(LookedError):
            follower.follow()
    text = "the broker of aggregator-2 ended by itself with code -11"
    assert said == [f"event: {text}", text]
