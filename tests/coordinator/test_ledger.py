"""RoundLedger: the Freeze is the best one, and nothing but its own sums is opened (docs/protocol.md §4.3-§4.6)."""

from __future__ import annotations

from itertools import combinations

import msgspec
import pytest
from builders import AGGREGATORS, DEVICES, view
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.ledger import Failure, RoundLedger
from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import SEAL_BYTES, Attendance, Contribution, Freeze, RoundPhase, SumShare, digest, encode

VIEW = view()


def contribution(device: str, attempt: int = 1, rung: int = 0) -> Contribution:
    return Contribution(device, bytes([attempt]) * 16, rung)


def attendance(*uploads: Contribution, declined: tuple[str, ...] = ()) -> Attendance:
    return Attendance(1, VIEW.digest, uploads, declined)


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Attendance]:
    """What each attending aggregator holds: every device made one or two attempts, each may be lost anywhere."""
    attending = draw(st.sets(st.sampled_from(AGGREGATORS)))
    held: dict[str, list[Contribution]] = {name: [] for name in attending}
    for device in DEVICES:
        rung = draw(st.integers(0, 2))
        for attempt in range(1, draw(st.integers(0, 2)) + 1):
            for name in sorted(draw(st.sets(st.sampled_from(AGGREGATORS)))):
                if name in held:
                    held[name].append(contribution(device, attempt, rung))
    return {name: attendance(*uploads) for name, uploads in held.items()}


def common(world: dict[str, Attendance], names: tuple[str, ...]) -> set[str]:
    sets = [{(u.device_id, u.upload_id, u.rung) for u in world[name].uploads} for name in names]
    return {device for device, _, _ in set.intersection(*sets)}


@settings(max_examples=300)
@given(worlds())
def test_the_freeze_keeps_most_devices_then_most_aggregators(world: dict[str, Attendance]) -> None:
    ledger = RoundLedger(VIEW)
    for name, each in world.items():
        assert ledger.attend(name, each)
    chosen = ledger.choose_freeze()
    subsets = [c for size in (2, 3) for c in combinations(sorted(world), size)]
    best = max(((len(common(world, c)), len(c)) for c in subsets), default=(0, 0))
    if isinstance(chosen, Failure):
        assert best[0] < 3
        assert "expected" in chosen.reason
        return
    assert (len(chosen.contributors), len(chosen.aggregators)) == best
    for name in chosen.aggregators:
        assert set(chosen.contributors) <= set(world[name].uploads)
    assert len({c.device_id for c in chosen.contributors}) == len(chosen.contributors)
    assert chosen.segments == open_segments([c.rung for c in chosen.contributors], 3, 3, 3)
    assert chosen.plan == VIEW.digest


def test_of_two_attempts_the_one_all_hold_is_chosen() -> None:
    others = [contribution(device) for device in DEVICES[1:]]
    ledger = RoundLedger(VIEW)
    ledger.attend("aggregator-1", attendance(contribution("device-00", 1), contribution("device-00", 2), *others))
    ledger.attend("aggregator-2", attendance(contribution("device-00", 2), *others))
    ledger.attend("aggregator-3", attendance(contribution("device-00", 1), contribution("device-00", 2), *others))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert freeze.contributors[0] == contribution("device-00", 2)
    assert len(freeze.contributors) == 10


def test_an_upload_at_two_rungs_is_not_one_upload() -> None:
    ledger = RoundLedger(VIEW)
    others = [contribution(device) for device in DEVICES[1:]]
    ledger.attend("aggregator-1", attendance(contribution("device-00", 1, rung=0), *others))
    ledger.attend("aggregator-2", attendance(contribution("device-00", 1, rung=1), *others))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert "device-00" not in {c.device_id for c in freeze.contributors}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (Attendance(2, VIEW.digest, (), ()), "attendance for round 2, expected 1"),
        (Attendance(1, bytes(32), (), ()), "attendance for round 1"),
        (attendance(contribution("device-77")), "'device-77'"),
        (attendance(contribution("device-00", 1, rung=9)), "rung 9"),
        (attendance(*[contribution("device-00", attempt) for attempt in (1, 2, 3)]), "too many uploads"),
        (attendance(contribution("device-00"), contribution("device-00")), "too many uploads"),
        (attendance(declined=("device-77",)), "not in the cohort"),
    ],
)
def test_an_impossible_attendance_is_refused(wrong: Attendance, text: str) -> None:
    ledger = RoundLedger(VIEW)
    with pytest.raises(ProtocolError, match=text):
        ledger.attend("aggregator-1", wrong)
    assert ledger.attended == ()


