"""RoundLedger: the Freeze is the best one, and nothing but its own sums is opened (docs/protocol.md §4.3-§4.6)."""

from __future__ import annotations

from itertools import combinations

import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, plan, view
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.differences import Past
from coordinator.ledger import Failure, RoundLedger
from fedpruneshare.errors import PeerError, ProtocolError, SharingError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import (
    SEAL_BYTES,
    Acceptance,
    Attendance,
    CheckReply,
    Contribution,
    DealerCheck,
    Freeze,
    RoundPhase,
    Sharing,
    Suite,
    SumShare,
    digest,
    encode,
)
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dealer_check import Judgement, judge
from fedpruneshare.sharing.shamir import SharingScheme

VIEW = view()
UPLOADS = [Contribution(device, bytes([1]) * 16, place % 3) for place, device in enumerate(DEVICES)]
FREEZE = Freeze(1, VIEW.digest, AGGREGATORS, tuple(UPLOADS), (0, 1, 2))


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
    assert (len(chosen.contributors) + len(ledger.lone_devices), len(chosen.aggregators)) == best
    assert not {c.device_id for c in chosen.contributors} & set(ledger.lone_devices)
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
    for name in AGGREGATORS:
        ledger.attend(name, attendance(*UPLOADS))
    freeze = ledger.choose_freeze()
    assert freeze == FREEZE
    name = digest(encode(freeze))
    ledger.freeze(freeze, name)
    assert ledger.phase is RoundPhase.FROZEN
    return ledger, name


def sum_share(name: bytes, aggregator: str = "aggregator-1", **changes: object) -> SumShare:
    chunks = VIEW.chunks(VIEW.sum_bytes(FREEZE))
    made = SumShare(
        1, name, VIEW.plan.points[aggregator], 0, chunks, Suite.X25519_CHACHA20, bytes(8), bytes(SEAL_BYTES + 1)
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    "changes", [{"round_id": 2}, {"freeze": bytes(32)}, {"x": 3}, {"chunks": 1}, {"chunk": 99}], ids=str
)
def test_a_foreign_sum_is_refused(frozen: tuple[RoundLedger, bytes], changes: dict[str, object]) -> None:
    ledger, name = frozen
    ledger.check_answer("aggregator-1", sum_share(name))
    assert VIEW.plan.points["aggregator-1"] != 3
    with pytest.raises(ProtocolError, match="sum"):
        ledger.check_answer("aggregator-1", sum_share(name, **changes))


