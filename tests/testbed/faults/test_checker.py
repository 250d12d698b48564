"""The judge of histories accepts a good run and names the invariant in every bad one."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from testbed.faults import checker, history

Events = list[dict[str, Any]]
AGGREGATORS = ("a1", "a2", "a3")
DEVICES = ("d0", "d1", "d2", "d3", "d4", "d5", "d6")


def values(device: str, rung: int) -> list[list[int]]:
    place = DEVICES.index(device)
    one_hot = [int(other == place) for other in range(len(DEVICES))]
    return [one_hot, [10 * place, 7, 3]][: rung + 1]


def rung_of(device: str) -> int:
    return int(device in DEVICES[:3])


def contributor(device: str, number: int) -> list[Any]:
    return [device, f"{device}-{number}", rung_of(device)]


def good_round(number: int, version: int) -> Events:
    """Seven devices, three of them on the higher rung; d6 reaches one aggregator only."""
    who = [contributor(device, number) for device in DEVICES[:6]]
    place = {"round": number, "freeze": f"f{number}"}
    events: Events = [
        {"event": "plan", "round": number, "plan": f"p{number}", "version": version, "k": 2, "segments": 2,
         "model": [f"head of {version}", f"rest of {version}"],
         "points": {"a1": 1, "a2": 2, "a3": 3}, "cohort": list(DEVICES), "min_devices": 3, "min_devices_segment": 2,
         "deadline_s": 10.0},
        *({"event": "device-model", "round": number, "device": d, "plan": f"p{number}", "version": version,
           "model": [f"head of {version}", f"rest of {version}"][: rung_of(d) + 1]} for d in DEVICES),
        *({"event": "upload", "round": number, "device": d, "upload": f"{d}-{number}", "rung": rung_of(d),
           "digest": f"words of {d} in {number}", "values": values(d, rung_of(d))} for d in DEVICES),
        *({"event": "receipt", "round": number, "aggregator": a, "device": d, "upload": f"{d}-{number}",
           "verdict": "accepted", "digest": f"share of {d} for {a} in {number}"}
          for d in DEVICES[:6] for a in AGGREGATORS),
        {"event": "receipt", "round": number, "aggregator": "a1", "device": "d6", "upload": f"d6-{number}",
         "verdict": "accepted"},
        *({"event": "attendance", "round": number, "aggregator": a,
           "uploads": [*who, *([contributor("d6", number)] if a == "a1" else [])]} for a in AGGREGATORS),
        {"event": "freeze-signed", **place, "aggregators": list(AGGREGATORS), "contributors": who, "segments": [0, 1]},
        *({"event": "freeze-accepted", **place, "aggregator": a} for a in AGGREGATORS),
        *({"event": "sum-released", **place, "aggregator": a, "digest": f"sum of {a}"} for a in AGGREGATORS),
        *({"event": "burned", "round": number, "aggregator": a} for a in AGGREGATORS),
        {"event": "opened", **place, "contributors": who, "values": {"0": [1, 1, 1, 1, 1, 1, 0], "1": [30, 21, 9]}},
        {"event": "model-applied", "round": number, "version": version + 1},
        {"event": "outcome", "round": number, "phase": "APPLIED", "reason": ""},
    ]  # fmt: skip
    return events


def good_history() -> Events:
    """Two rounds that are applied, and one in between that fails."""
    failed = [e for e in good_round(2, 1) if e["event"] in ("plan", "device-model")]
    events: Events = [
        {"event": "begin", "format": 1, "seed": 1, "grace_s": 2.0, "floors": {a: [3, 2] for a in AGGREGATORS},
         "one_hot": {device: place for place, device in enumerate(DEVICES)}, "ceilings": {"rss_mib": 300}},
        *good_round(1, 0),
        *failed,
        {"event": "outcome", "round": 2, "phase": "FAILED", "reason": "attendance of 1 aggregators, expected 2"},
        {"event": "directory", "version": 2, "revoked": ["d6"], "party": "a1"},
        *good_round(3, 1),
        {"event": "resource", "party": "a1", "rss_mib": 80},
        {"event": "canary", "place": "broker-1", "aggregators": [], "found": 0},
        {"event": "end"},
    ]  # fmt: skip
    for place, event in enumerate(events):
        event["at"] = 0.01 * place
    return events


def find(events: Events, kind: str, **fields: Any) -> dict[str, Any]:
    return next(e for e in events if e["event"] == kind and fields.items() <= e.items())


def after(events: Events, known: dict[str, Any], **new: Any) -> None:
    """Put a copy of an event, changed, behind it."""
    events.insert(events.index(known) + 1, {**copy.deepcopy(known), **new})


def at_the_end_of(events: Events, number: int, event: dict[str, Any]) -> None:
    last = max(place for place, e in enumerate(events) if e.get("round") == number)
    events.insert(last + 1, {**event, "at": events[last]["at"]})


# --------------------------------------------------------------------------- bad histories: what happened, who notices


def a_sum_is_one_off(events: Events) -> None:
    find(events, "opened", round=3)["values"]["1"][2] += 1


def an_upload_is_missing_in_the_sum(events: Events) -> None:
    find(events, "opened", round=1)["values"]["0"][1] = 0


def an_upload_is_in_the_sum_twice(events: Events) -> None:
    find(events, "opened", round=1)["values"]["0"][1] = 2


def somebody_outside_the_freeze_is_in_the_sum(events: Events) -> None:
    find(events, "opened", round=3)["values"]["0"][6] = 1


def opened_for_fewer_than_the_freeze_names(events: Events) -> None:
    opened = find(events, "opened", round=1)
    opened["contributors"] = opened["contributors"][:-1]
    opened["values"]["0"][5] = 0


def opened_from_one_sum(events: Events) -> None:
    events[:] = [
        e for e in events if not (e["event"] == "sum-released" and e["round"] == 3 and e["aggregator"] != "a1")
    ]


def counted_under_an_upload_it_never_made(events: Events) -> None:
    events.remove(find(events, "upload", round=1, device="d4"))


def a_receipted_device_is_left_out(events: Events) -> None:
    for kind in ("freeze-signed", "opened"):
        found = find(events, kind, round=1)
        found["contributors"] = [c for c in found["contributors"] if c[0] != "d3"]
    find(events, "opened", round=1)["values"]["0"][3] = 0


def left_out_for_no_allowed_reason(events: Events) -> None:
    a_receipted_device_is_left_out(events)
    find(events, "freeze-signed", round=1)["left_out"] = {"d3": "slow"}


def a_device_is_in_the_freeze_twice(events: Events) -> None:
    for kind in ("freeze-signed", "opened"):
        find(events, kind, round=1)["contributors"].append(contributor("d0", 1))
    opened = find(events, "opened", round=1)
    opened["values"] = {"0": [2, 1, 1, 1, 1, 1, 0], "1": [30, 28, 12]}


def two_freezes_are_accepted(events: Events) -> None:
    signed = find(events, "freeze-signed", round=1)
    after(events, signed, freeze="other", contributors=signed["contributors"][:4], forged=True)
    after(events, find(events, "freeze-accepted", round=1, aggregator="a2"), freeze="other")


def a_second_freeze_after_a_restart(events: Events) -> None:
    signed = find(events, "freeze-signed", round=3)
    after(events, signed, freeze="other", contributors=signed["contributors"][:4], forged=True)
    at_the_end_of(events, 3, {"event": "restart", "party": "a3"})
    at_the_end_of(events, 3, {"event": "freeze-accepted", "round": 3, "freeze": "other", "aggregator": "a3"})


def a_second_sum(events: Events) -> None:
    after(events, find(events, "sum-released", round=3, aggregator="a2"), digest="another sum")


def a_sum_without_a_freeze(events: Events) -> None:
    events.remove(find(events, "freeze-accepted", round=1, aggregator="a3"))


def a_sum_of_an_unsigned_freeze(events: Events) -> None:
    find(events, "freeze-accepted", round=1, aggregator="a3")["freeze"] = "invented"
    find(events, "sum-released", round=1, aggregator="a3")["freeze"] = "invented"


def a_sum_of_two_devices(events: Events) -> None:
    for e in events:
        if e.get("round") == 1 and "contributors" in e:
            e["contributors"] = [c for c in e["contributors"] if c[0] in ("d3", "d4")]


def a_segment_of_one_device(events: Events) -> None:
    for e in events:
        if e.get("round") == 3 and "contributors" in e:
            e["contributors"] = [[c[0], c[1], int(c[0] == "d0")] for c in e["contributors"]]


def one_device_between_two_segments(events: Events) -> None:
    for e in events:
        if e.get("round") == 3 and "contributors" in e:
            e["contributors"] = [[c[0], c[1], int(c[0] != "d4")] for c in e["contributors"]]


def below_the_aggregators_own_floor(events: Events) -> None:
    find(events, "begin")["floors"]["a2"] = [7, 2]


def a_sum_with_a_revoked_device(events: Events) -> None:
    find(events, "directory")["revoked"] = ["d1"]


def summed_by_one_aggregator_that_knew_of_the_revocation(events: Events) -> None:
    """The others had accepted the Freeze before it heard."""
    accepted = find(events, "freeze-accepted", round=3, aggregator="a3")
    known = {**find(events, "directory"), "party": "a3", "revoked": ["d1"]}
    events.insert(events.index(accepted), known)


def accepted_after_the_burn(events: Events) -> None:
    late = find(events, "receipt", round=1, aggregator="a1", device="d6")
    after(events, find(events, "burned", round=1, aggregator="a2"), **late, aggregator2="")
    added = events[events.index(find(events, "burned", round=1, aggregator="a2")) + 1]
    added["aggregator"] = "a2"


def accepted_after_the_attendance(events: Events) -> None:
    receipt = find(events, "receipt", round=3, aggregator="a1", device="d6")
    place = events.index(find(events, "attendance", round=3, aggregator="a3")) + 1
    events.insert(place, {**receipt, "aggregator": "a3"})


def accepted_once_more_after_the_burn(events: Events) -> None:
    """What was accepted and is said again is fine; what is accepted for the first time is not, nor when said again."""
    receipts_said_again(events)
    accepted_after_the_burn(events)


def an_older_model_on_a_device(events: Events) -> None:
    at_the_end_of(events, 3, {"event": "device-model", "round": 1, "device": "d2", "plan": "p1", "version": 0})


def a_model_no_plan_names(events: Events) -> None:
    find(events, "device-model", round=3, device="d2")["plan"] = "somebody else's"


def a_version_that_the_plan_does_not_have(events: Events) -> None:
    find(events, "device-model", round=3, device="d2")["version"] = 7


def a_model_of_other_bytes(events: Events) -> None:
    find(events, "device-model", round=3, device="d2")["model"][1] = "rest of 0"


def a_device_that_forgets_its_model_in_a_restart(events: Events) -> None:
    at_the_end_of(events, 3, {"event": "device-model", "round": 1, "device": "d2", "version": 0})


def a_canary_in_a_broker_file(events: Events) -> None:
    find(events, "canary")["found"] = 3


def a_canary_in_one_aggregators_store(events: Events) -> None:
    find(events, "canary").update(found=1, place="store of a1", aggregators=["a1"])


def a_round_that_hangs(events: Events) -> None:
    events.remove(find(events, "outcome", round=2))


def a_round_that_fails_without_a_reason(events: Events) -> None:
    find(events, "outcome", round=2)["reason"] = ""


def a_round_that_ends_late(events: Events) -> None:
    late = events.index(find(events, "outcome", round=3))
    for event in events[late:]:
        event["at"] += 30.0


def a_round_with_two_outcomes(events: Events) -> None:
    after(events, find(events, "outcome", round=3), phase="FAILED", reason="on second thoughts")


def memory_over_the_ceiling(events: Events) -> None:
    find(events, "resource")["rss_mib"] = 301


def new_words_under_an_old_upload_id(events: Events) -> None:
    after(events, find(events, "upload", round=1, device="d2"), digest="other words")


def another_polynomial_under_an_old_upload_id(events: Events) -> None:
    after(events, find(events, "receipt", round=1, device="d2", aggregator="a1"), digest="another share")


def a_failed_round_publishes_a_model(events: Events) -> None:
    at_the_end_of(events, 2, {"event": "model-applied", "round": 2, "version": 2})


def an_applied_round_without_a_model(events: Events) -> None:
    events.remove(find(events, "model-applied", round=3))


def a_round_planned_on_an_old_model(events: Events) -> None:
    for kind in ("plan", "device-model"):
        for e in events:
            if e["event"] == kind and e["round"] == 3:
                e["version"] = 0


def the_end_is_missing(events: Events) -> None:
    events.pop()


def nothing_was_decided(events: Events) -> None:
    events[:] = [e for e in events if "round" not in e]


BAD: list[tuple[str, Callable[[Events], None]]] = [
    ("I1", a_sum_is_one_off),
    ("I1", an_upload_is_missing_in_the_sum),
    ("I3", an_upload_is_missing_in_the_sum),
    ("I3", an_upload_is_in_the_sum_twice),
    ("I3", somebody_outside_the_freeze_is_in_the_sum),
    ("I1", opened_for_fewer_than_the_freeze_names),
    ("I1", opened_from_one_sum),
    ("I1", counted_under_an_upload_it_never_made),
    ("I2", a_receipted_device_is_left_out),
    ("I2", left_out_for_no_allowed_reason),
    ("I3", a_device_is_in_the_freeze_twice),
    ("I4", two_freezes_are_accepted),
    ("I4", a_second_freeze_after_a_restart),
    ("I4", a_second_sum),
    ("I4", a_sum_without_a_freeze),
    ("I5", a_sum_of_an_unsigned_freeze),
    ("I5", a_sum_of_two_devices),
    ("I5", a_segment_of_one_device),
    ("I5", one_device_between_two_segments),
    ("I5", below_the_aggregators_own_floor),
    ("I5", a_sum_with_a_revoked_device),
    ("I5", summed_by_one_aggregator_that_knew_of_the_revocation),
    ("I6", accepted_after_the_burn),
    ("I6", accepted_after_the_attendance),
    ("I6", accepted_once_more_after_the_burn),
    ("I7", an_older_model_on_a_device),
    ("I7", a_model_no_plan_names),
    ("I7", a_version_that_the_plan_does_not_have),
    ("I7", a_model_of_other_bytes),
    ("I7", a_device_that_forgets_its_model_in_a_restart),
    ("I8", a_canary_in_a_broker_file),
    ("I8", a_canary_in_one_aggregators_store),
    ("I9", a_round_that_hangs),
    ("I9", a_round_that_fails_without_a_reason),
    ("I9", a_round_that_ends_late),
    ("I9", a_round_with_two_outcomes),
    ("I10", memory_over_the_ceiling),
    ("I11", new_words_under_an_old_upload_id),
    ("I11", another_polynomial_under_an_old_upload_id),
    ("I12", a_failed_round_publishes_a_model),
    ("I12", an_applied_round_without_a_model),
    ("I12", a_round_planned_on_an_old_model),
    ("H", the_end_is_missing),
    ("H", nothing_was_decided),
]


def test_a_good_history_is_accepted() -> None:
    assert checker.judge(good_history()) == []


@pytest.mark.parametrize(("invariant", "spoil"), BAD, ids=lambda value: getattr(value, "__name__", value))
def test_a_bad_history_is_refused_by_name(invariant: str, spoil: Callable[[Events], None]) -> None:
    events = good_history()
    spoil(events)
    found = {violation.replace(":", " ").split()[0] for violation in checker.judge(events)}
    assert invariant in found


def test_there_are_enough_bad_histories_for_every_invariant() -> None:
    assert len({spoil for _, spoil in BAD}) >= 20
    assert {invariant for invariant, _ in BAD} == {"H", *(f"I{number}" for number in range(1, 13))}


@pytest.mark.parametrize(
    "kind", ["upload", "receipt", "attendance", "device-model", "sum-released", "opened", "resource"]
)
def test_a_history_that_does_not_tell_how_a_model_came_about_is_refused(kind: str) -> None:
    """Else a recorder that has lost its seam would have every rule about such events hold."""
    found = checker.judge([event for event in good_history() if event["event"] != kind])
    assert any(violation.startswith(("H", "I1")) for violation in found)


def receipts_said_again(events: Events) -> None:
    """In both rounds and by every aggregator, after the burn; the attendances never reached a broker, nor a history."""
    events[:] = [e for e in events if e["event"] != "attendance" or e["aggregator"] == "a1"]
    for number in (1, 3):
        for receipt in [e for e in events if e["event"] == "receipt" and e["round"] == number]:
            at_the_end_of(events, number, receipt)


def test_a_receipt_that_is_said_again_is_no_new_acceptance() -> None:
    events = good_history()
    receipts_said_again(events)
    assert checker.judge(events) == []


def test_a_receipted_device_may_be_left_out_for_an_allowed_reason() -> None:
    events = good_history()
    a_receipted_device_is_left_out(events)
    find(events, "freeze-signed", round=1)["left_out"] = {"d3": "lone-rung"}
    assert checker.judge(events) == []


def test_what_a_dishonest_aggregator_does_is_no_violation() -> None:
    events = good_history()
    a_second_sum(events)
    find(events, "begin")["dishonest"] = ["a2"]
    assert checker.judge(events) == []


def test_a_revocation_that_comes_after_the_freeze_does_not_count_for_it() -> None:
    events = good_history()
    accepted = find(events, "freeze-accepted", round=3, aggregator="a3")
    known = {**find(events, "directory"), "party": "a3", "revoked": ["d1"]}
    events.insert(events.index(accepted) + 1, known)
    assert checker.judge(events) == []


class Counted(str):
    """The name of an event's kind, which counts how often somebody asks what it is."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)