def test_an_aggregator_attends_once() -> None:
    ledger = RoundLedger(VIEW)
    first = attendance(contribution("device-00"))
    assert ledger.attend("aggregator-1", first)
    assert not ledger.attend("aggregator-1", first)
    with pytest.raises(ProtocolError, match="differs from its first"):
        ledger.attend("aggregator-1", attendance())
    with pytest.raises(ProtocolError, match="aggregator-9"):
        ledger.attend("aggregator-9", first)


def test_when_waiting_is_over() -> None:
    ledger = RoundLedger(VIEW)
    whole = attendance(*map(contribution, DEVICES[:9]), declined=("device-09",))
    ledger.attend("aggregator-1", whole)
    assert not ledger.is_quorum_settled()
    ledger.attend("aggregator-2", attendance(contribution("device-00")))
    assert not ledger.is_quorum_settled()
    assert not ledger.is_everything_in()
    ledger.attend("aggregator-3", whole)
    assert ledger.is_quorum_settled()
    assert ledger.is_everything_in()
    assert ledger.heard_of() == set(DEVICES)


# --------------------------------------------------------------------------- sums


@pytest.fixture
def frozen() -> tuple[RoundLedger, bytes]:
    ledger = RoundLedger(VIEW)
    uploads = [contribution(device, 1, rung=place % 3) for place, device in enumerate(DEVICES)]
    for name in AGGREGATORS:
        ledger.attend(name, attendance(*uploads))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    name = digest(encode(freeze))
    ledger.freeze(freeze, name)
    assert ledger.phase is RoundPhase.FROZEN
    return ledger, name


def sum_share(name: bytes, aggregator: str = "aggregator-1", **changes: object) -> SumShare:
    chunks = VIEW.chunks(VIEW.sum_bytes((0, 1, 2)))
    made = SumShare(1, name, VIEW.plan.points[aggregator], 0, chunks, bytes(SEAL_BYTES + 1))
    return msgspec.structs.replace(made, **changes)


def test_contributors_are_counted_by_segment(frozen: tuple[RoundLedger, bytes]) -> None:
    assert frozen[0].frozen.segments == (0, 1, 2)
    assert frozen[0].contributors_per_segment() == [10, 6, 3]


@pytest.mark.parametrize(
    "changes", [{"round_id": 2}, {"freeze": bytes(32)}, {"x": 3}, {"chunks": 1}, {"chunk": 99}], ids=str
)
def test_a_foreign_sum_is_refused(frozen: tuple[RoundLedger, bytes], changes: dict[str, object]) -> None:
    ledger, name = frozen
    ledger.check_sum("aggregator-1", sum_share(name))
    assert VIEW.plan.points["aggregator-1"] != 3
    with pytest.raises(ProtocolError, match="sum"):
        ledger.check_sum("aggregator-1", sum_share(name, **changes))


def test_sums_come_together_in_any_order(frozen: tuple[RoundLedger, bytes]) -> None:
    ledger, _ = frozen
    size, step = VIEW.sum_bytes((0, 1, 2)), VIEW.plan.chunk_bytes
    whole = bytes(range(256)) * (size // 256 + 1)
    pieces = [whole[start : min(start + step, size)] for start in range(0, size, step)]
    for place in reversed(range(len(pieces))):
        assert not ledger.can_open()
        ledger.add_sum_chunk("aggregator-2", place, pieces[place])
        ledger.add_sum_chunk("aggregator-2", place, pieces[place])
    assert ledger.sums()[VIEW.plan.points["aggregator-2"]].tobytes() == whole[:size]
    for place, piece in enumerate(pieces):
        ledger.add_sum_chunk("aggregator-3", place, piece)
    assert ledger.can_open()
    assert not ledger.is_every_sum_in()
    with pytest.raises(ProtocolError):
        ledger.add_sum_chunk("aggregator-1", 0, pieces[0][:-1])
    assert not ledger.refuse("aggregator-1", bytes(32), "of another freeze")
    assert ledger.refuse("aggregator-1", frozen[1], "below my floor")
    assert ledger.is_every_sum_in()
    assert "aggregator-1: below my floor" in ledger.why_not_opened()


def test_before_the_freeze_there_is_none() -> None:
    with pytest.raises(RuntimeError):
        _ = RoundLedger(VIEW).frozen
