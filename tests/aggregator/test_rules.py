"""Single rules of an aggregator: what fits into an attendance, what sums may differ by, how much a device may send."""

from __future__ import annotations

import time

import pytest
from builders import DEVICES, plan, view

from aggregator.quorum import Quorum
from aggregator.quota import allowance
from aggregator.rules import Order, Summed, check_differences
from aggregator.uploads import Attempt, Uploads
from fedpruneshare.directory import ROUNDS_PER_EPOCH
from fedpruneshare.errors import ProtocolError
from fedpruneshare.messages import KINDS, MAX_DEVICES, Attendance, decode, encode
from fedpruneshare.plan import PlanView


def complete(device: str, number: int, rung: int = 15) -> Attempt:
    return Attempt(device, bytes([number]) * 16, rung, "chacha20", 1, stored={0})


# --------------------------------------------------------------------------- attendance


def test_two_uploads_of_every_device_of_the_largest_cohort_fit_by_leaving_out_older_ones() -> None:
    names = [f"d{index:031}" for index in range(MAX_DEVICES)]
    uploads = Uploads(names)
    uploads.resume([complete(name, number) for name in names for number in (1, 2)], ())
    started = time.process_time()
    attendance = uploads.attendance(view(1))
    assert time.process_time() - started < 1.0
    body = encode(attendance)
    assert KINDS["attendance"][1] - 64 < len(body) <= KINDS["attendance"][1]
    assert decode("attendance", body) == attendance
    newest = {c.device_id for c in attendance.uploads if c.upload_id[0] == 2}
    assert newest == set(names)
    older = [c.device_id for c in attendance.uploads if c.upload_id[0] == 1]
    assert older == names[-len(older) :]
    assert len(older) > 100


def test_declines_of_the_largest_cohort_fit() -> None:
    names = [f"d{index:031}" for index in range(MAX_DEVICES)]
    uploads = Uploads(names)
    uploads.resume([complete(name, number) for name in names[::2] for number in (1, 2)], names[1::2])
    attendance = uploads.attendance(view(1))
    assert len(encode(attendance)) <= KINDS["attendance"][1]
    assert len(attendance.declined) == MAX_DEVICES // 2
    assert {c.device_id for c in attendance.uploads} == set(names[::2])


def test_both_uploads_of_a_device_are_listed_where_there_is_room() -> None:
    uploads = Uploads(DEVICES)
    uploads.resume([complete(name, number) for name in DEVICES for number in (1, 2)], ())
    assert isinstance(attendance := uploads.attendance(view(1)), Attendance)
    assert len(attendance.uploads) == 20


# --------------------------------------------------------------------------- differences


def sets(round_id: int, supports: bytes = b"one", **segments: int) -> Summed:
    """`s0=10`: segment 0 of the first ten devices."""
    made = {int(name[1:]): frozenset(f"d{index}" for index in range(count)) for name, count in segments.items()}
    return Summed(round_id, supports, made)


@pytest.mark.parametrize(
    ("now", "is_fine"),
    [
        (sets(2, s0=10, s1=6), True),
        (sets(2, s0=10, s1=5), False),
        (sets(2, s0=10), True),
        (sets(2, s0=13, s1=9), True),
        (sets(2, s0=11, s1=6), False),
        (sets(2, s0=10, s2=5), True),  # no segment that was opened before
        (sets(2, b"two", s0=10, s1=6), True),
        (sets(2, b"two", s0=10, s1=8), False),  # what lies in segment 1 now may have lain in segment 0 or 1
        (sets(2, b"two", s0=7), False),
    ],
)
def test_sums_of_two_rounds_differ_by_nobody_or_by_many(now: Summed, is_fine: bool) -> None:
    earlier = [sets(1, s0=10, s1=6)]
    if is_fine:
        check_differences(now, earlier, 3)
        return
    with pytest.raises(ProtocolError, match="differs from that of round 1 by"):
        check_differences(now, earlier, 3)


def test_devices_that_took_the_place_of_others_count_both_ways() -> None:
    old = Summed(1, b"", {0: frozenset("abcdefgh")})
    check_differences(Summed(2, b"", {0: frozenset("defghxyz")}), [old], 3)
    with pytest.raises(ProtocolError, match="by 2 devices that came and 3 that went"):
        check_differences(Summed(2, b"", {0: frozenset("defghxy")}), [old], 3)


def test_models_never_fall_back_but_for_a_new_epoch() -> None:
    order = Order(5, 3)
    order.check(view(6, model_version=3))
    with pytest.raises(ProtocolError, match="version 2 of the model, expected 3 or later"):
        order.check(view(6, model_version=2))
    with pytest.raises(ProtocolError, match="plan for round 5, expected a round after 5"):
        order.check(view(5, model_version=4))
    order.check(PlanView(plan(ROUNDS_PER_EPOCH + 1, model_version=0), bytes(32)))


# --------------------------------------------------------------------------- quotas, quorum


def test_a_quota_leaves_room_for_every_upload_the_plan_allows_and_for_questions() -> None:
    current = view(1, deadline_s=600.0)
    allowed = allowance(current, 1, 16)
    chunks = current.chunks(current.share_bytes(2, 1))
    assert allowed.messages == 16 * chunks + 64 + 600
    assert allowed.longest_bytes < current.plan.chunk_bytes + 2048
    assert allowed.total_bytes >= 16 * current.share_bytes(2, 1)


def test_a_quorum_counts_different_aggregators_of_the_plan() -> None:
    quorum = Quorum(2, ("one", "two", "three"))
    quorum.add(b"x", "one")
    quorum.add(b"x", "one")
    quorum.add(b"y", "two")
    assert not quorum.is_met(b"x")
    assert not quorum.takes("stranger")
    for other in (b"1", b"2", b"3", b"4", b"5"):
        if quorum.takes("two"):
            quorum.add(other, "two")
    assert not quorum.knows(b"5", "two")
    assert quorum.takes("three")
    quorum.add(b"x", "three")
    assert quorum.is_met(b"x")
