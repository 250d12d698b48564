"""What a device must not lose: its upload, and its byte counts (docs/protocol.md §4.2, §9.1)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_client import byte_ledger
from edge_client.byte_ledger import ByteLedger
from edge_client.outbox import Outbox, Upload
from edge_client.progress import Progress
from fedpruneshare.errors import PlanError, SettingsError
from fedpruneshare.link import Traffic
from fedpruneshare.messages import Suite
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


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0, 40, 100, -5])
def test_a_flipped_bit_anywhere_is_another_upload_never_this_one(tmp_path: Path, place: int) -> None:
    """With another word or seed under the same id, aggregators would hold points of two polynomials."""
    outbox = Outbox(tmp_path)
    outbox.put(upload())
    flipped(tmp_path / "upload.msgpack", place)
    assert outbox.get(PLAN) is None and outbox.held() is None


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", bytes(4096), None])
def test_a_damaged_upload_is_none(tmp_path: Path, damage: bytes | None) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(upload())
    path = tmp_path / "upload.msgpack"
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    assert outbox.get(PLAN) is None


def test_an_upload_keeps_its_suite(tmp_path: Path) -> None:
    Outbox(tmp_path).put(replace(upload(), suite=Suite.XWING_AES256))
    found = Outbox(tmp_path).held()
    assert found is not None and found.suite is Suite.XWING_AES256


def test_an_upload_larger_than_the_outbox_may_be_is_refused_by_name(tmp_path: Path) -> None:
    large = replace(upload(), words=np.zeros(1 << 18, dtype="<u4"))
    with pytest.raises(SettingsError, match=r"upload of 1\.0 MiB, expected at most limits\.outbox_mib = 1"):
        Outbox(tmp_path, limit_mib=1).put(large)
    assert not (tmp_path / "upload.msgpack").exists()
    Outbox(tmp_path, limit_mib=2).put(large)


def test_a_finished_round_stays_finished(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(upload())
    assert outbox.last_round() == 0
    outbox.finish(7)
    assert Outbox(tmp_path).last_round() == 7
    assert Outbox(tmp_path).get(PLAN) is None
    outbox.finish(5)
    assert Outbox(tmp_path).last_round() == 7


@pytest.mark.parametrize("damage", [b"", b"seven", b'00000000 {"round_id":9}\n', None])
@pytest.mark.parametrize("copy", ["progress-1", "progress-2"])
def test_one_damaged_copy_opens_no_old_round(tmp_path: Path, copy: str, damage: bytes | None) -> None:
    Outbox(tmp_path).finish(7)
    if damage is None:
        flipped(tmp_path / copy, -4)
    else:
        (tmp_path / copy).write_bytes(damage)
    assert Outbox(tmp_path).last_round() == 7
    Outbox(tmp_path).finish(8)
    (tmp_path / copy).unlink()
    assert Outbox(tmp_path).last_round() == 8


def test_with_both_copies_damaged_the_device_says_so(tmp_path: Path) -> None:
    Outbox(tmp_path).finish(7)
    flipped(tmp_path / "progress-1", 2)
    flipped(tmp_path / "progress-2", 20)
    with pytest.raises(SettingsError, match=r"progress-1 and .*progress-2: damaged, expected the rounds"):
        Outbox(tmp_path)


def test_what_was_reached_is_the_furthest_that_either_copy_knows(tmp_path: Path) -> None:
    """As after a power cut between the two."""
    progress = Progress(tmp_path)
    progress.finish(4)
    before = (tmp_path / "progress-2").read_bytes()
    progress.finish(5)
    (tmp_path / "progress-2").write_bytes(before)
    assert Progress(tmp_path).reached.round_id == 5


def test_the_version_of_models_never_falls_but_for_a_new_epoch(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.take_model(0, 1)
    progress.take_model(6, 9)
    again = Progress(tmp_path)
    with pytest.raises(PlanError, match="model version 5, expected 6 or later: it fell"):
        again.check_model(5, 10)
    with pytest.raises(PlanError, match="it fell"):
        again.take_model(5, 10)
    again.take_model(6, 10)  # the same model after a round that FAILED
    assert not again.is_new_epoch(2**32)
    again.take_model(0, 2**32 + 1)  # the root began afresh, after the plan key was lost
    again.take_model(4, 2**32 + 2)
    with pytest.raises(PlanError, match="it fell"):
        Progress(tmp_path).check_model(3, 2**32 + 2)


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


def test_a_process_killed_while_it_ends_an_entry_counts_no_byte_twice(tmp_path: Path) -> None:
    ledger = ByteLedger(tmp_path)
    ledger.begin(3)
    ledger.end()
    ledger.begin(4)
    ledger.sent("shares", 33)
    partial = (tmp_path / "ledger.partial").read_bytes()
    ledger.end()
    (tmp_path / "ledger.partial").write_bytes(partial)  # killed with the line written, and this not yet deleted
    ByteLedger(tmp_path).end()
    assert [(line["round"], line["up"]["shares"]) for line in lines(tmp_path)] == [(3, 0), (4, 33)]  # type: ignore[index]
    assert not (tmp_path / "ledger.partial").exists()


def test_what_arrives_is_counted_by_its_topic_and_by_the_links_alike(tmp_path: Path) -> None:
    ledger, links = ByteLedger(tmp_path), [SimpleNamespace(traffic=Traffic()) for _ in range(2)]
    ledger.watch(links)  # type: ignore[arg-type]
    control, uplink = (link.traffic for link in links)
    control.connects = 1
    control.received("fps/v1/lab/round", 700)  # a plan, not taken up yet
    ledger.begin(1, 700)
    control.received("fps/v1/lab/model/0/3", 5000)
    uplink.received("fps/v1/lab/ack/device-00", 90)
    control.received("fps/v1/lab/outcome", 40)
    control.received("strange", 2)
    uplink.sent(300, lambda: ledger.sent("shares", 300, "aggregator-1"))
    uplink.sent(300, lambda: ledger.sent("resent", 300, "aggregator-1"))
    ledger.end()
    control.received("fps/v1/lab/round", 650)  # published again: the device is through with that round
    ledger.plan_dropped(650)
    control.received("fps/v1/lab/round", 800)  # nobody takes it up any more
    ledger.close()
    first, last = lines(tmp_path)
    assert first["down"] == {"model": 5000, "plan": 700, "receipts": 90, "other": 42}
    assert (first["up"], first["shares_by"]) == ({"shares": 300, "resent": 300, "control": 0}, {"aggregator-1": 300})
    assert first["traffic"] == {
        "sent_bytes": 600, "sent_messages": 2, "received_bytes": 5832, "received_messages": 5, "connects": 1,
    }  # fmt: skip
    assert last["down"] == {"model": 0, "plan": 1450, "receipts": 0, "other": 0}
    assert last["traffic"]["received_bytes"] == 1450  # type: ignore[index]


def test_a_killed_process_leaves_causes_and_link_counts_that_agree(tmp_path: Path) -> None:
    ledger, link = ByteLedger(tmp_path), SimpleNamespace(traffic=Traffic())
    ledger.watch([link])  # type: ignore[list-item]
    ledger.begin(2)
    ledger.enter("send")
    link.traffic.sent(50, lambda: ledger.sent("control", 50))
    link.traffic.received("fps/v1/lab/round", 600)  # of the next round, in which it is killed
    ByteLedger(tmp_path)
    (line,) = lines(tmp_path)
    assert (line["status"], line["phase"]) == ("killed", "send")
    assert (line["up"]["control"], line["down"]["plan"]) == (50, 600)  # type: ignore[index]
    assert (line["traffic"]["sent_bytes"], line["traffic"]["received_bytes"]) == (50, 600)  # type: ignore[index]


def test_a_ledger_that_need_not_survive_writes_lines_alone(tmp_path: Path) -> None:
    ledger = ByteLedger(tmp_path, is_durable=False)
    ledger.begin(1)
    ledger.enter("train")
    ledger.sent("control", 9)
    assert list(tmp_path.iterdir()) == []
    ledger.end()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]
    assert lines(tmp_path)[0]["traffic"] is None


def test_a_ledger_that_has_grown_long_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ledger, "_MOST_BYTES", 2000)
    ledger = ByteLedger(tmp_path)
    for round_id in range(1, 41):
        ledger.begin(round_id, 10)
        ledger.sent("shares", 7)
        if round_id % 5 == 0:  # killed in the middle of a round
            ledger = ByteLedger(tmp_path)
    ledger.close()
    lines = [
        json.loads(line)
        for name in ("ledger.jsonl.1", "ledger.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    kept = [line["round"] for line in lines if line["round"]]
    assert kept == list(range(kept[0], 41)) and len(kept) < 20
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6000


def test_a_round_that_was_begun_is_the_oldest_that_is_served_after_a_restart(tmp_path: Path) -> None:
    """A broker that kept the plan of a round this device has missed could else have it take part in that."""
    outbox = Outbox(tmp_path)
    outbox.progress.take_model(3, 9)
    outbox.finish(9)
    outbox.progress.take_model(3, 12)  # the model is the same after rounds that FAILED, in which it was away
    assert Outbox(tmp_path).last_round() == 11
    outbox.finish(12)
    assert Outbox(tmp_path).last_round() == 12
