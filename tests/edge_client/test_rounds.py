"""A device around its rounds: which plans it serves, what it says, and what another directory does to it."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import builders
import msgspec
import pytest
from simulators.lone_device import DEVICE, lone_device
from structlog.testing import capture_logs

from fedpruneshare.directory import ROUNDS_PER_EPOCH, DeviceEntry, party_keys
from fedpruneshare.errors import GateError
from fedpruneshare.messages import Receipt, Verdict
from fedpruneshare.party import Party
from fedpruneshare.sealing import Identity
from fedpruneshare.topics import Role


async def test_rounds_are_served_in_order_and_once(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        for round_id in (1, 1, 3, 2, 3, 4):
            await device.publish_plan(builders.plan(round_id))
            await device.settle()
        await device.until(lambda: device.work.finished == [1, 3, 4], "rounds 1, 3 and 4")
        assert device.work.taken == [1, 3, 4]


async def test_a_newer_plan_and_the_close_end_a_round(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        device.work.is_long = True
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.work.taken == [1], "round 1")
        await device.publish_plan(builders.plan(2))
        await device.until(lambda: device.work.taken == [1, 2], "round 2")
        assert device.work.finished == [1]
        await device.close_round(2)
        await device.until(lambda: device.work.finished == [1, 2], "the end of round 2")


async def test_a_round_without_this_device_is_over_for_ever_too(tmp_path: Path) -> None:
    """Else, after a restart, a broker could have it take part in a plan older than that."""
    async with lone_device(tmp_path) as device:
        await device.publish_plan(builders.plan(5, cohort=tuple(n for n in builders.DEVICES if n != DEVICE)))
        await device.until(lambda: device.work.finished == [5], "round 5")
        assert device.work.taken == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GateError("model gate: too large"), "model gate: too large"),
        (OSError(errno.ENOSPC, "No space left on device", "outbox/upload.msgpack"),
         "this device's disk: No space left on device: outbox/upload.msgpack"),
        (ZeroDivisionError("secret"), "unexpected ZeroDivisionError on the device"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_declined_with_its_reason_and_the_next_round_served(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    async with lone_device(tmp_path) as device:
        device.work.error = error
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.declines, "a decline")
        assert [(one.round_id, one.reason) for one in device.declines] == [(1, reason)]
        device.work.error = None
        await device.publish_plan(builders.plan(2))
        await device.until(lambda: device.work.finished == [1, 2], "round 2")
        assert len(device.declines) == 1


# --------------------------------------------------------------------------- another directory


async def test_a_plan_for_a_newer_directory_waits_for_it(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        with capture_logs() as logs:
            await device.publish_plan(builders.plan(1, directory_version=2))
            await device.until(lambda: any(line["event"] == "plan-waits" for line in logs), "a plan that waits")
        assert device.work.taken == []
        await device.publish_directory(builders.directory(version=2))
        await device.until(lambda: device.work.finished == [1], "the round of the newer directory")
        assert device.party.directory.version == 2
        kept = device.folder / "directory-in-force-device.json"
        assert b'"version":2' in kept.read_bytes()


async def test_a_plan_that_waits_is_kept_by_the_device_and_ends_when_it_said(tmp_path: Path) -> None:
    """Not by the broker, which may forget before its time what it retains for others; nor does waiting give time."""
    async with lone_device(tmp_path) as device:
        plan = builders.plan(1, directory_version=2, deadline_s=60.0)
        with capture_logs() as logs:
            await device.publish_plan(plan, 60.0, retain=False)
            await device.until(lambda: any(line["event"] == "plan-waits" for line in logs), "a plan that waits")
        latest = asyncio.get_running_loop().time() + 60.0
        await device.publish_directory(builders.directory(version=2))
        await device.until(lambda: device.work.finished == [1], "the round of the newer directory")
        assert latest - 60.0 < device.work.ends_at <= latest
        entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert sum(entry["down"]["plan"] for entry in entries) == len(device.coordinator.sign(plan))


async def test_a_plan_by_a_key_of_a_newer_directory_is_kept_by_the_device(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        rotated, base = builders.identity("coordinator").rotated(), builders.directory()
        both = tuple(party_keys(public) for public in rotated.public())
        newer = msgspec.structs.replace(
            base, version=2, coordinator=msgspec.structs.replace(base.coordinator, keys=both)
        )
        device.coordinator.identity, device.coordinator.directory = rotated, newer
        with capture_logs() as logs:
            await device.publish_plan(builders.plan(1, directory_version=2), retain=False)
            await device.until(lambda: any(line["event"] == "message-refused" for line in logs), "an unknown key")
        await device.publish_directory(newer)
        await device.until(lambda: device.work.finished == [1], "the round of the new key")


async def test_what_pushes_a_plan_out_while_it_waits_only_costs_asking_for_it(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        with capture_logs() as logs:
            await device.publish_plan(builders.plan(1, directory_version=2))
            await device.theirs.publish(device.party.topics.name("round"), b"noise")
            await device.until(lambda: any(line["event"] == "message-refused" for line in logs), "noise")
        await device.publish_directory(builders.directory(version=2))
        await device.until(lambda: device.work.finished == [1], "the round of the newer directory")


async def test_a_directory_of_another_root_serves_no_plan(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        await device.publish_plan(builders.plan(1, directory_version=2))
        with capture_logs() as logs:
            await device.publish_directory(builders.directory(version=2), Identity.generate("root"))
            await device.until(lambda: any(line["event"] == "directory-refused" for line in logs), "a refusal")
        await device.settle()
        assert device.work.taken == [] and device.party.directory.version == 1


async def test_the_directory_is_read_only_when_a_plan_needs_it(tmp_path: Path) -> None:
    """It may be larger than a model, and comes again with every connection."""
    async with lone_device(tmp_path) as device:
        await device.publish_directory(builders.directory(version=2))
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.work.finished == [1], "round 1")
        assert device.links[0].traffic.received_bytes < 2 * len(device.coordinator.sign(builders.plan(1)))
        await device.publish_plan(builders.plan(2, directory_version=2))
        await device.until(lambda: device.work.finished == [1, 2], "round 2")
        before = device.links[0].traffic.received_bytes
        await device.publish_directory(builders.directory(version=3))
        await device.settle()
        assert device.links[0].traffic.received_bytes == before


async def test_an_own_key_that_was_rotated_signs_from_the_directory_on_that_lists_it(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        old = device.party.identity.public()[0]
        rotated = device.party.identity.rotated()
        rotated.save(device.folder / "device.key")
        new = rotated.public()[0]
        assert device.party.reload()
        assert old.key_id in device.party.sign(builders.plan(1))[:64]
        both = DeviceEntry((party_keys(new), party_keys(old)))
        newer = builders.directory(version=2, devices={**builders.directory().devices, DEVICE: both})
        await device.publish_plan(builders.plan(1, directory_version=2))
        await device.publish_directory(newer)
        await device.until(lambda: device.work.finished == [1], "round 1")
        assert new.key_id in device.party.sign(builders.plan(1))[:64]


async def test_a_rotation_of_the_coordinators_key_loses_no_round(tmp_path: Path) -> None:
    """Plans come signed by a key that only the newer directory has; that directory by one that the device knows."""
    async with lone_device(tmp_path) as device:
        old = builders.identity("coordinator")
        rotated, base = old.rotated(), builders.directory()
        both = tuple(party_keys(public) for public in rotated.public())
        newer = msgspec.structs.replace(
            base, version=2, coordinator=msgspec.structs.replace(base.coordinator, keys=both)
        )
        device.coordinator.identity, device.coordinator.directory = rotated, newer
        await device.publish_directory(newer)
        plan = builders.plan(1, directory_version=2)
        assert rotated.public()[0].key_id in device.coordinator.sign(plan)[:64]
        await device.publish_plan(plan)
        await device.until(lambda: device.work.finished == [1], "the round of the new key")
        assert device.party.directory.version == 2


async def test_after_the_plan_key_was_lost_a_device_goes_on_by_itself(tmp_path: Path) -> None:
    """Nothing that comes is signed by a key that it knows, but for the directory, which is the root's."""
    async with lone_device(tmp_path) as device:
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.work.finished == [1], "the last round of the old key")
        fresh, base = Identity.generate("coordinator"), builders.directory()
        service = msgspec.structs.replace(base.coordinator, keys=(party_keys(fresh.public()[0]),))
        lost = base.coordinator.keys[0].raw().key_id.hex()
        newer = msgspec.structs.replace(
            base, version=2, coordinator=service, revoked={lost: "coordinator"}, round_epoch=1
        )
        device.coordinator.identity, device.coordinator.directory = fresh, newer
        await device.publish_directory(newer)
        first = ROUNDS_PER_EPOCH + 1
        await device.publish_plan(builders.plan(first, directory_version=2))
        await device.until(lambda: device.work.finished == [1, first], "the first round of the new key")


