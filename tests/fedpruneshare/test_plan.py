"""A signature says who made a plan, not that it is sound (docs/protocol.md §4.1)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import AGGREGATORS, DEVICES, directory, keys, plain_directory, plain_plan, plan, view

import fedpruneshare.plan as plan_module
from fedpruneshare.directory import Service
from fedpruneshare.errors import PlanError
from fedpruneshare.messages import (
    Coding,
    Contribution,
    Freeze,
    Reveal,
    RoundPlan,
    Segment,
    Sharing,
    Suite,
    digest,
    encode,
)
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.field import F31

SOUND = plan()


def segments(place: int, **changes: object) -> tuple[Segment, ...]:
    made = list(SOUND.segments)
    made[place] = msgspec.structs.replace(made[place], **changes)
    return tuple(made)


def coding(**changes: object) -> Coding:
    return msgspec.structs.replace(SOUND.coding, **changes)


def test_rounds_are_numbered_within_the_directorys_epoch() -> None:
    """The root begins a new epoch when the plan key was lost: whatever number its thief had signed is below."""
    later, first = directory(round_epoch=3), 3 * 2**32 + 1
    assert check_plan(plan(first), bytes(32), later).plan.round_id == first
    for number in (1, first - 1, first + 2**32):
        with pytest.raises(PlanError, match=f"round {number}, expected one from {first} on: epoch 3"):
            check_plan(plan(number), bytes(32), later)


@pytest.mark.parametrize("which", ["plan", "directory"])
def test_what_expired_is_refused_with_both_times(which: str) -> None:
    ends = 1_800_000_000
    made = plan(expires_at=ends if which == "plan" else 0)
    known = directory(expires_at=ends if which == "directory" else 0)
    check_plan(made, bytes(32), known, ends - 1.0)
    with pytest.raises(PlanError, match=f"{which} expired at 2027-01-15 08:00:00 UTC, and .* says 2027-01-15 08:00:10"):
        check_plan(made, bytes(32), known, ends + 10.0)


def test_few_may_open_a_sum_where_a_quorum_has_accepted_the_freeze() -> None:
    four = {f"aggregator-{x}": directory().aggregators["aggregator-1"] for x in (1, 2, 3, 4)}
    known, points = directory(aggregators=four), {name: x for x, name in enumerate(four, 1)}
    made = plan(sharing=Sharing(4, 2, 1), points=points)
    with pytest.raises(PlanError, match="expected 2k > n"):
        check_plan(made, bytes(32), known)
    check_plan(msgspec.structs.replace(made, freeze_quorum=3), bytes(32), known)


def test_a_plan_outlives_the_directory_it_was_made_for() -> None:
    """A revocation in mid-round must not end the round of everybody else; aggregators and floors still have to fit."""
    left = {name: entry for name, entry in directory().devices.items() if name != DEVICES[3]}
    assert check_plan(plan(), bytes(32), directory(version=2, devices=left)).plan.cohort == DEVICES
    with pytest.raises(PlanError, match=f"'{DEVICES[3]}', which is not on the roster"):
        check_plan(plan(directory_version=2), bytes(32), directory(version=2, devices=left))
    with pytest.raises(PlanError, match="min_devices = 3, expected at least 5"):
        check_plan(plan(), bytes(32), directory(version=2, min_devices=5))


def test_a_federation_may_demand_hybrid_seals() -> None:
    made = plan(suites=(Suite.XWING_AES256, Suite.X25519_AES256))
    with pytest.raises(PlanError, match="the directory says post_quantum"):
        check_plan(made, bytes(32), directory(post_quantum=True))


def test_a_sound_plan_passes() -> None:
    made = view()
    assert made.rungs == 3
    assert made.digest == digest(encode(SOUND))
    assert "cohort" in repr(made.plan)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"directory_version": 2}, "directory version 2, expected at most 1"),
        ({"points": dict.fromkeys(AGGREGATORS, 1)}, "points"),
        ({"points": {"aggregator-1": 1, "aggregator-2": 2}}, "plan for aggregators"),
        ({"points": {"aggregator-1": 1, "aggregator-2": 2, "stranger": 3}}, "plan for aggregators"),
        ({"points": dict(zip(AGGREGATORS, (1, 2, 4), strict=True))}, "points"),
        ({"sharing": Sharing(3, 3, 3)}, "t = 3"),
        ({"sharing": Sharing(3, 3, 2, dealer_checks=1)}, "dealer checks with n = k = 3"),
        ({"sharing": Sharing(3, 3, 1, reveal=Reveal.EACH)}, "reveal = each"),
        ({"sharing": Sharing(3, 2, 1, dealer_checks=1, reveal=Reveal.EACH)}, "reveal = each"),
        ({"sharing": Sharing(3, 2, 1, "F61")}, "words, expected"),
        ({"sharing": Sharing(4, 2, 1)}, "points"),
        ({"cohort": (*DEVICES, DEVICES[0])}, "twice"),
        ({"cohort": (*DEVICES[:9], "device-99")}, "'device-99', which is not on the roster"),
        ({"cohort": DEVICES[:2]}, "cohort of 2 devices, expected at least min_devices = 3"),
        ({"min_devices": 2}, "min_devices = 2, expected at least 3"),
        ({"min_devices_segment": 2}, "min_devices_segment = 2, expected at least 3"),
        ({"coding": coding(max_devices=9)}, "cohort of 10 devices, expected at most max_devices = 9"),
        ({"coding": coding(weight_clips=(0.1, float("inf")))}, "not finite"),
        ({"coding": coding(max_weight=2**24 - 1, max_devices=129)}, "reaches the modulus"),
        ({"coding": coding(value_bits=16, max_devices=4096)}, "words, expected"),
        ({"chunk_bytes": 1026}, "multiple of 4"),
        ({"rungs": (1, 2)}, "rungs"),
        ({"rungs": (0, 2, 1)}, "rungs"),
        ({"rungs": (0, 3)}, "rungs"),
        ({"segments": segments(1, vectors=1)}, "no wider than the one before"),
        ({"segments": segments(2, width=0.5)}, "expected numbers that do not fall"),
        ({"segments": segments(0, words=5)}, "segment 0 of 5 words"),
        ({"segments": segments(2, weights=501)}, "segment 2"),
        ({"deadline_s": float("inf")}, "not finite"),
        ({"suites": (Suite.XWING_AES256,)}, "'aggregator-1' has no hybrid key in the directory"),
        ({"freeze_quorum": 2}, "freeze_quorum = 2 with n = 3, t = 1, expected 3 to 3"),
        ({"freeze_quorum": 4}, "freeze_quorum = 4 with n = 3, t = 1, expected 3 to 3"),
        ({"checksum": bytes(32)}, "tail_words = 0, expected 3"),
        ({"coding": coding(tail_words=3)}, "tail_words = 3, expected 0"),
        ({"checksum": bytes(31)}, "checksum of 31 bytes"),
        ({"checksum": bytes(32), "sharing": Sharing(3, 2, 1, reveal=Reveal.EACH)}, "checksum of 32 bytes with reveal"),
        ({"round_id": 2**32}, "round 4294967296, expected one from 1 on: epoch 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsound_plan_is_refused(changes: dict[str, object], text: str) -> None:
    made = plan(**changes)
    with pytest.raises(PlanError, match=text):
        check_plan(made, bytes(32), directory())


def test_two_disjoint_sets_must_not_open_two_sums() -> None:
    names = ("aggregator-1", "aggregator-2", "aggregator-3", "aggregator-4")
    four = directory(aggregators={name: directory().aggregators["aggregator-1"] for name in names})
    points = {name: place + 1 for place, name in enumerate(names)}
    with pytest.raises(PlanError, match="expected 2k > n"):
        check_plan(plan(sharing=Sharing(4, 2, 1), points=points), bytes(32), four)
    assert check_plan(plan(sharing=Sharing(4, 3, 2), points=points), bytes(32), four).scheme.k == 3


def test_who_is_not_needed_for_a_sum_must_not_hold_more_shares_than_tell_nothing() -> None:
    """Ramp sharing: two of five aggregators, given a Freeze without one device, would show two shares of it."""
    names = [f"aggregator-{x}" for x in range(1, 6)]
    five = directory(aggregators={name: directory().aggregators["aggregator-1"] for name in names})
    points = {name: x for x, name in enumerate(names, 1)}
    with pytest.raises(PlanError, match="t = 1 of n = 5, expected k \\+ t >= n"):
        check_plan(plan(sharing=Sharing(5, 3, 1), points=points), bytes(32), five)
    for k, t in ((3, 2), (4, 1)):
        assert check_plan(plan(sharing=Sharing(5, k, t), points=points), bytes(32), five).scheme.t == t


def test_the_directorys_floor_stands_above_the_lowest() -> None:
    with pytest.raises(PlanError, match="min_devices = 3, expected at least 5"):
        check_plan(plan(), bytes(32), directory(min_devices=5))


def test_the_weight_word_at_its_very_boundary() -> None:
    most = (F31.p - 1) // 10
    assert 10 * most < F31.p <= 10 * (most + 1)
    if most >= 2**24:
        most = 2**24 - 1
    check_plan(plan(coding=coding(max_weight=most)), bytes(32), directory())


def freeze(made: PlanView, segments: tuple[int, ...]) -> Freeze:
    contributors = tuple(Contribution(device, bytes(16), place % 3) for place, device in enumerate(DEVICES))
    return Freeze(1, made.digest, AGGREGATORS, contributors, segments)


def ramp_view() -> PlanView:
    """(3, 3) with two words to a polynomial."""
    made = plan(sharing=Sharing(3, 3, 1))
    return check_plan(made, digest(encode(made)), directory())


def test_lengths_of_ramp_shares_and_masks() -> None:
    made = ramp_view()
    halves = [-(-words // 2) for words in made.segment_words]
    assert made.segment_elements == tuple(halves)
    assert made.share_bytes(2, 3) == 4 * sum(halves)
    assert made.sum_bytes(freeze(made, (0, 1))) == 4 * sum(halves[:2])
    masked = view(sharing=Sharing(3, 2, 1, dealer_checks=2))
    assert masked.share_bytes(0, 3) == 4 * (masked.segment_words[0] + 2)
    assert masked.sum_bytes(freeze(masked, (0,))) == 4 * masked.segment_words[0]


def test_lengths_of_fragments() -> None:
    """Half the words at every aggregator, whatever its point, and all contributors' in the answer."""
    made = view(sharing=Sharing(3, 2, 1, reveal=Reveal.EACH))
    sizes = [made.share_bytes(rung, 1) for rung in range(3)]
    for rung, size in enumerate(sizes):
        blob = 4 * made.upload_words(rung)
        assert made.share_bytes(rung, 3) == size
        assert blob / 2 < size <= blob / 2 + 256
    assert made.sum_bytes(freeze(made, (0,))) == sum(sizes[place % 3] for place in range(10))


