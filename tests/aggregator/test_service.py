"""Aggregators at work, over links in memory and in virtual time: rounds, restarts, quorum, directories, a full disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, keys, plan, view
from simulators.lab import Lab, play

from aggregator.answers import Answers
from aggregator.burning import Burner
from aggregator.service import Aggregator
from aggregator.settings import AggregatorFloors
from aggregator.store import ShareStore
from fedpruneshare import keys as key_module
from fedpruneshare import sealing
from fedpruneshare.crash_points import POINTS, observe
from fedpruneshare.directory import ROUNDS_PER_EPOCH, DeviceEntry, Service, party_keys, sign_directory
from fedpruneshare.errors import StoreDamagedError
from fedpruneshare.link import Delivery
from fedpruneshare.messages import (
    Acceptance,
    Attendance,
    CheckReply,
    Contribution,
    DealerCheck,
    Decline,
    Freeze,
    Refusal,
    RoundPhase,
    Sharing,
    SumShare,
    digest,
    encode,
)
from fedpruneshare.party import Party
from fedpruneshare.plan import check_plan
from fedpruneshare.sealing import Identity
from fedpruneshare.topics import Role

FIRST = AGGREGATORS[0]


def replaced(struct: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(struct, **changes)


def summing(lab: Lab) -> set[str]:
    """Who has sent a sum."""
    return {sender for sender, message in lab.said if isinstance(message, SumShare)}


def reasons(lab: Lab) -> set[str]:
    """Why something was refused."""
    return {refusal.reason for refusal in lab.heard(Refusal)}


@contextmanager
def commits() -> Iterator[list[int]]:
    """How many chunks each transaction has stored."""
    sizes, add_chunks = [], ShareStore.add_chunks

    def noting(store: ShareStore, round_id: int, chunks: Any) -> None:
        add_chunks(store, round_id, chunks)
        sizes.append(len(chunks))

    with patch.object(ShareStore, "add_chunks", noting):
        yield sizes


@contextmanager
def full_disk(*aggregators: Aggregator) -> Iterator[None]:
    """The databases may not grow by a page: SQLite says that the disk is full."""
    databases = [aggregator._store._db for aggregator in aggregators]
    for database in databases:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    yield
    for database in databases:
        database.execute("PRAGMA max_page_count = 1000000")


# --------------------------------------------------------------------------- rounds


def test_a_round_ends_in_the_sum_of_what_was_frozen(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        sent = await lab.upload_all(current)
        assert {len(a.uploads) for a in lab.heard(Attendance)} == {10}
        freeze = lab.freeze(current, sent[:9])
        await lab.say("freeze", freeze)
        await lab.quiet()
        assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))
        await lab.end(current, RoundPhase.APPLIED)

    lab = play(tmp_path, scene)
    assert not lab.heard(Refusal)
    assert summing(lab) == set(AGGREGATORS)


def test_chunks_that_come_together_are_committed_together_and_receipted_after(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        with commits() as sizes:
            for device in DEVICES:
                await lab.upload(current, device, 2, [FIRST])
            while not any(lab.verdicts(device) for device in DEVICES):
                await asyncio.sleep(0.001)
            assert sizes, "a receipt before any commit"
            await lab.quiet()
        chunks = current.chunks(current.share_bytes(2, current.plan.points[FIRST]))
        assert sum(sizes) == 10 * chunks
        assert len(sizes) <= 3
        assert all(lab.verdicts(device) == ["accepted"] for device in DEVICES)

    play(tmp_path, scene)


def test_what_was_not_committed_is_not_receipted_and_asked_for_again(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        made = lab.make_upload(current, DEVICES[0], 2)
        with patch.object(ShareStore, "add_chunks", side_effect=asyncio.CancelledError):  # power lost before the commit
            await lab.upload(current, DEVICES[0], to=[FIRST], made=made)
            lab.aggregators[FIRST]._intake.end_round()
        await lab.restart(FIRST)
        assert lab.verdicts(DEVICES[0]) == []
        await lab.upload(current, DEVICES[0], to=[FIRST], made=made)
        await lab.quiet()
        assert lab.verdicts(DEVICES[0]) == ["accepted"]

    play(tmp_path, scene)


def test_a_restart_goes_on_wherever_the_round_stood(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        sent = [await lab.upload(current, device) for device in DEVICES[:5]]
        await lab.quiet()
        await lab.restart(FIRST)
        sent += await lab.upload_all(current, DEVICES[5:])
        await lab.restart(FIRST)
        freeze = lab.freeze(current, sent)
        await lab.say("freeze", freeze)
        await lab.quiet()
        await lab.restart(FIRST)
        await lab.quiet()
        sums = [message for message in lab.heard(SumShare, FIRST) if message.chunk == 0]
        assert len(sums) == 2
        assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))
        await lab.say("freeze", lab.freeze(current, sent[:9]))
        await lab.quiet()

    lab = play(tmp_path, scene)
    assert reasons(lab) == {"second freeze for round 1: the first one stands"}


def test_a_model_that_falls_back_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start(FIRST)
        await lab.open(view(1, model_version=4))
        await lab.end(view(1, model_version=4))
        await lab.restart(FIRST)
        await lab.open(view(2, model_version=3))

    assert reasons(play(tmp_path, scene)) == {"plan with version 3 of the model, expected 4 or later"}


def test_a_round_passes_every_crash_point_in_order(tmp_path: Path) -> None:
    reached: list[str] = []

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        sent = await lab.upload_all(current)
        await lab.say("freeze", lab.freeze(current, sent))
        await lab.quiet()
        await lab.end(current)

    observe(reached.append)
    try:
        play(tmp_path, scene)
    finally:
        observe(None)
    assert list(dict.fromkeys(point for point in reached if point != "aggregator.receipted")) == [
        point for point in POINTS["aggregator"] if point != "aggregator.receipted"
    ]
    assert reached.count("aggregator.receipted") == 10
    assert reached.index("aggregator.receipted") > reached.index("aggregator.chunks-committed.after")


# --------------------------------------------------------------------------- a full disk, a damaged store


def test_a_full_disk_is_said_to_the_device_and_waited_out(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        made = {device: lab.make_upload(current, device, 2) for device in DEVICES}
        with full_disk(lab.aggregators[FIRST]):
            for device in DEVICES:
                await lab.upload(current, device, made=made[device])
            await lab.quiet()
            assert all(set(lab.verdicts(device)) == {"store-full"} for device in DEVICES)
            assert lab.aggregators[FIRST]._book.attempts() == []
        sent = [await lab.upload(current, device, made=made[device]) for device in DEVICES]
        await lab.quiet()
        assert all(lab.verdicts(device)[-1] == "accepted" for device in DEVICES)
        freeze = lab.freeze(current, sent)
        await lab.say("freeze", freeze)
        await lab.quiet()
        assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))

    lab = play(tmp_path, scene)
    assert summing(lab) == set(AGGREGATORS)


@pytest.mark.parametrize("moment", ["plan", "attendance", "freeze", "outcome"])
def test_a_decision_that_cannot_be_kept_is_not_answered_until_it_is(moment: str, tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        first, current = lab.aggregators[FIRST], view(1)

        async def step(name: str, doing: Any) -> Any:
            if name != moment:
                return await doing
            first._store._db.execute("PRAGMA query_only = ON")  # every write fails: the disk is mounted read-only
            done = await doing
            said = [sender for sender, _ in lab.said]
            assert moment in ("plan", "outcome") or said.count(FIRST) < said.count(AGGREGATORS[1])
            first._store._db.execute("PRAGMA query_only = OFF")
            await lab.quiet()
            return done

        await step("plan", lab.open(current))
        assert first._book.view is not None
        sent = await step("attendance", _upload_and_wait(lab, current, is_last_missing=moment == "attendance"))
        assert {len(a.uploads) for a in lab.heard(Attendance, FIRST)} == {9 if moment == "attendance" else 10}
        freeze = lab.freeze(current, sent)
        await step("freeze", _say_and_wait(lab, freeze))
        assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))
        await step("outcome", lab.end(current))
        assert first._book.view is None
        assert first._store.attempts(1) == []

    lab = play(tmp_path, scene)
    assert summing(lab) == set(AGGREGATORS)


async def _say_and_wait(lab: Lab, freeze: Freeze) -> None:
    await lab.say("freeze", freeze)
    await lab.quiet()


async def _upload_and_wait(lab: Lab, current: Any, is_last_missing: bool) -> Any:
    """All devices upload; with the last one missing the attendance is due at the deadline, when the disk is full."""
    if not is_last_missing:
        return await lab.upload_all(current)
    first = lab.aggregators[FIRST]._store._db
    first.execute("PRAGMA query_only = OFF")
    sent = await lab.upload_all(current, DEVICES[:9])
    first.execute("PRAGMA query_only = ON")
    await asyncio.sleep(current.plan.deadline_s)
    return sent


def test_a_store_that_turns_out_damaged_ends_the_service(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        await lab.upload(current, DEVICES[0], to=[FIRST])
        await lab.quiet()
        aggregator, path = lab.aggregators[FIRST], tmp_path / FIRST / "store" / "shares.sqlite"
        aggregator._store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        aggregator._store._db.execute("PRAGMA cache_size = 0")
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        await lab.upload(current, DEVICES[1], to=[FIRST])
        await lab.quiet()
        assert lab.verdicts(DEVICES[1]) == []
        with pytest.raises(StoreDamagedError, match="is damaged"):
            await asyncio.wait_for(aggregator.serve(), 1.0)

    play(tmp_path, scene)


# --------------------------------------------------------------------------- quotas


def test_a_flood_of_one_device_costs_no_signature_and_nobody_else_anything(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        (payload, *_) = lab.payloads(current, DEVICES[0], lab.make_upload(current, DEVICES[0], 2), FIRST)
        with patch.object(sealing, "verify", wraps=key_module.verify) as verify:
            for _ in range(1000):
                await lab.send(DEVICES[0], FIRST, payload)
            await lab.send("device-99", FIRST, payload)
            await lab.send(DEVICES[1], FIRST, payload + bytes(4096))
            await lab.upload(current, DEVICES[2], 2, [FIRST])
            await lab.quiet()
        flooder = bytes.fromhex(lab.directory.devices[DEVICES[0]].keys[0].signing)
        chunks = current.chunks(current.share_bytes(2, current.plan.points[FIRST]))
        checked = [call.args[0] for call in verify.call_args_list].count(flooder)
        assert checked <= 16 * chunks + 64 + current.plan.deadline_s
        assert lab.verdicts(DEVICES[2]) == ["accepted"]

    play(tmp_path, scene)


def test_a_flood_of_declines_costs_no_signature_and_nobody_else_anything(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        flooder, other = (lab.party(device, Role.DEVICE) for device in DEVICES[:2])
        topic, link = flooder.topics.name("decline", DEVICES[0]), await lab.link("control", DEVICES[0])
        with patch.object(sealing, "verify", wraps=key_module.verify) as verify:
            for number in range(1000):
                await link.publish(topic, flooder.sign(Decline(number + 2, bytes(32), "busy")))
            assert verify.call_count <= 256 + current.plan.deadline_s / 10
        await link.publish(topic, flooder.sign(Decline(1, current.digest, "in vain")))
        await link.publish(other.topics.name("decline", DEVICES[1]), other.sign(Decline(1, current.digest, "busy")))
        await lab.quiet()
        assert lab.aggregators[FIRST]._book.attendance().declined == (DEVICES[1],)
        await lab.end(current)
        following = view(2)
        await lab.open(following)  # and it counts anew
        await link.publish(topic, flooder.sign(Decline(2, following.digest, "busy")))
        await lab.quiet()
        assert lab.aggregators[FIRST]._book.attendance().declined == (DEVICES[0],)

    play(tmp_path, scene)


def test_a_message_on_anothers_topic_is_not_taken(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        link, made = await lab.ears(DEVICES[1], FIRST), lab.make_upload(current, DEVICES[0], 0)
        topic = f"fps/v1/lab/up/{DEVICES[1]}"
        for payload in lab.payloads(current, DEVICES[0], made, FIRST):
            await link.publish(topic, payload)
        await lab.quiet()
        assert lab.aggregators[FIRST]._book.attempts() == []

    play(tmp_path, scene)


# --------------------------------------------------------------------------- directories


def without(*devices: str, version: int = 2) -> Any:
    """A newer directory in which devices are revoked."""
    old = directory()
    revoked = {old.devices[device].keys[0].raw().key_id.hex(): device for device in devices}
    return replaced(old, version=version, revoked=revoked)


def test_a_revoked_device_is_out_within_the_round(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        sent = await lab.upload_all(current, DEVICES[:8])
        await lab.publish_directory(without(DEVICES[0], DEVICES[8]))
        await lab.upload(current, DEVICES[8])
        await lab.quiet()
        assert lab.verdicts(DEVICES[8]) == []
        assert not lab.heard(Attendance)
        last = await lab.upload_all(current, DEVICES[9:])
        (attendance, *others) = lab.heard(Attendance)
        assert {c.device_id for c in attendance.uploads} == {*DEVICES[1:8], DEVICES[9]}
        assert len(others) == 2
        await lab.say("freeze", lab.freeze(current, sent))
        await lab.quiet()
        assert not summing(lab)
        await lab.say("freeze", lab.freeze(current, [*sent[1:], *last]))
        await lab.quiet()

    lab = play(tmp_path, scene)
    assert reasons(lab) == {"freeze names 'device-00', which the directory has revoked since the plan"}
    assert summing(lab) == set(AGGREGATORS)


def test_a_freeze_is_refused_where_the_revocation_came_after_the_attendance(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        sent = await lab.upload_all(current)
        await lab.publish_directory(without(DEVICES[3]))
        await lab.restart(FIRST)
        await lab.say("freeze", lab.freeze(current, sent))
        await lab.quiet()

    lab = play(tmp_path, scene)
    assert reasons(lab) == {"freeze names 'device-03', which the directory has revoked since the plan"}
    assert not summing(lab)


def test_a_plan_for_a_newer_directory_waits_for_it(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        current = view(1)
        newer = replaced(current.plan, directory_version=2)
        await lab.say("round", newer)
        await lab.quiet()
        assert not lab.heard(Refusal)
        assert lab.aggregators[FIRST]._book.view is None
        await lab.publish_directory(replaced(directory(), version=2))
        assert {a._book.view.plan.directory_version for a in lab.aggregators.values() if a._book.view} == {2}
        await asyncio.sleep(newer.deadline_s)
        assert len(lab.heard(Attendance)) == 3

    play(tmp_path, scene)


def test_after_the_plan_key_was_lost_aggregators_go_on_by_themselves(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        await lab.open(view(1))
        fresh, base = Identity.generate("coordinator"), directory()
        service = replaced(base.coordinator, keys=(party_keys(fresh.public()[0]),))
        lost = base.coordinator.keys[0].raw().key_id.hex()
        newer = replaced(base, version=2, coordinator=service, revoked={lost: "coordinator"}, round_epoch=1)
        await lab.publish_directory(newer, signer=fresh)
        following = replaced(view(1).plan, round_id=ROUNDS_PER_EPOCH + 1, directory_version=2)
        await lab.say("round", following, signer=fresh)
        await lab.quiet()
        opened = {a._book.view.plan.round_id for a in lab.aggregators.values() if a._book.view}
        assert opened == {ROUNDS_PER_EPOCH + 1}
        assert not lab.heard(Refusal)
        await lab.say("round", replaced(following, round_id=ROUNDS_PER_EPOCH + 2))  # by the key that was lost
        await lab.quiet()
        assert opened == {a._book.view.plan.round_id for a in lab.aggregators.values() if a._book.view}

    play(tmp_path, scene)


def test_old_and_new_sealing_key_of_an_aggregator_both_open(tmp_path: Path) -> None:
    rotated = identity(FIRST).rotated()
    both = tuple(party_keys(public) for public in rotated.public())
    old = directory()

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        made = lab.make_upload(current, DEVICES[0], 0)
        sealed_to_old = lab.payloads(current, DEVICES[0], made, FIRST)
        rotated.save(tmp_path / FIRST / "key.json")
        services = {**old.aggregators, FIRST: Service(both, host="127.0.0.1", port=1883)}
        newer = replaced(old, version=2, aggregators=services)
        await lab.publish_directory(newer)
        assert lab.aggregators[FIRST]._party.reload()
        for name in (*DEVICES, "coordinator"):
            lab.party(name, lab.role(name)).directory = newer
        for payload in sealed_to_old:
            await lab.send(DEVICES[0], FIRST, payload)
        await lab.upload(current, DEVICES[1], to=[FIRST])
        await lab.quiet()
        assert lab.verdicts(DEVICES[0]) == lab.verdicts(DEVICES[1]) == ["accepted"]
        assert {receipt_key(lab, device) for device in DEVICES[:2]} == {rotated.public()[0].key_id}

    play(tmp_path, scene)


def receipt_key(lab: Lab, device: str) -> bytes:
    """The key that signs what this aggregator says now."""
    payload = lab.aggregators[FIRST]._party.sign(Acceptance(1, bytes(32)))
    return lab.party(device, lab.role(device)).open("accepted", payload).key


def test_what_a_revoked_key_signed_goes_and_what_the_new_key_signs_stays(tmp_path: Path) -> None:
    newer_identity = identity(DEVICES[0]).rotated()
    old = directory()

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        await lab.upload(current, DEVICES[0], to=[FIRST])
        await lab.quiet()
        entry = DeviceEntry((party_keys(newer_identity.public()[0]),))
        stolen = old.devices[DEVICES[0]].keys[0].raw().key_id.hex()
        newer = replaced(old, version=2, devices={**old.devices, DEVICES[0]: entry}, revoked={stolen: DEVICES[0]})
        await lab.publish_directory(newer)
        aggregator = lab.aggregators[FIRST]
        assert aggregator._book.attempts() == []
        assert aggregator._store.attempts(1) == []
        device = lab.party(DEVICES[0], lab.role(DEVICES[0]))
        device.identity, device.directory = newer_identity, newer
        await lab.upload(current, DEVICES[0], to=[FIRST])
        await lab.quiet()
        assert lab.verdicts(DEVICES[0]) == ["accepted", "accepted"]

    play(tmp_path, scene)


# --------------------------------------------------------------------------- freeze quorum


def test_no_sum_leaves_before_enough_have_accepted_the_same_freeze(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        current = view(1, freeze_quorum=3)
        await lab.open(current)
        freeze = lab.freeze(current, await lab.upload_all(current))
        async with lab.only(*AGGREGATORS[:2]):
            await lab.say("freeze", freeze)
        assert {sender for sender, m in lab.said if isinstance(m, Acceptance)} == set(AGGREGATORS[:2])
        assert not summing(lab)
        await lab.restart(FIRST)
        await lab.quiet()
        assert not summing(lab)
        await lab.say("freeze", freeze)
        await lab.quiet()
        assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))

    lab = play(tmp_path, scene)
    assert summing(lab) == set(AGGREGATORS)


def test_an_aggregator_that_comes_back_hears_what_was_accepted_without_it(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        current = view(1, freeze_quorum=3)
        await lab.open(current)
        freeze = lab.freeze(current, await lab.upload_all(current), AGGREGATORS[:2])
        async with lab.only(*AGGREGATORS[1:]):
            await lab.say("freeze", freeze)
        lab.brokers["control"].cut(AGGREGATORS[1])
        lab.brokers["control"].cut(AGGREGATORS[2])
        await lab.say("freeze", freeze)
        await lab.quiet()
        assert not summing(lab)
        lab.brokers["control"].heal(AGGREGATORS[1])
        lab.brokers["control"].heal(AGGREGATORS[2])
        await asyncio.sleep(12)  # what could not be published is tried again after up to 5 s

    lab = play(tmp_path, scene)
    assert summing(lab) == set(AGGREGATORS[:2])


def test_acceptances_stay_few_while_a_round_waits(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        current = view(1, freeze_quorum=3)
        await lab.open(current)
        await lab.say("freeze", lab.freeze(current, await lab.upload_all(current)))
        await asyncio.sleep(30)
        assert len(lab.heard(Acceptance)) <= 9

    play(tmp_path, scene)


def test_a_dealer_check_is_answered_after_the_quorum_alone(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start()
        current = view(1, freeze_quorum=3, sharing=Sharing(3, 2, 1, dealer_checks=1))
        await lab.open(current)
        sent = tuple(await lab.upload_all(current))
        check = DealerCheck(1, current.digest, b"\1" * 32, AGGREGATORS, sent)
        async with lab.only(*AGGREGATORS[1:]):
            await lab.say("check", check)
        assert not lab.heard(CheckReply)
        await lab.say("check", check)
        await lab.quiet()
        assert {m.check for m in lab.heard(CheckReply)} == {digest(encode(check))}

    lab = play(tmp_path, scene)
    assert {sender for sender, m in lab.said if isinstance(m, CheckReply)} == set(AGGREGATORS)


def test_a_plan_below_this_aggregators_own_quorum_is_refused(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start(FIRST, floors=AggregatorFloors(freeze_quorum=3))
        await lab.open(view(1))
        await lab.open(view(2, freeze_quorum=3))

    lab = play(tmp_path, scene)
    assert reasons(lab) == {"plan with freeze_quorum = 0, expected at least that of this aggregator, 3"}


# --------------------------------------------------------------------------- differences between sums


async def sum_of(lab: Lab, current: Any, frozen: int, start: int = 0) -> None:
    """A whole round in which devices from `start` up to `frozen` are summed; it fails afterwards."""
    await lab.open(current)
    sent = await lab.upload_all(current)
    await lab.say("freeze", lab.freeze(current, sent[start:frozen]))
    await lab.quiet()
    await lab.end(current)


@pytest.mark.parametrize(
    ("frozen", "start", "is_refused"), [(10, 0, False), (9, 0, True), (8, 0, True), (7, 0, False), (10, 1, True)]
)
def test_a_retry_on_the_same_model_may_not_differ_by_few_devices(
    frozen: int, start: int, is_refused: bool, tmp_path: Path
) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start(FIRST, AGGREGATORS[1])
        await sum_of(lab, view(1, model_version=7), 10)
        await lab.restart(FIRST)
        await sum_of(lab, view(2, model_version=7), frozen, start)
        await sum_of(lab, view(3, model_version=8), 9)

    lab = play(tmp_path, scene)
    rounds = {m.round_id for m in lab.heard(SumShare)}
    assert rounds == ({1, 3} if is_refused else {1, 2, 3})
    assert all("the difference of two sums would show them" in reason for reason in reasons(lab))
    assert bool(reasons(lab)) == is_refused


def test_a_set_that_was_accepted_for_a_quorum_binds_but_not_for_ever(tmp_path: Path) -> None:
    """This aggregator cannot know whether others have come to the quorum and summed it."""

    async def scene(lab: Lab) -> None:
        await lab.start(FIRST, AGGREGATORS[1])
        await sum_of(lab, view(1, freeze_quorum=3), 10)  # the third is not there
        await sum_of(lab, view(2), 9)
        assert len(reasons(lab)) == 1
        await sum_of(lab, view(10), 8)
        await sum_of(lab, view(11), 8)

    lab = play(tmp_path, scene)
    assert {m.round_id for m in lab.heard(SumShare)} == {10, 11}
    assert len(reasons(lab)) == 1


def test_t_that_collude_do_not_help_a_coordinator_to_two_sums_on_one_model(tmp_path: Path) -> None:
    """Round 1 names one honest aggregator and the two that collude; round 2, without one device, the other honest ones.

    Only one honest aggregator has sent both: with a quorum, those that were not named remember what they accepted.
    """
    names = tuple(f"aggregator-{number}" for number in range(1, 6))
    first, second, *liars, third = names
    sharing: dict[str, Any] = {"sharing": Sharing(5, 3, 2), "freeze_quorum": 4, "model_version": 3}
    sharing["points"] = {name: 1 + place for place, name in enumerate(names)}
    services = {name: Service(keys(name), host="127.0.0.1", port=1883) for name in names}

    async def ask(lab: Lab, round_id: int, left_out: int, by: tuple[str, ...]) -> bytes:
        whole = plan(round_id, **sharing)
        current = check_plan(whole, digest(encode(whole)), lab.directory)
        await lab.open(current)
        sent = await lab.upload_all(current)
        of = await lab.say("freeze", lab.freeze(current, sent[left_out:], by))
        for name in liars:
            party, link = Party(identity(name), lab.directory, Role.AGGREGATOR), await lab.link("control", name)
            await link.publish(party.topics.name("accepted", name), party.sign(Acceptance(round_id, of)))
        await lab.quiet()
        await lab.end(current)
        return of

    async def scene(lab: Lab) -> None:
        await lab.start(first, second, third)
        of = [await ask(lab, 1, 0, (first, *liars)), await ask(lab, 2, 1, (second, liars[0], third))]
        assert {message.freeze for message in lab.heard(SumShare)} == {of[0]}

    lab = play(tmp_path, scene, aggregators=services)
    assert "freeze differs from that of round 1 by 0 devices that came and 1 that went" in " ".join(reasons(lab))


def test_what_waits_for_its_commit_when_its_device_is_revoked_is_not_attended(tmp_path: Path) -> None:
    victim = DEVICES[4]

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        for device in DEVICES[:4] + DEVICES[5:]:
            await lab.upload(current, device, to=[FIRST])
        await lab.quiet()
        aggregator, topic = lab.aggregators[FIRST], f"fps/v1/lab/up/{victim}"
        for payload in lab.payloads(current, victim, lab.make_upload(current, victim, 0), FIRST):
            await aggregator._intake.on_upload(Delivery(topic, payload))
        stolen = lab.directory.devices[victim].keys[0].raw().key_id.hex()
        newer = msgspec.structs.replace(lab.directory, version=2, revoked={stolen: victim})
        aggregator._party.adopt(sign_directory(newer, lab.root))
        await lab.quiet()

    attendance = play(tmp_path, scene).heard(Attendance)[0]
    assert {upload.device_id for upload in attendance.uploads} == {*DEVICES} - {victim}


def test_nothing_is_admitted_to_a_frozen_round_after_a_restart(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin()
        sent = await lab.upload_all(current, DEVICES[:8])
        await lab.say("freeze", lab.freeze(current, sent, AGGREGATORS))
        await lab.quiet()
        assert not summing(lab)
        await lab.say("freeze", lab.freeze(current, sent, AGGREGATORS[1:]))
        await lab.quiet()
        await lab.restart(FIRST)
        await lab.upload_all(current, DEVICES[8:])
        assert {lab.verdicts(device)[-1] for device in DEVICES[8:]} == {"late"}
        await asyncio.sleep(current.plan.deadline_s)
        assert not lab.heard(Attendance, FIRST)

    lab = play(tmp_path, scene)
    assert reasons(lab) == {"freeze before this aggregator has said what it holds, expected its attendance first"}


def test_by_its_own_setting_an_aggregator_looks_at_the_last_rounds_whatever_their_model(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.start(FIRST, floors=AggregatorFloors(differencing_rounds=1))
        await sum_of(lab, view(1, model_version=7), 10)
        await sum_of(lab, view(2, model_version=8), 9)
        await sum_of(lab, view(3, model_version=9), 7)
        await sum_of(lab, view(4, model_version=10), 9)

    lab = play(tmp_path, scene)
    assert {m.round_id for m in lab.heard(SumShare)} == {1, 3}


# --------------------------------------------------------------------------- many shares


def test_no_sum_leaves_before_the_last_share_is_burned_also_after_power_failed(tmp_path: Path) -> None:
    sent: list[bool] = []
    send = Answers._send_sum

    def sending(answers: Answers, *rest: Any) -> None:
        sent.append(answers._desk.store.is_burned())
        send(answers, *rest)

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        uploads = await lab.upload_all(current)
        with patch.object(Burner, "start", lambda burner: not burner._store.is_burned()):  # it never gets to the next
            await lab.say("freeze", lab.freeze(current, uploads))
            await lab.quiet()
        assert not sent and not lab.heard(SumShare)
        assert shares_left(lab) == len(uploads) * current.chunks(current.share_bytes(0, current.plan.points[FIRST])) - 1
        await lab.restart(FIRST)
        await lab.quiet()
        assert shares_left(lab) == 0
        assert lab.heard(SumShare)
        await lab.end(current)

    with patch("aggregator.store._SLICE_BYTES", 1), patch.object(Answers, "_send_sum", sending):
        play(tmp_path, scene)
    assert sent
    assert all(sent)


def shares_left(lab: Lab) -> int:
    return int(lab.aggregators[FIRST]._store._db.execute("SELECT COUNT(*) FROM chunks").fetchone()[0])


def test_others_are_served_while_shares_are_burned(tmp_path: Path) -> None:
    """Between two slices the loop is free: what a device asks meanwhile is answered before the burning is over."""
    left: list[int] = []

    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        await lab.upload_all(current)
        aggregator = lab.aggregators[FIRST]
        burn_more = aggregator._store.burn_more

        def burning() -> None:
            if not left:
                asyncio.get_running_loop().call_soon(lambda: left.append(shares_left(lab)))
            burn_more()

        with patch.object(aggregator._store, "burn_more", burning):
            await lab.end(current)
        assert shares_left(lab) == 0

    with patch("aggregator.store._SLICE_BYTES", 1):
        play(tmp_path, scene)
    assert left[0] > 10


def test_what_is_left_of_a_closed_round_is_burned_by_the_next_start(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        await lab.upload_all(current)
        with patch.object(Burner, "start", lambda burner: not burner._store.is_burned()):
            await lab.end(current)
        assert shares_left(lab) > 10
        await lab.restart(FIRST)
        await lab.quiet()
        assert shares_left(lab) == 0

    with patch("aggregator.store._SLICE_BYTES", 1):
        play(tmp_path, scene)


def test_who_asks_after_the_burn_and_a_restart_hears_that_the_upload_was_accepted(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        current = await lab.begin(FIRST)
        made = {device: lab.make_upload(current, device, 1) for device in DEVICES}
        for device in DEVICES[:9]:
            await lab.upload(current, device, to=[FIRST], made=made[device])
        late = lab.payloads(current, DEVICES[9], made[DEVICES[9]], FIRST)
        await lab.send(DEVICES[9], FIRST, late[0])
        await asyncio.sleep(current.plan.deadline_s)
        freeze = lab.freeze(current, [Contribution(d, made[d].upload_id, 1) for d in DEVICES[:8]])
        await lab.say("freeze", freeze)
        await lab.quiet()
        assert lab.heard(SumShare)
        await lab.restart(FIRST)
        for device in DEVICES:
            for payload in lab.payloads(current, device, made[device], FIRST)[:1]:
                await lab.send(device, FIRST, payload)
        await lab.upload(current, DEVICES[0], to=[FIRST])  # another upload is late all the same
        await lab.quiet()
        # The ninth was attended, and not summed; the last was never whole.
        assert [lab.verdicts(device)[-1] for device in DEVICES[1:]] == ["accepted"] * 8 + ["late"]
        assert lab.verdicts(DEVICES[0])[1] == "accepted"
        assert lab.verdicts(DEVICES[0])[-1] == "late"

    play(tmp_path, scene)
