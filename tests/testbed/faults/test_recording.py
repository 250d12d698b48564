"""What a real process writes to its history."""

from __future__ import annotations

import json
from pathlib import Path

import builders

from fedpruneshare.messages import encode
from testbed.faults.history import History
from testbed.faults.recording import Recorder


def test_a_plan_that_is_said_again_is_no_new_plan(tmp_path: Path) -> None:
    """After a lost connection it is signed once more, perhaps when its round's model has been applied already."""
    recorder = Recorder(History(tmp_path / "history.jsonl", lambda: 1.0), "coordinator")
    for plan in (builders.plan(1), builders.plan(1), builders.plan(1, deadline_s=99.0), builders.plan(2)):
        recorder._signed("coordinator", "round-plan", encode(plan))
    events = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(event["event"], event["round"]) for event in events] == [("plan", 1), ("plan", 1), ("plan", 2)]
    assert len({event["plan"] for event in events}) == 3