async def test_a_receipt_by_a_key_that_only_a_newer_directory_has_makes_the_device_read_it(tmp_path: Path) -> None:
    """Aggregators have it in force at once; without it a device would hear no receipt until the next round."""
    async with lone_device(tmp_path) as device:
        device.work.is_long = True
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.work.taken == [1], "round 1")
        name = builders.AGGREGATORS[1]
        rotated, base = builders.identity(name).rotated(), builders.directory()
        both = tuple(party_keys(public) for public in rotated.public())
        listed = {**base.aggregators, name: msgspec.structs.replace(base.aggregators[name], keys=both)}
        newer = msgspec.structs.replace(base, version=2, aggregators=listed)
        await device.publish_directory(newer)
        receipt = Party(rotated, newer, Role.AGGREGATOR).sign(Receipt(1, bytes(16), Verdict.ACCEPTED))
        heard: list[object] = []
        device.rounds.dispatch.answer = lambda _, message: heard.append(message)  # type: ignore[method-assign]
        topic = device.party.topics.name("ack", DEVICE)
        await device.theirs.publish(topic, receipt)
        await device.until(lambda: device.party.directory.version == 2, "the newer directory")
        assert heard == []
        await device.theirs.publish(topic, receipt)
        await device.until(lambda: heard, "the receipt")
        assert device.work.taken == [1] and device.work.finished == []