def test_sums_come_together_in_any_order(frozen: tuple[RoundLedger, bytes]) -> None:
    ledger, _ = frozen
    size, step = VIEW.sum_bytes(FREEZE), VIEW.plan.chunk_bytes
    whole = bytes(range(256)) * (size // 256 + 1)
    pieces = [whole[start : min(start + step, size)] for start in range(0, size, step)]
    for place in reversed(range(len(pieces))):
        assert not ledger.can_open()
        ledger.add_answer_chunk("aggregator-2", place, pieces[place])
        ledger.add_answer_chunk("aggregator-2", place, pieces[place])
    assert ledger.answers()[VIEW.plan.points["aggregator-2"]] == whole[:size]
    for place, piece in enumerate(pieces):
        ledger.add_answer_chunk("aggregator-3", place, piece)
    assert ledger.can_open()
    assert not ledger.is_every_answer_in()
    with pytest.raises(ProtocolError):
        ledger.add_answer_chunk("aggregator-1", 0, pieces[0][:-1])
    assert not ledger.refuse("aggregator-1", bytes(32), "of another freeze")
    assert ledger.refuse("aggregator-1", frozen[1], "below my floor")
    assert ledger.is_every_answer_in()
    assert "aggregator-1: below my floor" in ledger.why_not_opened()


def test_before_the_freeze_there_is_none() -> None:
    with pytest.raises(RuntimeError):
        _ = RoundLedger(VIEW).frozen


# --------------------------------------------------------------------------- dealer check

CHECKED = view(sharing=Sharing(3, 2, 1, dealer_checks=2))


def attended(held: dict[str, list[Contribution]]) -> RoundLedger:
    ledger = RoundLedger(CHECKED)
    for name, uploads in held.items():
        ledger.attend(name, Attendance(1, CHECKED.digest, tuple(uploads), ()))
    return ledger


def answer(ledger: RoundLedger, check: DealerCheck, wrong: dict[str, int]) -> None:
    """Replies of all three aggregators on lines through 5 with slope 7, but for these devices at aggregator-3."""
    ledger.check(check, b"c" * 32)
    for name in check.aggregators:
        x = CHECKED.plan.points[name]
        values = []
        for c in check.contributors:
            error = wrong.get(c.device_id, 0) if name == "aggregator-3" else 0
            values += [5 + 7 * x, 5 + 7 * x + error]
        assert ledger.reply(name, CheckReply(1, b"c" * 32, x, np.array(values, dtype="<u4").tobytes()))


def test_the_check_asks_for_what_more_than_k_aggregators_hold() -> None:
    ledger = attended({name: UPLOADS for name in AGGREGATORS})
    check = ledger.choose_check(bytes(32))
    assert check == DealerCheck(1, CHECKED.digest, bytes(32), AGGREGATORS, tuple(UPLOADS))
    assert attended({name: UPLOADS for name in AGGREGATORS[:2]}).choose_check(bytes(32)) is None


def test_devices_that_fail_it_are_not_frozen() -> None:
    ledger = attended({name: UPLOADS for name in AGGREGATORS})
    check = ledger.choose_check(bytes(32))
    assert check is not None
    answer(ledger, check, {"device-02": 1, "device-07": 9})
    assert ledger.is_every_reply_in()
    assert ledger.judge().dealers == ("device-02", "device-07")
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert {c.device_id for c in freeze.contributors} == set(DEVICES) - {"device-02", "device-07"}


def test_an_upload_kept_from_one_aggregator_does_not_evade_the_check() -> None:
    """Two aggregators hold it, enough to open it; unchecked it is not summed."""
    hidden = [upload for upload in UPLOADS if upload.device_id != "device-05"]
    ledger = attended({"aggregator-1": UPLOADS, "aggregator-2": UPLOADS, "aggregator-3": hidden})
    check = ledger.choose_check(bytes(32))
    assert check is not None
    answer(ledger, check, {})
    assert ledger.judge() == Judgement((), ())
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert {c.device_id for c in freeze.contributors} == set(DEVICES) - {"device-05"}


def test_an_aggregator_that_lost_its_uploads_does_not_fail_the_round() -> None:
    """Two others hold them all: the round goes on as if the third had not attended."""
    ledger = attended({"aggregator-1": UPLOADS, "aggregator-2": UPLOADS, "aggregator-3": UPLOADS[:2]})
    assert ledger.choose_check(bytes(32)) is None
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert len(freeze.contributors) == 10


@pytest.mark.timeout(120)
def test_many_aggregators_and_devices_do_not_stop_the_loop() -> None:
    """26 333 subsets of 16 aggregators, 4096 devices; what each subset holds in common is not collected for each."""
    names = tuple(f"aggregator-{x:02}" for x in range(16))
    devices = tuple(f"device-{x}" for x in range(4096))
    changes = {"sharing": Sharing(16, 9, 8, dealer_checks=1), "points": {n: x for x, n in enumerate(names, 1)}}
    ledger = RoundLedger(PlanView(plan(cohort=devices, **changes), b"v" * 32))
    uploads = tuple(contribution(device) for device in devices)
    for name in names:
        ledger.attend(name, Attendance(1, b"v" * 32, uploads, ()))
    check = ledger.choose_check(bytes(32))
    assert check is not None
    ledger.check(check, b"c" * 32)
    ledger.judgement = Judgement(("device-7",), ())
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert (freeze.aggregators, len(freeze.contributors)) == (names, 4095)


def test_without_enough_replies_the_round_goes_on_unchecked() -> None:
    ledger = attended({name: UPLOADS for name in AGGREGATORS})
    check = ledger.choose_check(bytes(32))
    assert check is not None
    ledger.check(check, b"c" * 32)
    assert not ledger.can_judge()
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert len(freeze.contributors) == 10


@pytest.mark.parametrize(
    ("x", "values", "error"),
    [(3, bytes(80), "x = 3"), (None, bytes(76), "76 bytes"), (None, b"\xff" * 80, "not below the modulus")],
)
def test_a_malformed_reply_is_refused(x: int | None, values: bytes, error: str) -> None:
    ledger = attended({name: UPLOADS for name in AGGREGATORS})
    check = ledger.choose_check(bytes(32))
    assert check is not None
    ledger.check(check, b"c" * 32)
    own = CHECKED.plan.points["aggregator-1"]
    assert own != 3
    with pytest.raises(PeerError, match=error):
        ledger.reply("aggregator-1", CheckReply(1, b"c" * 32, x or own, values))
    assert not ledger.reply("aggregator-1", CheckReply(1, bytes(32), own, bytes(80)))  # to another check
    assert not ledger.reply("stranger", CheckReply(1, b"c" * 32, own, bytes(80)))


def test_a_liar_among_five_is_left_out_and_the_devices_stay() -> None:
    scheme, dealers = SharingScheme(5, 3, 2), [f"device-{place}" for place in range(6)]
    answers = {x: {d: np.array([1 + x + x * x], dtype="<u4") for d in dealers} for x in range(1, 6)}
    answers[4] = {d: np.array([99 + i], dtype="<u4") for i, d in enumerate(dealers)}
    assert judge(scheme, answers) == Judgement((), (4,))
    answers[2]["device-1"] = np.array([3], dtype="<u4")  # and one device that dealt badly beside it
    assert judge(scheme, answers) == Judgement(("device-1",), (4,))
    del answers[1], answers[4]
    with pytest.raises(SharingError, match="expected more than k = 3"):
        judge(scheme, answers)


def test_refusals_of_the_plan_end_the_wait_and_give_the_reason() -> None:
    ledger = RoundLedger(VIEW)
    assert not ledger.refuse_plan("aggregator-1", bytes(32), "another plan")
    assert ledger.refuse_plan("aggregator-1", VIEW.digest, "no")
    assert not ledger.refuse_plan("aggregator-1", VIEW.digest, "no")
    assert not ledger.is_everything_in()
    assert ledger.refuse_plan("aggregator-2", VIEW.digest, "never")
    assert ledger.is_everything_in()  # one is left, and k is 2
    failure = ledger.choose_freeze()
    assert isinstance(failure, Failure)
    assert "aggregator-1: no; aggregator-2: never" in failure.reason


def test_a_device_alone_on_its_rung_does_not_keep_the_others_segments_closed() -> None:
    ledger = RoundLedger(VIEW)
    uploads = [contribution(device, 0, 2) for device in DEVICES[:9]] + [contribution(DEVICES[9], 0, 0)]
    for name in AGGREGATORS:
        ledger.attend(name, attendance(*uploads))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert freeze.segments == (0, 1, 2)
    assert ledger.lone_devices == (DEVICES[9],)
    assert [c.device_id for c in freeze.contributors] == list(DEVICES[:9])


# --------------------------------------------------------------------------- after rounds that failed


def frozen_before(*rungs: int) -> Freeze:
    """A Freeze of an earlier round on the same model, of the first devices at these rungs."""
    contributors = [contribution(device, 9, rung) for device, rung in zip(DEVICES, rungs, strict=False) if rung >= 0]
    segments = open_segments([c.rung for c in contributors], 3, 3, 3)
    return Freeze(1, bytes(32), AGGREGATORS, tuple(contributors), segments)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((0,) * 4, (0,) * 5, 4),  # one newcomer waits
        ((0,) * 4, (0,) * 6, 4),
        ((0,) * 4, (0,) * 7, 7),  # three may join
        ((0,) * 7, (-1, *(0,) * 6), 4),  # one is missing: two more stay away with it
        ((0,) * 7, (-1, -1, -1, *(0,) * 4), 4),
        ((0,) * 7, (-1, -1, -1, *(0,) * 7), 7),  # three went, three came
        ((0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1), 6),
        ((0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1, 1), 6),
        ((0,) * 4, (-1, *(0,) * 4), None),  # one is missing of four: no three of them may be summed
    ],
)
def test_no_sum_differs_by_a_few_devices_from_one_that_a_failed_round_may_have_shown(
    before: tuple[int, ...], now: tuple[int, ...], expected: int | None
) -> None:
    ledger = RoundLedger(VIEW)
    earlier = frozen_before(*before)
    ledger.past = Past((earlier,))
    uploads = [contribution(device, 1, rung) for device, rung in zip(DEVICES, now, strict=False) if rung >= 0]
    for name in AGGREGATORS:
        ledger.attend(name, attendance(*uploads))
    found = ledger.choose_freeze()
    if expected is None:
        assert isinstance(found, Failure)
        assert "differs by fewer than 3 devices from one that was frozen" in found.reason
        return
    assert isinstance(found, Freeze)
    assert len(found.contributors) == expected
    for segment in found.segments:
        mine = {c.device_id for c in found.contributors if c.rung >= segment}
        for other in earlier.segments:
            theirs = {c.device_id for c in earlier.contributors if c.rung >= other}
            assert {len(mine - theirs), len(theirs - mine)}.isdisjoint({1, 2})


