"""A disk that is full: the round waits and goes on, and nothing half-made is ever seen (docs/protocol.md §9.3)."""

from __future__ import annotations

import asyncio
import errno
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from simulators.federation import CrashError, Federation

import coordinator.store as store_module
import coordinator.workbench as workbench_module
from coordinator.planning import ModelState
from coordinator.settings import SharingSettings
from coordinator.store import RoundStore
from fedpruneshare import crash_points
from fedpruneshare.errors import StoreDamagedError, StoreError
from fedpruneshare.link.memory import Weather
from fedpruneshare.storage import write_atomically

BUNDLE = b"b" * 32


def model(applied: int, size: int = 5) -> ModelState:
    return ModelState(np.arange(size, dtype=np.uint16), np.ones(2, np.float32), (0.1, 0.2), (0.3,), applied)


def fill(store: RoundStore) -> None:
    """Leave SQLite no page more than it has."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_step_for_which_there_is_no_room_is_not_made_at_all(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.save_first_model(model(0))
    store.begin(1, b"plan", 0.0, b"s" * 32)
    fill(store)
    for _ in range(2):
        with pytest.raises(StoreError, match="disk with room"):
            store.finish(1, {"round": 1, "phase": "APPLIED"}, model(1, 200_000))
    begun = store.open_round()
    assert begun is not None
    assert begun.seed == b"s" * 32
    found = store.model()
    assert found is not None
    assert found.applied == 0
    store._db.execute("PRAGMA max_page_count = 100000")
    store.finish(1, {"round": 1, "phase": "APPLIED"}, model(1, 200_000))
    found = store.model()
    assert found is not None
    assert (found.applied, store.open_round()) == (1, None)


@pytest.mark.parametrize("stage", ["coordinator.plan-made", "coordinator.freeze-chosen", "coordinator.reconstructed"])
def test_a_round_waits_for_room_and_goes_on(tmp_path: Path, stage: str) -> None:
    federation = Federation(tmp_path, 5, Weather(), rounds=1, sharing=SharingSettings(checksum=True))
    stores: list[RoundStore] = []
    make = RoundStore.__init__

    def keep(store: RoundStore, *arguments: object) -> None:
        make(store, *arguments)  # type: ignore[arg-type]
        stores.append(store)

    attempts = 0

    def fill_for_a_while(point: str) -> None:
        nonlocal attempts
        if point != stage:
            return
        attempts += 1
        if attempts == 1:
            # Nothing more may be written, as on a full disk; lifted from outside, while the service waits.
            stores[0]._db.execute("PRAGMA query_only = ON")
            asyncio.get_running_loop().call_later(0.4, lambda: stores[0]._db.execute("PRAGMA query_only = OFF"))

    with patch.object(RoundStore, "__init__", keep):
        crash_points.observe(fill_for_a_while)
        assert federation.run() == 0
    assert attempts >= 2
    (line,) = federation.outcomes()
    assert (line["phase"], line["contributors"]) == ("APPLIED", 10)
    federation.check_sums()


@pytest.mark.parametrize("module", [store_module, workbench_module])
def test_files_beside_the_database_are_written_when_there_is_room(tmp_path: Path, module: object) -> None:
    """The round is committed by then: `model.onnx` and `rounds.jsonl` follow, whole."""
    federation, refusals = Federation(tmp_path, 6, Weather(), rounds=1), 0

    def full(path: Path, *parts: bytes) -> None:
        nonlocal refusals
        if refusals < 2:
            refusals += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, *parts)

    with patch.object(module, "write_atomically", full):
        assert federation.run() == 0
    assert refusals == 2
    assert [line["phase"] for line in federation.outcomes()] == ["APPLIED"]
    store = RoundStore(tmp_path / "coordinator", federation.bundle)
    state = store.model()
    assert state is not None
    assert (tmp_path / "coordinator" / "model.onnx").read_bytes() == federation.rendered(state)


def test_a_journal_line_cut_by_a_full_disk_is_written_anew(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.write_journal()
    store.finish(1, {"round": 1, "phase": "FAILED"}, None)

    def cut(path: Path, mode: str, **_: object) -> object:
        path.write_text('{"round": 1, "pha')
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.object(store_module, "open", cut, create=True), pytest.raises(StoreError, match="No space left"):
        store.write_journal()
    store.finish(2, {"round": 2, "phase": "FAILED"}, None)
    store.write_journal()
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]


# --------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE models SET coded = X'0000010002000300FF00'", "model of 0 applied rounds"),
        ("UPDATE models SET applied = 7", "model of 7 applied rounds"),
        ("UPDATE rounds SET plan = X'00'", "round 1 is not as it was written"),
        ("UPDATE rounds SET freeze = NULL", "round 1 is not as it was written"),
        ("UPDATE rounds SET seed = X'00'", "round 1 is not as it was written"),
    ],
)
def test_what_nobody_wrote_is_never_gone_on_from(tmp_path: Path, statement: str, what: str) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    store.save_first_model(model(0))
    store.begin(1, b"plan", 0.0, b"s" * 32)
    store.freeze(1, b"freeze")
    store.close()
    with sqlite3.connect(tmp_path / "rounds.sqlite") as database:
        database.execute(statement)
    database.close()
    store = RoundStore(tmp_path, BUNDLE)
    with pytest.raises(StoreDamagedError, match=what):
        store.model() if "model" in what else store.open_round()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "rounds.sqlite").write_bytes(b"not a database at all" * 500)
    with pytest.raises(StoreDamagedError, match="is damaged"):
        RoundStore(tmp_path, BUNDLE)


def test_a_crash_inside_a_step_leaves_the_step_unmade(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)

    def crash(point: str) -> None:
        if point.endswith(".before"):
            raise CrashError(point)

    crash_points.observe(crash)
    try:
        with pytest.raises(CrashError):
            store.begin(1, b"plan", 0.0)
    finally:
        crash_points.observe(None)
    assert store.open_round() is None
    assert store.next_round_id() == 1


def test_plans_of_long_ago_go_and_outcomes_stay(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    with patch.object(store_module, "_KEPT_PLANS", 3):
        for number in range(1, 8):
            store.begin(number, b"plan", 0.0)
            store.finish(number, {"round": number, "phase": "FAILED"}, replace(model(number)))
    assert [row[0] for row in store._rows("SELECT round_id FROM rounds WHERE plan IS NOT NULL")] == [5, 6, 7]
    assert len(store.outcomes()) == 7


def test_rounds_of_another_epoch_begin_beyond_all_of_this_one(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, BUNDLE)
    assert store.next_round_id() == 1
    store.begin(1, b"plan", 0.0)
    assert store.next_round_id(2) == 2 * 2**32 + 1
    store.begin(2 * 2**32 + 1, b"plan", 0.0)
    assert store.next_round_id(2) == 2 * 2**32 + 2