async def test_a_revoked_device_says_so_and_takes_no_part(tmp_path: Path) -> None:
    async with lone_device(tmp_path) as device:
        device.work.is_long = True
        await device.publish_plan(builders.plan(1))
        await device.until(lambda: device.work.taken == [1], "round 1")
        key = device.party.identity.public()[0].key_id.hex()
        revoked = builders.directory(version=2, revoked={key: DEVICE})
        with capture_logs() as logs:
            device.party.adopt(_signed(device.root, revoked))
            await device.until(lambda: device.work.finished == [1], "the end of the round under way")
            await device.publish_plan(builders.plan(2, directory_version=2))
            await device.until(lambda: [line for line in logs if line["event"] == "plan-refused"], "a refused plan")
        said = [line["reason"] for line in logs if line["event"] in ("not-taking-part", "plan-refused")]
        assert all(f"no key of '{DEVICE}' counts in directory version 2: it was revoked" in reason for reason in said)
        assert device.work.taken == [1]
        device.work.is_long = False
        device.party.adopt(_signed(device.root, builders.directory(version=3)))
        await device.until(lambda: device.work.finished == [1, 2], "the round after it was let in again")


def _signed(root: Identity, directory: object) -> bytes:
    from fedpruneshare.directory import Directory, sign_directory

    assert isinstance(directory, Directory)
    return sign_directory(directory, root)