def test_an_answer_that_no_store_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MAX_ANSWER_BYTES", 10_000)
    with pytest.raises(PlanError, match="expected at most 10000"):
        view(sharing=Sharing(3, 2, 1, reveal=Reveal.EACH))


def test_lengths_follow_from_the_plan() -> None:
    made = view()
    assert made.share_bytes(0, 1) == 32
    assert made.share_bytes(1, 2) == 4 * (made.segment_words[0] + made.segment_words[1])
    assert made.sum_bytes(freeze(made, (0, 2))) == 4 * (made.segment_words[0] + made.segment_words[2])
    assert [made.chunks(size) for size in (32, 1024, 1025)] == [1, 1, 2]
    domains = {made.keystream_domain(d, u) for d in ("device-01", "device-02") for u in (bytes(16), b"\1" * 16)}
    assert len(domains) == 4


def test_updates_travel_unshared_only_where_the_directory_says_so() -> None:
    """A coordinator alone must not be able to bring that about, nor to share where nothing is (§5.10)."""
    made = plain_plan()
    assert check_plan(made, bytes(32), plain_directory()).is_plain
    one = directory(aggregators=plain_directory().aggregators)
    with pytest.raises(PlanError, match="the directory does not allow it"):
        check_plan(made, bytes(32), one)
    for sharing in (Sharing(1, 1, 0), Sharing(1, 1, 0, reveal=Reveal.EACH)):
        with pytest.raises(PlanError, match="expected plain"):
            check_plan(plain_plan(sharing=sharing), bytes(32), plain_directory())
        with pytest.raises(PlanError, match="k = 1 of n = 1, expected 2 <= k"):
            check_plan(plain_plan(sharing=sharing), bytes(32), one)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sharing": Sharing(1, 1, 0, "F61", reveal=Reveal.PLAIN)}, "expected n = k = 1"),
        ({"sharing": Sharing(1, 1, 1, reveal=Reveal.PLAIN)}, "expected n = k = 1"),
        ({"sharing": Sharing(1, 1, 0, dealer_checks=1, reveal=Reveal.PLAIN)}, "expected n = k = 1"),
        ({"coding": coding(value_bits=4)}, "value_bits = 4, vector_bits = 16, expected 16 or 32"),
        ({"coding": coding(value_bits=16)}, "words, expected"),
        ({"segments": plan().segments}, "words, expected"),
    ],
    ids=str,
)
def test_an_unsound_plan_without_sharing_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        check_plan(plain_plan(**changes), bytes(32), plain_directory())


