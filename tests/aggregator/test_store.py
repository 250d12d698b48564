"""The aggregator's journal keeps what was answered and drops what was summed (docs/protocol.md §9.2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.store import NewChunk, ShareStore
from aggregator.uploads import Attempt
from fedpruneshare.errors import SettingsError
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
    assert store.attempts(1) == []
    latest = store.latest()
    assert latest is not None
    assert latest.answer == b"sum"
    store.close()
    assert all(canary not in path.read_bytes() for path in tmp_path.iterdir())


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
