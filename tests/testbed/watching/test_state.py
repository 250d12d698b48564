"""What a watched device is said to be doing, and the file other programs read."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.ledger.rounds import DeviceRound
from testbed.watching.state import (
    STATES,
    RunState,
    device_state,
    in_order,
    read_progress,
    what_goes_on,
    write_progress,
)


@pytest.mark.parametrize(
    ("running", "now", "ended", "state"),
    [
        (False, None, None, "offline"),
        (False, DeviceRound(3, "incomplete", phase="train"), None, "offline"),
        (True, None, None, "idle"),
        (True, None, DeviceRound(2, "uploaded"), "idle"),
        (True, DeviceRound(0), DeviceRound(2, "uploaded"), "idle"),
        (True, DeviceRound(3), None, "receiving"),
        (True, DeviceRound(3, "incomplete", phase="receive"), None, "receiving"),
        (True, DeviceRound(3, "incomplete", phase="prune"), None, "pruning"),
        (True, DeviceRound(3, "incomplete", phase="train"), DeviceRound(2), "training"),
        (True, DeviceRound(3, "incomplete", phase="encode"), None, "encoding"),
        (True, DeviceRound(3, "incomplete", phase="share"), None, "sharing"),
        (True, DeviceRound(3, "incomplete", phase="send"), None, "uploading"),
        (True, DeviceRound(3, "uploaded", phase="idle"), None, "waiting"),
        (True, None, DeviceRound(3, "uploaded"), "waiting"),
        (True, None, DeviceRound(3, "declined", reason="no battery"), "declined"),
        (True, None, DeviceRound(3, "not-in-cohort"), "not asked"),
        (True, None, DeviceRound(3, "incomplete"), "cut short"),
        (True, None, DeviceRound(3, "incomplete", reason="store-full: no room"), "refused"),
        (True, None, DeviceRound(3, "killed"), "cut short"),
    ],
)
def test_states_of_devices(running: bool, now: DeviceRound | None, ended: DeviceRound | None, state: str) -> None:
    assert device_state(running, now, ended, 3) == state
    assert state in STATES


def test_before_the_first_round_everybody_is_idle() -> None:
    assert device_state(True, DeviceRound(0), DeviceRound(0), 0) == "idle"


def test_what_most_of_those_at_work_are_doing_is_what_goes_on() -> None:
    counts = in_order(["waiting", "training", "training", "uploading", "offline", "offline", "offline"])
    assert list(counts.items()) == [("training", 2), ("uploading", 1), ("waiting", 1), ("offline", 3)]
    assert what_goes_on(counts) == "training"
    assert what_goes_on({"waiting": 4, "not asked": 3}) == "closing"
    assert what_goes_on({"idle": 4}) == ""


def test_the_file_is_read_as_it_was_written_and_never_in_parts(tmp_path: Path) -> None:
    state = RunState("demo", "fedavg", 3, "running", 10.0, 72.5, 4, 20, 2, 1, "accuracy", (0.5, 0.6), 100, 200)
    assert read_progress(tmp_path) is None
    write_progress(tmp_path, state)
    assert read_progress(tmp_path) == state
    assert (state.accuracy, state.closed, state.seconds) == (0.6, 3, 62.5)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    (tmp_path / "progress.json").write_text('{"scenario": "de')
    assert read_progress(tmp_path) is None
    (tmp_path / "progress.json").write_text('{"round": 3, "of-tomorrow": 1}')
    assert read_progress(tmp_path) == RunState(round=3)