def test_devices_revoked_since_the_plan_are_not_summed() -> None:
    ledger = RoundLedger(VIEW)
    ledger.revoked = frozenset(DEVICES[:2])
    for name in AGGREGATORS:
        ledger.attend(name, attendance(*(contribution(device) for device in DEVICES)))
    found = ledger.choose_freeze()
    assert isinstance(found, Freeze)
    assert [c.device_id for c in found.contributors] == list(DEVICES[2:])


def test_a_round_with_a_quorum_needs_as_many_attendances() -> None:
    needed = view(freeze_quorum=3)
    for count, is_enough in ((2, False), (3, True)):
        ledger = RoundLedger(needed)
        for name in AGGREGATORS[:count]:
            uploads = tuple(contribution(device) for device in DEVICES)
            ledger.attend(name, Attendance(1, needed.digest, uploads, ()))
        assert ledger.is_quorum_settled() is is_enough
        found = ledger.choose_freeze()
        if not is_enough:
            assert found == Failure("attendance of 2 aggregators, expected at least freeze_quorum = 3")
            continue
        assert isinstance(found, Freeze)
        ledger.freeze(found, digest(encode(found)))
        ledger.accept("aggregator-1", Acceptance(1, digest(encode(found))))
        ledger.accept("stranger", Acceptance(1, digest(encode(found))))
        ledger.accept("aggregator-2", Acceptance(1, bytes(32)))
        assert ledger.why_not_opened().endswith("accepted by 1 aggregators, freeze_quorum = 3")