def test_floats_are_not_shared() -> None:
    with pytest.raises(PlanError, match="value_bits = 32, vector_bits = 16, expected at most 16"):
        check_plan(plan(coding=coding(value_bits=32)), bytes(32), directory())
    with pytest.raises(PlanError, match="t = 0"):
        check_plan(plan(sharing=Sharing(3, 2, 0)), bytes(32), directory())


def test_an_update_without_sharing_is_all_of_its_numbers() -> None:
    made = view_of(plain_plan())
    assert [made.share_bytes(rung, 1) for rung in range(3)] == [4 * 1221, 4 * (1221 + 901), 4 * (1221 + 901 + 501)]


def view_of(made: RoundPlan) -> PlanView:
    return check_plan(made, digest(encode(made)), plain_directory())


@pytest.mark.parametrize(
    "changes",
    [
        {"sharing": Sharing(5, 2, 1), "freeze_quorum": 4},  # two that collude read every update
        {"sharing": Sharing(5, 4, 1)},  # two that collude read a part of every update
    ],
)
def test_no_plan_has_devices_deal_for_fewer_than_the_root_wants(changes: dict[str, Any]) -> None:
    names = tuple(f"aggregator-{number}" for number in range(1, 6))
    services = {name: Service(keys(name), host="127.0.0.1", port=1883) for name in names}
    made = plan(points={name: place for place, name in enumerate(names, 1)}, **changes)
    check_plan(made, digest(encode(made)), directory(aggregators=services))
    with pytest.raises(PlanError, match="t = 1, expected at least the directory's privacy_threshold, 2"):
        check_plan(made, digest(encode(made)), directory(aggregators=services, privacy_threshold=2))
