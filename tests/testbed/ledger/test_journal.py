"""rounds.jsonl and devices.jsonl while a run goes on: whole lines, in order, and nothing that the end contradicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpruneshare.errors import PeerError
from testbed.ledger.device_book import DeviceBook, Tail
from testbed.ledger.device_lines import ABSENT, DEVICES, DeviceFacts, device_lines, read_devices
from testbed.ledger.journal import InterfaceBook, Journal, events_by_round
from testbed.ledger.rounds import ROUNDS, CoordinatorRound, DeviceRound, InterfaceBytes, PhaseJoules, merge, read_rounds

FACTS = {"a": DeviceFacts(0, "pi4", "wifi"), "b": DeviceFacts(1), "c": DeviceFacts(1)}


@dataclass(frozen=True)
class Way:
    up: int
    down: int


def entry(number: int, status: str = "uploaded", shares: int = 0, model: int = 0, **more: object) -> dict[str, object]:
    up, down = {"shares": shares, "resent": 0, "control": 7}, {"model": model, "plan": 3, "receipts": 1, "other": 0}
    return {"round": number, "status": status, "up": up, "down": down, **more}


def write(folder: Path, device: str, *entries: dict[str, object]) -> None:
    (folder / device).mkdir(exist_ok=True)
    with open(folder / device / "ledger.jsonl", "a") as file:
        file.writelines(json.dumps(one) + "\n" for one in entries)


def journal(folder: Path, counters: dict[str, Way] | None = None) -> Journal:
    book = DeviceBook({device: folder / device / "ledger.jsonl" for device in FACTS})
    return Journal(folder, ("fedavg", 4), FACTS, book, InterfaceBook(lambda: counters))


def test_a_growing_file_is_read_line_by_line_and_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    tail = Tail(path, DeviceRound)
    assert tail.more() == []
    path.write_text('{"round":1}\n{"round":2')
    assert [line.round for line in tail.more()] == [1]
    assert tail.more() == []
    with open(path, "a") as file:
        file.write('}\n{"round":3}\n')
    assert [line.round for line in tail.more()] == [2, 3]
    with open(path, "a") as file:
        file.write('{"round":"four"}\n')
    with pytest.raises(PeerError, match="expected lines of DeviceRound"):
        tail.more()


def test_a_round_is_written_once_every_running_device_has_ended_it(tmp_path: Path) -> None:
    own, rounds = journal(tmp_path), [CoordinatorRound(1, "APPLIED", accuracy=0.5, started_at=100.0)]
    write(tmp_path, "a", entry(0), entry(1, shares=100, shares_by={"aggregator-1": 60, "aggregator-2": 40}))
    own.book.read()
    assert own.is_final(rounds[0], ["a"])
    assert not own.is_final(rounds[0], ["a", "b"])
    write(tmp_path, "b", entry(1, "not-in-cohort"))
    own.book.read()
    assert own.is_final(rounds[0], ["a", "b"])
    own.append(rounds)
    (line,) = read_rounds(tmp_path / ROUNDS)
    assert (line.arm, line.seed, line.round, line.devices) == ("fedavg", 4, 1, {"not-in-cohort": 1, "uploaded": 1})
    assert (line.up.shares, line.shares_by) == (100, {"aggregator-1": 60, "aggregator-2": 40})
    assert (line.uplink_bytes_so_far, line.started_at, line.wire_up) == (107 + 7 + 7, 100.0, None)
    devices = read_devices(tmp_path / DEVICES)
    assert [(one.device, one.status, one.up.total, one.wire_up) for one in devices] == [
        ("a", "uploaded", 107, None), ("b", "not-in-cohort", 7, None), ("c", ABSENT, 0, None),
    ]  # fmt: skip
    assert (devices[0].board, devices[0].link, devices[1].group) == ("pi4", "wifi", 1)


def test_what_comes_late_makes_the_lines_of_the_end_larger_and_never_smaller(tmp_path: Path) -> None:
    own, rounds = journal(tmp_path), [CoordinatorRound(1, "APPLIED"), CoordinatorRound(2, "FAILED", "too few")]
    write(tmp_path, "a", entry(1, shares=100))
    own.book.read()
    own.append(rounds[:1])
    # b is started again and says what its killed process had counted; c ends its round late.
    write(tmp_path, "b", entry(1, "killed", shares=30), entry(2, "declined"))
    write(tmp_path, "c", entry(1, "incomplete", shares=20, model=500))
    own.book.read()
    own.append(rounds)
    prefix = read_rounds(tmp_path / ROUNDS)
    final = merge(4, rounds, own.book.ledgers, own.around(rounds))
    assert [line.round for line in prefix] == [1, 2]
    assert [line.round for line in final] == [0, 1, 2]
    for before, after in zip(prefix, final[1:], strict=True):
        assert after.up.total >= before.up.total
        assert after.down.total >= before.down.total
        assert after.uplink_bytes_so_far >= before.uplink_bytes_so_far
    assert final[1].up.shares == 150
    written = {(line.device, line.round): line.up.total for line in read_devices(tmp_path / DEVICES)}
    for line in device_lines(4, rounds, own.book.ledgers, FACTS, own.around(rounds)):
        assert line.up.total >= written.get((line.device, line.round), 0)


def test_a_device_that_was_killed_for_good_keeps_what_it_had_counted(tmp_path: Path) -> None:
    own = journal(tmp_path)
    write(tmp_path, "a", entry(1))
    (tmp_path / "a" / "ledger.partial").write_text(json.dumps(entry(2, "incomplete", shares=55)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ledger.partial").write_text('{"round": 2, "sta')
    own.book.read()
    own.book.read_unfinished()
    assert [(one.round, one.status, one.up.shares) for one in own.book.ledgers["a"]] == [
        (1, "uploaded", 0), (2, "killed", 55),
    ]  # fmt: skip
    assert own.book.ledgers["b"] == []


def test_an_entry_that_was_written_down_is_not_counted_again(tmp_path: Path) -> None:
    """A device that is killed while it ends an entry leaves it in both files."""
    own = journal(tmp_path)
    write(tmp_path, "a", entry(1, shares=55))
    (tmp_path / "a" / "ledger.partial").write_text(json.dumps({**entry(1, "incomplete", shares=55), "ledger_bytes": 0}))
    own.book.read()
    own.book.read_unfinished()
    assert [(one.round, one.up.shares) for one in own.book.ledgers["a"]] == [(1, 55)]


def test_interface_bytes_belong_to_the_round_in_which_they_passed() -> None:
    counters = {"a": Way(100, 10), "b": Way(0, 0)}
    book = InterfaceBook(lambda: counters)
    book.mark(0)
    counters.update(a=Way(150, 30))
    book.mark(1)
    counters.update(a=Way(151, 31), b=Way(5, 6))
    book.mark(0)
    assert book.by_round == {
        0: {"a": InterfaceBytes(101, 11), "b": InterfaceBytes(5, 6)},
        1: {"a": InterfaceBytes(50, 20), "b": InterfaceBytes(0, 0)},
    }
    nobody = InterfaceBook(lambda: None)
    nobody.mark(1)
    assert nobody.by_round == {}


def test_interface_bytes_are_in_both_files(tmp_path: Path) -> None:
    counters = {device: Way(0, 0) for device in FACTS}
    own, rounds = journal(tmp_path, counters), [CoordinatorRound(1, "APPLIED")]
    write(tmp_path, "a", entry(1, shares=100))
    counters.update(a=Way(200, 90), b=Way(1, 2))
    own.interface.mark(1)
    own.book.read()
    own.append(rounds)
    assert [(line.wire_up, line.wire_down) for line in read_rounds(tmp_path / ROUNDS)] == [(201, 92)]
    assert [(one.wire_up, one.wire_down) for one in read_devices(tmp_path / DEVICES)] == [(200, 90), (1, 2), (0, 0)]


def test_events_stand_in_the_round_that_had_begun() -> None:
    rounds = [CoordinatorRound(1, "APPLIED", started_at=10.0), CoordinatorRound(2, "APPLIED", started_at=20.0)]
    happened = [(5.0, "early"), (10.0, "first"), (19.9, "still"), (25.0, "second")]
    assert events_by_round(rounds, happened) == {0: ("early",), 1: ("first", "still"), 2: ("second",)}


def test_entries_of_one_round_of_a_device_are_added() -> None:
    first, second = PhaseJoules("model", 2.0, True, 0.5), PhaseJoules("model", 3.0, True, 0.25)
    ledgers = {
        "a": [
            DeviceRound(1, "killed", seconds={"train": 1.0}, spans=(("train", 1.0, 2.0),), energy={"train": first}),
            DeviceRound(
                1, "uploaded", 2, seconds={"train": 2.5, "send": 0.5}, spans=(("train", 4.0, 6.5),),
                energy={"train": second, "send": PhaseJoules("model", None, reason="no reading")},
            ),
        ]
    }  # fmt: skip
    _, line = device_lines(1, [CoordinatorRound(1, "APPLIED")], ledgers, {"a": DeviceFacts()})
    assert (line.status, line.rung, line.seconds) == ("uploaded", 2, {"train": 3.5, "send": 0.5})
    assert line.spans == (("train", 1.0, 2.0), ("train", 4.0, 6.5))
    assert line.energy["train"] == PhaseJoules("model", 5.0, True, 0.75)
    assert line.energy["send"].joules is None


def test_devices_of_files_from_before_are_read(tmp_path: Path) -> None:
    (tmp_path / DEVICES).write_text('{"device":"a","round":3,"up":{"shares":5},"of-tomorrow":1}\n')
    (line,) = read_devices(tmp_path / DEVICES)
    assert (line.device, line.round, line.up.shares, line.wire_up, line.arm) == ("a", 3, 5, None, "")
    assert read_devices(tmp_path / "none.jsonl") == []
