"""The aggregator's journal keeps what was answered and drops what was summed (docs/protocol.md §9.2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aggregator.store import NewChunk, ShareStore, SumGiven
from aggregator.uploads import Attempt
from fedpruneshare.errors import SettingsError, StoreDamagedError, StoreError
from fedpruneshare.floors import KEPT_SETS
from fedpruneshare.messages import Contribution


@pytest.fixture
def store(tmp_path: Path) -> ShareStore:
    made = ShareStore(tmp_path, 1000)
    made.open_round(1, b"plan", 50.0)
    return made


def attempt(device: str = "device-01", upload: int = 1) -> Attempt:
    return Attempt(device, bytes([upload]) * 16, 2, "chacha20", 3)


def new_chunk(chunk: int, data: bytes) -> NewChunk:
    return NewChunk(attempt(), chunk, data, b"\1" * 8)


def test_chunks_come_back_in_order(store: ShareStore, tmp_path: Path) -> None:
    for chunk, data in ((2, b"cc"), (0, b"aa"), (1, b"bb"), (1, b"xx")):
        store.add_chunks(1, [new_chunk(chunk, data)])
    store.close()
    again = ShareStore(tmp_path, 1000)
    assert again.share(1, "device-01", attempt().upload_id) == b"aabbcc"
    (found,) = again.attempts(1)
    assert (found.device_id, found.rung, found.prg, found.chunks, found.stored) == (
        "device-01",
        2,
        "chacha20",
        3,
        {0, 1, 2},
    )
    shares = dict(again.shares(1, (Contribution("device-01", attempt().upload_id, 2),)))
    assert list(shares.values()) == [b"aabbcc"]


def test_the_first_freeze_stands(store: ShareStore, tmp_path: Path) -> None:
    store.freeze(1, b"first", b"1" * 32)
    store.freeze(1, b"second", b"2" * 32)
    store.close()
    latest = ShareStore(tmp_path, 1000).latest()
    assert latest is not None
    assert (latest.freeze, latest.freeze_digest) == (b"first", b"1" * 32)


def test_a_sum_takes_the_shares_with_it(store: ShareStore, tmp_path: Path) -> None:
    canary = b"a share that must be gone for good"
    store.add_chunks(1, [new_chunk(0, canary)])
    store.burn(1, b"sum")
    assert all(canary not in path.read_bytes() for path in tmp_path.iterdir())  # nor in the log, while it goes on
    assert [attempt.stored for attempt in store.attempts(1)] == [set()]  # only that there was one is known
    assert store.is_burned()
    latest = store.latest()
    assert latest is not None
    assert latest.answer == b"sum"
    store.close()
    assert all(canary not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("how", ["summed", "closed", "followed"])
def test_many_shares_are_burned_in_slices_also_after_power_failed_in_between(how: str, tmp_path: Path) -> None:
    canary, store = os.urandom(24), ShareStore(tmp_path, 1 << 30)
    store.open_round(1, b"plan", 50.0)
    store.add_chunks(1, [new_chunk(chunk, canary * 10_000) for chunk in range(40)])
    if how == "summed":
        store.burn(1, b"sum")
    elif how == "closed":
        store.close_round(1)
    else:
        store.open_round(2, b"next", 60.0)
    left = 40 - 8  # of 2 MiB
    assert not store.is_burned()
    assert len(chunks_of(store)) == left
    store.burn_more()
    (tmp_path / "later").mkdir()
    for name in ("shares.sqlite", "shares.sqlite-wal"):  # what a process finds after this one was killed
        (tmp_path / "later" / name).write_bytes((tmp_path / name).read_bytes())
    store.close()
    again = ShareStore(tmp_path / "later", 1 << 30)
    assert not again.has_room_for((1 << 30) - 100_000)
    for _ in range(3):
        assert not again.is_burned()
        again.burn_more()
    assert again.is_burned()
    assert again.has_room_for(1 << 20)
    assert (again.attempts(1) == []) is (how != "summed")
    assert all(canary not in path.read_bytes() for path in (tmp_path / "later").iterdir())


def chunks_of(store: ShareStore) -> list[tuple[int]]:
    return store._db.execute("SELECT chunk FROM chunks").fetchall()


def test_nothing_of_an_open_round_is_burned(store: ShareStore) -> None:
    store.add_chunks(1, [new_chunk(0, b"aa")])
    assert store.is_burned()
    store.burn_more()
    store.freeze(1, b"freeze", bytes(32))
    store.burn_more()
    assert store.share(1, "device-01", attempt().upload_id) == b"aa"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("sums_given", "freeze", b"freezE"),
        ("sums_given", "supports", b"othersupports"),
        ("sums_given", "model_version", 4),
        ("accepted_by", "aggregator_id", "aggregator-3"),
        ("accepted_by", "of", bytes(32)),
        ("uploads", "rung", 1),
        ("chunks", "data", b"ab"),
        ("chunks", "signer", bytes(8)),
        ("rounds", "freeze_digest", bytes(32)),
    ],
)
def test_a_flipped_bit_is_found_before_it_makes_another_sum(
    table: str, column: str, value: object, store: ShareStore
) -> None:
    store.add_chunks(1, [new_chunk(0, b"aa")])
    store.freeze(1, b"freeze", b"1" * 32)
    store.note_acceptance(1, b"1" * 32, "aggregator-2")
    store.note_sum(SumGiven(1, 3, b"supports", b"freeze"))

    def read() -> None:
        store.latest()
        store.acceptances(1)
        store.sums_given(2, 4, 1)
        store.attempts(1)
        store.share(1, "device-01", attempt().upload_id)

    read()
    store._db.execute(f"UPDATE {table} SET {column} = ?", (value,))
    with pytest.raises(StoreDamagedError, match="not as it was written"):
        read()


def test_the_next_round_drops_what_is_left(store: ShareStore) -> None:
    store.add_chunks(1, [new_chunk(0, b"aa")])
    store.decline(1, "device-02")
    store.open_round(2, b"next", 60.0)
    assert store.attempts(1) == []
    assert store.declined(1) == []
    latest = store.latest()
    assert latest is not None
    assert (latest.round_id, latest.plan, latest.is_closed) == (2, b"next", False)
    store.close_round(2)
    latest = store.latest()
    assert latest is not None
    assert latest.is_closed


def test_the_store_has_a_limit(store: ShareStore, tmp_path: Path) -> None:
    assert store.has_room_for(1000)
    store.add_chunks(1, [new_chunk(0, bytes(900))])
    assert not store.has_room_for(101)
    store.close()
    again = ShareStore(tmp_path, 1000)
    assert not again.has_room_for(101)
    again.keep_uploads(1, "device-01", [])
    assert again.has_room_for(1000)


def test_an_upload_replaces_a_decline(store: ShareStore) -> None:
    store.decline(1, "device-01")
    store.add_chunks(1, [new_chunk(0, b"aa")])
    assert store.declined(1) == []


def test_files_are_private_and_damage_is_named(tmp_path: Path) -> None:
    ShareStore(tmp_path / "a", 10).close()
    assert (tmp_path / "a" / "shares.sqlite").stat().st_mode & 0o077 == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "shares.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(SettingsError, match=r"shares\.sqlite"):
        ShareStore(tmp_path / "b", 10)


# --------------------------------------------------------------------------- a disk that is full, and what is kept


def grow_no_more(store: ShareStore) -> None:
    """As on a full disk."""
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_what_does_not_fit_onto_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    store = ShareStore(tmp_path, 1 << 20)
    store.open_round(1, b"plan", 50.0)
    grow_no_more(store)
    with pytest.raises(StoreError, match="disk is full"):
        store.add_chunks(1, [new_chunk(chunk, bytes(9000)) for chunk in range(3)])
    with pytest.raises(StoreError):
        store.burn(1, bytes(100_000))
    assert store.attempts(1) == []
    latest = store.latest()
    assert latest is not None
    assert latest.answer is None
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.add_chunks(1, [new_chunk(chunk, bytes(9000)) for chunk in range(3)])
    assert store.attempts(1)[0].is_complete
    store.close()
    ShareStore(tmp_path, 1 << 20).close()


def test_shares_are_taken_while_the_disk_could_delete_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ShareStore(tmp_path, 1 << 40)
    store.open_round(1, b"plan", 50.0)
    disk = os.statvfs(tmp_path)  # as it is now: others write and delete meanwhile
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    free = disk.f_bavail * disk.f_frsize
    assert store.has_room_for(free // 4)
    assert not store.has_room_for(free // 2)


def test_the_last_sums_are_kept_for_comparison_and_no_more(tmp_path: Path) -> None:
    store = ShareStore(tmp_path, 1000)
    for number in range(1, KEPT_SETS + 4):
        store.note_sum(SumGiven(number, number // 20, b"", b"freeze"))
        store.note_sum(SumGiven(number, 99, b"", b"again"))  # the first one stands
    newest = KEPT_SETS + 3
    assert [given.round_id for given in store.sums_given(newest + 1, newest // 20, 0)] == [
        60,
        61,
        62,
        63,
        64,
        65,
        66,
        67,
    ]
    assert len(store.sums_given(newest + 1, 0, 1000)) == KEPT_SETS
    assert [given.round_id for given in store.sums_given(newest + 1, 77, 2)] == [newest - 1, newest]
    assert store.sums_given(newest + 1, 99, 0) == []
    assert store.sums_given(5, 0, 0)[-1].round_id == 4


def test_the_folder_stays_small_over_many_rounds(tmp_path: Path) -> None:
    store = ShareStore(tmp_path, 1 << 24)
    sizes = []
    for number in range(1, 40):
        store.open_round(number, bytes(20_000), 50.0)
        store.attend(number, bytes(20_000))
        store.add_chunks(number, [new_chunk(chunk, bytes(60_000)) for chunk in range(3)])
        store.freeze(number, bytes(20_000), bytes(32))
        store.note_sum(SumGiven(number, number, b"", bytes(100)))
        store.burn(number, bytes(60_000))
        store.close_round(number)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes[15:]) <= 1.2 * max(sizes[:15])
