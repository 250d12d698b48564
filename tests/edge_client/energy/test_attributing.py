"""An external meter's record laid beside a device's ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_client.byte_ledger import ByteLedger, RoundEntry
from edge_client.energy.attributing import attribute, read_rounds
from edge_client.energy.parts import Phase, Span
from edge_client.energy.trace import PowerTrace
from fedpruneshare.cli import run
from fedpruneshare.errors import MeterError

#: 2 W, from second 10 on 6 W, from second 20 on 2 W again; a sample each second.
WATTS = [2.0] * 10 + [6.0] * 10 + [2.0] * 11
SPANS = (Span(Phase.RECEIVE, 105.0, 109.0), Span(Phase.TRAIN, 109.5, 119.5), Span(Phase.SEND, 119.5, 125.0))


@pytest.fixture
def trace(tmp_path: Path) -> PowerTrace:
    path = tmp_path / "plug.csv"
    path.write_text("time_s,watts\n" + "".join(f"{100 + second},{watts}\n" for second, watts in enumerate(WATTS)))
    return PowerTrace.read(path)


def ledger(folder: Path, *rounds: tuple[int, tuple[Span, ...]]) -> Path:
    made = ByteLedger(folder)
    for number, spans in rounds:
        made.begin(number)
        made.entry.spans = [(str(span.phase), span.start_s, span.end_s) for span in spans]
        made.end()
    return folder / "ledger.jsonl"


def test_joules_by_phase_are_those_of_the_record(trace: PowerTrace) -> None:
    found = attribute(trace, SPANS)
    assert {phase: part.joules for phase, part in found.items()} == pytest.approx(
        {
            phase: trace.joules(start_s, end_s)
            for phase, start_s, end_s in ((s.phase, s.start_s, s.end_s) for s in SPANS)
        }
    )
    # Training: half a second at 4 to 6 W, nine at 6, half a one at 6 to 4: 2.5 + 54 + 2.5.
    assert found[Phase.TRAIN].joules == pytest.approx(59.0)
    assert found[Phase.RECEIVE].joules == pytest.approx(8.0)
    assert all((part.source.sensor, part.is_modelled) == ("external", False) for part in found.values())
    uncertainty_j = found[Phase.TRAIN].uncertainty_j
    assert uncertainty_j is not None
    assert 1.0 < uncertainty_j < 12.0  # its ends lie where power changes, between two samples
    assert attribute(trace, ()) == {}


def test_a_round_outside_of_the_record_or_with_a_hole_in_it_has_no_figure(tmp_path: Path, trace: PowerTrace) -> None:
    late = (*SPANS, Span(Phase.IDLE, 125.0, 131.0))
    found = attribute(trace, late)
    assert {part.joules for part in found.values()} == {None}
    assert "plug.csv is of 100.0 to 130.0 s, expected 105.0 to 131.0 s" in found[Phase.TRAIN].reason
    path = tmp_path / "hole.csv"
    rows = [f"{100 + second},{watts}\n" for second, watts in enumerate(WATTS) if not 9 < second < 22]
    path.write_text("time_s,watts\n" + "".join(rows))
    hole = PowerTrace.read(path)
    assert "has no sample for 13.0 s, expected one each 1 s" in attribute(hole, SPANS)[Phase.TRAIN].reason
    assert attribute(hole, SPANS[:1])[Phase.RECEIVE].joules == pytest.approx(8.0)


def test_a_clock_that_differs_is_shifted(tmp_path: Path, trace: PowerTrace) -> None:
    path = tmp_path / "other.csv"
    path.write_text("time_s,watts\n" + "".join(f"{second},{watts}\n" for second, watts in enumerate(WATTS)))
    assert attribute(PowerTrace.read(path), SPANS, 100.0)[Phase.TRAIN].joules == pytest.approx(59.0)


def test_a_ledger_is_read_back(tmp_path: Path) -> None:
    path = ledger(tmp_path, (1, SPANS), (2, ()), (3, SPANS[:1]))
    assert [(one.number, one.spans) for one in read_rounds(path)] == [(1, SPANS), (3, SPANS[:1])]
    old = {name: value for name, value in asdict(RoundEntry(round=4)).items() if name not in ("energy", "spans")}
    with path.open("a") as file:
        file.write(json.dumps(old) + '\n{"round": 5, "spans": [["tra')
    assert [one.number for one in read_rounds(path)] == [1, 3]
    path.write_text('{"round":1}\n{"round":2,"spans":[["dance",1,2]]}\n')
    with pytest.raises(MeterError, match=r"line 2: .*expected a line of a device's ledger"):
        read_rounds(path)
    with pytest.raises(MeterError, match=r"none\.jsonl: No such file"):
        read_rounds(tmp_path / "none.jsonl")


def test_the_command_prints_each_round(tmp_path: Path, trace: PowerTrace, capsys: pytest.CaptureFixture[str]) -> None:
    path = ledger(tmp_path, (1, SPANS), (2, (Span(Phase.TRAIN, 126.0, 140.0),)))
    call = ["device", "energy", "--csv", str(tmp_path / "plug.csv"), "--ledger", str(path)]
    assert run(call) == 1  # one round has no figure
    out = capsys.readouterr().out
    assert "round 1: 78.500 J in 19.50 s" in out
    assert "train        59.000 J" in out
    assert "round 2: unavailable: plug.csv is of 100.0 to 130.0 s" in out
    assert "external: what the meter of plug.csv is wired to; a sample each 1 s" in out
    assert run([*call, "--json"]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["energy"]["train"]["joules"] == pytest.approx(59.0)
    assert (second["round"], second["energy"]["train"]["joules"]) == (2, None)
    ledger(tmp_path / "own", (0, (Span(Phase.IDLE, 1.0, 105.0),)), (1, SPANS))
    call[-1] = str(tmp_path / "own/ledger.jsonl")
    assert run(call) == 0  # the meter was switched on between rounds
    assert "round 0: unavailable" in capsys.readouterr().out


def test_the_command_names_a_ledger_without_phases(tmp_path: Path, trace: PowerTrace) -> None:
    path = ledger(tmp_path, (1, ()))
    path.write_text('{"round":1}\n')
    assert run(["device", "energy", "--csv", str(tmp_path / "plug.csv"), "--ledger", str(path)]) == 2