def test_an_aggregator_that_refuses_and_answers_ends_the_wait_for_nobody_else() -> None:
    current = view()
    ledger, uploads = RoundLedger(current), tuple(Contribution(device, bytes(16), 0) for device in DEVICES)
    for name in AGGREGATORS:
        ledger.attend(name, Attendance(1, current.digest, uploads, ()))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    of = digest(encode(freeze))
    ledger.freeze(freeze, of)
    size, chunk = current.sum_bytes(freeze), current.plan.chunk_bytes
    for name in AGGREGATORS[:2]:
        for index, start in enumerate(range(0, size, chunk)):
            ledger.add_answer_chunk(name, index, bytes(min(chunk, size - start)))
    assert ledger.refuse(AGGREGATORS[0], of, "as it likes")
    assert ledger.can_open() and not ledger.is_every_answer_in()
    assert ledger.refuse(AGGREGATORS[2], of, "as it likes")
    assert ledger.is_every_answer_in()


def test_a_sum_in_a_suite_that_the_plan_does_not_name_is_refused() -> None:
    current = view(suites=(Suite.X25519_CHACHA20,))
    ledger, uploads = RoundLedger(current), tuple(Contribution(device, bytes(16), 0) for device in DEVICES)
    for name in AGGREGATORS:
        ledger.attend(name, Attendance(1, current.digest, uploads, ()))
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    ledger.freeze(freeze, digest(encode(freeze)))
    x, chunks = current.plan.points[AGGREGATORS[0]], current.chunks(current.sum_bytes(freeze))
    for suite in (Suite.X25519_CHACHA20, Suite.X25519_AES256):
        answer = SumShare(1, digest(encode(freeze)), x, 0, chunks, suite, bytes(8), bytes(64))
        if suite in current.plan.suites:
            ledger.check_answer(AGGREGATORS[0], answer)
        else:
            with pytest.raises(ProtocolError, match="sealed with x25519/aes-256-gcm, expected x25519/chacha20"):
                ledger.check_answer(AGGREGATORS[0], answer)


def test_an_aggregator_that_was_shut_out_after_its_attendance_is_asked_for_no_sum() -> None:
    current = view()
    ledger, uploads = RoundLedger(current), tuple(Contribution(device, bytes(16), 0) for device in DEVICES)
    for name in AGGREGATORS:
        ledger.attend(name, Attendance(1, current.digest, uploads, ()))
    ledger.shut_out = frozenset(AGGREGATORS[:1])
    freeze = ledger.choose_freeze()
    assert isinstance(freeze, Freeze)
    assert freeze.aggregators == AGGREGATORS[1:]