def test_a_long_history_is_not_looked_through_again_for_each_round() -> None:
    """Else a quarter of an hour of rounds takes minutes to judge."""
    events = good_history()[:1]
    for number in range(1, 101):
        events += good_round(number, number - 1)
    events += good_history()[-3:]
    counted = [{**event, "at": 0.01 * place, "event": Counted(event["event"])} for place, event in enumerate(events)]
    Counted.looks = 0
    assert checker.judge(counted) == []
    assert Counted.looks < 20 * len(events)


def test_the_command_orders_files_by_time_and_exits_with_1(tmp_path: Path) -> None:
    events = good_history()
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for place, path in enumerate(files):
        path.write_text("".join(json.dumps(e) + "\n" for e in events[place::2]))
    command = [sys.executable, "-m", "testbed.faults.checker"]
    good = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=60, check=False)
    bad = subprocess.run([*command, str(files[0])], capture_output=True, text=True, timeout=60, check=False)
    nothing = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (good.returncode, good.stdout) == (0, "")
    assert (bad.returncode, nothing.returncode) == (1, 1)
    assert "I1" in bad.stdout


def test_the_checker_is_small_and_knows_nothing_of_the_product() -> None:
    source = Path(checker.__file__).read_text("utf-8")
    names = [
        name
        for node in ast.walk(ast.parse(source))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert len(source.splitlines()) <= 200
    assert {str(name).partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


# --------------------------------------------------------------------------- writing


def test_a_history_is_written_as_it_is_read(tmp_path: Path) -> None:
    path, times = tmp_path / "history.jsonl", count(0, 0.01)
    writer = history.History(path, lambda: next(times))
    for event in good_history():
        writer.note(event["event"], **{key: value for key, value in event.items() if key not in ("at", "event")})
    writer.close()
    assert checker.main([str(path)]) == 0


def test_bytes_are_written_in_hex(tmp_path: Path) -> None:
    writer = history.History(tmp_path / "history.jsonl", lambda: 1.0)
    writer.note("burned", round=1, aggregator=b"\x01\xff")
    writer.close()
    assert json.loads((tmp_path / "history.jsonl").read_text())["aggregator"] == "01ff"


@pytest.mark.parametrize(("event", "fields"), [("burned", {"round": 1}), ("burnt", {"round": 1, "aggregator": "a"})])
def test_an_event_that_lacks_something_is_refused(event: str, fields: dict[str, Any], tmp_path: Path) -> None:
    writer = history.History(tmp_path / "history.jsonl", lambda: 1.0)
    with pytest.raises(ValueError, match=r"lacks|expected"):
        writer.note(event, **fields)
