"""What the coordinator must find again after a restart (docs/protocol.md §9.3)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.averaging import ServerMoments
from coordinator.planning import AvailableDevices, ModelState
from coordinator.store import RoundStore
from fedpruneshare.errors import SettingsError, StoreDamagedError

BUNDLE = b"b" * 32


def model(applied: int) -> ModelState:
    return ModelState(
        np.arange(5, dtype=np.uint16) + applied, np.ones(2, np.float32) * applied, (0.1, 0.2), (0.3,), applied
    )


def test_what_a_server_optimiser_remembers_outlives_a_restart(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    moments = ServerMoments(np.arange(7, dtype=np.float32), np.arange(7, dtype=np.float32) ** 2)
    store.save_first_model(replace(model(0), moments=moments))
    found = reopened(store).model()
    assert found is not None
    assert found.moments is not None
    assert np.array_equal(found.moments.first, moments.first)
    assert np.array_equal(found.moments.second, moments.second)


def test_supports_of_the_last_round_outlive_a_restart(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.save_first_model(model(0))
    found = store.model()
    assert found is not None
    assert found.last_rungs is None
    store.finish(
        1,
        {"round": 1, "phase": "APPLIED"},
        replace(model(1), last_rungs=np.array([0, 1, 255, 1, 0], np.uint8), last_channels=(b"ab", b"")),
    )
    found = reopened(store).model()
    assert found is not None
    assert found.last_rungs is not None
    assert found.last_rungs.tolist() == [0, 1, 255, 1, 0]
    assert found.last_channels == (b"ab", b"")


def test_the_rung_that_a_device_was_left_bounds_what_it_is_expected_to_take(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.greet({"device-1": 3})
    store.note_rung("device-1", 1)
    store.note_rung("device-9", 1)  # never heard of
    assert store.fleet(2) == AvailableDevices({"device-1": 3}, {"device-1": 1})
    assert store.fleet(2).likely() == {"device-1": 1}
    store.note_rung("device-1", None)
    assert store.fleet(2) == AvailableDevices({"device-1": 3})
    store.note_rung("device-1", 0)
    store.greet({"device-1": 3})
    assert store.fleet(2) == AvailableDevices({"device-1": 3})


def reopened(store: RoundStore) -> RoundStore:
    store.close()
    return RoundStore(store.folder, BUNDLE)


def test_a_round_is_found_where_it_stood(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    assert store.open_round() is None
    assert store.model() is None
    store.save_first_model(model(0))
    assert store.next_round_id() == 1
    store.begin(1, b"plan", 100.0)
    store = reopened(store)
    begun = store.open_round()
    assert begun is not None
    assert (begun.round_id, begun.plan, begun.started_at, begun.freeze) == (1, b"plan", 100.0, None)
    store.freeze(1, b"first")
    store.freeze(1, b"second")
    store = reopened(store)
    begun = store.open_round()
    assert begun is not None
    assert begun.freeze == b"first"
    assert store.last_plan() == b"plan"


def test_outcome_and_model_are_one_step(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.save_first_model(model(0))
    store.begin(1, b"plan", 0.0)
    store.finish(1, {"round": 1, "phase": "APPLIED"}, model(1))
    store.finish(2, {"round": 2, "phase": "FAILED"}, None)  # failed before it was planned
    store = reopened(store)
    assert store.open_round() is None
    assert store.next_round_id() == 3
    assert [outcome["round"] for outcome in store.outcomes()] == [1, 2]
    found = store.model()
    assert found is not None
    assert found.applied == 1
    assert np.array_equal(found.coded, model(1).coded)
    assert np.array_equal(found.vectors, model(1).vectors)
    assert (found.weight_clips, found.vector_clips) == ((0.1, 0.2), (0.3,))


def test_the_journal_is_written_anew_after_a_crash(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    for number in (1, 2):
        store.finish(number, {"round": number, "phase": "FAILED"}, None)
        store.write_journal()
    journal = tmp_path / "rounds.jsonl"
    journal.write_text(journal.read_text()[:-9])  # cut in the middle of its last line
    reopened(store).write_journal()
    assert [json.loads(line)["round"] for line in journal.read_text().splitlines()] == [1, 2]


def test_a_store_of_another_task_is_refused(tmp_path: Path) -> None:
    RoundStore(tmp_path, BUNDLE).close()
    with pytest.raises(SettingsError, match=r"was begun with task bundle 6262.*, and `bundle` is 6363"):
        RoundStore(tmp_path, b"c" * 32)


def test_devices_that_stay_away_are_left_out_until_they_are_heard_of(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    for device in ("a", "b"):
        store.greet({device: 1})
    store.note_round(("a", "b"), {"a"})
    assert store.fleet(2).limits == {"a": 1, "b": 1}
    store.note_round(("a", "b"), {"a"})
    assert store.fleet(2).limits == {"a": 1}
    store.greet({"b": 0})
    assert store.fleet(2).limits == {"a": 1, "b": 0}


def test_only_so_many_models_are_kept_and_the_file_is_private(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    for applied in range(8):
        store.save_first_model(model(applied))
    assert store._db.execute("SELECT COUNT(*) FROM models").fetchone() == (3,)
    assert (tmp_path / "rounds.sqlite").stat().st_mode & 0o077 == 0


def test_freezes_of_failed_rounds_count_until_one_is_applied_or_they_are_long_ago(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    for number, phase in enumerate(("FAILED", "APPLIED", "FAILED", "FAILED", "FAILED"), 1):
        store.begin(number, b"plan", 0.0)
        if number != 4:
            store.freeze(number, bytes([number]))
        store.finish(number, {"round": number, "phase": phase}, None)
    assert store.frozen_in_vain(1) == [b"\5", b"\3"]
    assert store.frozen_in_vain(5) == [b"\5"]


def test_earlier_freezes_say_who_summed_them_and_are_checked_when_they_are_read(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    for number, phase in enumerate(("APPLIED", "FAILED"), 1):
        store.begin(number, b"plan", 0.0, bytes(32))
        store.freeze(number, bytes([number]))
        names = ["a", "b"] if phase == "APPLIED" else []
        store.finish(number, {"round": number, "phase": phase, "aggregators": names}, None)
    store.begin(3, b"plan", 0.0)
    store.freeze(3, b"of the open round")
    store.close()
    again = RoundStore(tmp_path, BUNDLE)
    assert [(old.freeze, old.is_applied, sorted(old.summed_by)) for old in again.frozen()] == [
        (b"\2", False, []),
        (b"\1", True, ["a", "b"]),
    ]
    again._db.execute("UPDATE rounds SET freeze = ? WHERE round_id = 1", (b"\3",))
    assert again.frozen_in_vain(2) == [b"\2"]
    with pytest.raises(StoreDamagedError, match="round 1 is not as it was written"):
        again.frozen()
