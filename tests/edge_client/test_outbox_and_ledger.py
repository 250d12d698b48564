"""What a device must not lose: its upload, and its byte counts (docs/protocol.md §4.2, §9.1)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edge_client.byte_ledger import ByteLedger
from edge_client.outbox import Outbox, Upload
from fedpruneshare.sharing.prg import Prg

PLAN = b"p" * 32


def upload() -> Upload:
    words, masks = np.arange(1000, dtype="<u4"), np.arange(2, dtype="<u4")
    seeds = {1: os.urandom(32), 2: os.urandom(32)}
    return Upload(PLAN, 3, os.urandom(16), 1, 40, Prg.AES_256_CTR, seeds, masks, os.urandom(32), words)


def test_an_upload_is_found_again_by_its_plan_only(tmp_path: Path) -> None:
    made = upload()
    Outbox(tmp_path).put(made)
    found = Outbox(tmp_path).get(PLAN)
    assert found is not None
    assert (found.upload_id, found.seeds, found.rung, found.weight) == (made.upload_id, made.seeds, 1, 40)
    assert (found.prg, found.key) == (Prg.AES_256_CTR, made.key)
    assert np.array_equal(found.words, made.words)
    assert np.array_equal(found.masks, made.masks)
    assert Outbox(tmp_path).get(b"q" * 32) is None
    assert (tmp_path / "upload.msgpack").stat().st_mode & 0o077 == 0
    assert made.seeds[1].hex() not in repr(made)


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", None])
def test_a_damaged_upload_is_none(tmp_path: Path, damage: bytes | None) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(upload())
    path = tmp_path / "upload.msgpack"
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    assert outbox.get(PLAN) is None


def test_a_finished_round_stays_finished(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(upload())
    assert outbox.last_round() == 0
    outbox.finish(7)
    assert Outbox(tmp_path).last_round() == 7
    assert Outbox(tmp_path).get(PLAN) is None
    outbox.finish(5)
    assert Outbox(tmp_path).last_round() == 7
    (tmp_path / "done").write_bytes(b"seven")
    assert Outbox(tmp_path).last_round() == 0


def lines(folder: Path) -> list[dict[str, object]]:
    path = folder / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_bytes_outside_rounds_stand_in_round_0(tmp_path: Path) -> None:
    ledger = ByteLedger(tmp_path)
    ledger.sent("control", 100)
    ledger.begin(1)
    ledger.sent("shares", 10)
    ledger.sent("shares", 20)
    ledger.received("model", 7)
    ledger.entry.status = "uploaded"
    ledger.end()
    ledger.received("other", 5)
    ledger.begin(2)
    ledger.end()
    found = lines(tmp_path)
    assert [(line["round"], line["status"]) for line in found] == [(0, ""), (1, "uploaded"), (0, ""), (2, "")]
    assert found[1]["up"] == {"shares": 30, "resent": 0, "control": 0}
    assert found[2]["down"] == {"model": 0, "plan": 0, "receipts": 0, "other": 5}


def test_a_killed_process_loses_no_byte(tmp_path: Path) -> None:
    ledger = ByteLedger(tmp_path)
    ledger.begin(4)
    ledger.sent("shares", 33)
    del ledger  # as SIGKILL would: nothing is closed
    again = ByteLedger(tmp_path)
    assert [(line["round"], line["status"], line["up"]["shares"]) for line in lines(tmp_path)] == [(4, "killed", 33)]  # type: ignore[index]
    again.end()
    ByteLedger(tmp_path).end()
    assert len(lines(tmp_path)) == 1
