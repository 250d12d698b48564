"""F15: twelve ways in which a coordinator may cheat, against real aggregators, without and with a freeze quorum.

The coordinator has its real key, and with it signs what it likes; the brokers do what it wants. Whatever it tries,
every aggregator refuses (or hears nothing it could act on) and no sum leaves but those of rounds that were honest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory, identity, keys, plan, view
from simulators.lab import Lab, play

from fedpruneshare.directory import DeviceEntry, Service
from fedpruneshare.messages import (
    Attendance,
    CheckReply,
    Contribution,
    DealerCheck,
    Refusal,
    RoundPlan,
    Sharing,
    SumShare,
    digest,
    encode,
)
from fedpruneshare.plan import PlanView, check_plan

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
#: Level 1: no quorum. Level 2: all three aggregators must have accepted the same Freeze.
QUORUM = {1: 0, 2: 3}
Script = Callable[[Lab, "Federation"], Awaitable[None]]


class Federation:
    """What a script changes: plans of this level, and what is expected in the end."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.quorum = QUORUM[level]
        #: Reasons that every aggregator has to give; and the Freezes that may be answered after all.
        self.reasons: set[str] = set()
        self.honest: set[bytes] = set()

    def view(self, round_id: int = 1, **changes: Any) -> PlanView:
        return view(round_id, freeze_quorum=self.quorum, **changes)

    def plan(self, round_id: int = 1, **changes: Any) -> RoundPlan:
        return plan(round_id, freeze_quorum=self.quorum, **changes)


SCRIPTS: dict[str, Script] = {}


def script(function: Script) -> Script:
    SCRIPTS[function.__name__] = function
    return function


async def honest_round(lab: Lab, federation: Federation, current: PlanView) -> list[Contribution]:
    """A round as it should be, up to its sum."""
    await lab.open(current)
    sent = await lab.upload_all(current)
    freeze = lab.freeze(current, sent)
    federation.honest.add(await lab.say("freeze", freeze))
    await lab.quiet()
    assert np.array_equal(lab.opened(current, freeze), lab.expected(current, freeze))
    return sent


async def collected(lab: Lab, current: PlanView) -> list[Contribution]:
    """A round up to its attendances."""
    await lab.open(current)
    sent = await lab.upload_all(current)
    assert len(lab.heard(Attendance)) == 3
    return sent


# --------------------------------------------------------------------------- plans and keys


@script
async def two_plans(lab: Lab, federation: Federation) -> None:
    """Half of the aggregators are to serve another plan of the same round."""
    current = federation.view()
    sent = await collected(lab, current)
    other = federation.plan(deadline_s=61.0)
    await lab.say("round", other)
    await lab.quiet()
    federation.reasons.add("second plan for round 1, expected the one already open")
    crossed = check_plan(other, digest(encode(other)), lab.directory)
    await lab.say("freeze", lab.freeze(crossed, sent))
    await lab.quiet()
    federation.reasons.add("freeze for round 1, expected 1 and its plan")


@script
async def other_model_for_one_device(lab: Lab, federation: Federation) -> None:
    """One device is given a model (and plan) of its own, to tell its update from the others'."""
    current = federation.view()
    await lab.open(current)
    blob = msgspec.structs.replace(current.plan.segments[0], blob=b"\1" * 32)
    alone = federation.plan(segments=(blob, *current.plan.segments[1:]))
    crossed = check_plan(alone, digest(encode(alone)), lab.directory)
    victim = await lab.upload(crossed, DEVICES[0])
    sent = await lab.upload_all(current, DEVICES[1:3])
    assert {lab.verdicts(DEVICES[0], name)[-1] for name in AGGREGATORS} == {"wrong-round"}
    relabelled = [Contribution(DEVICES[0], victim.upload_id, 0), *sent]
    await _wait_for_attendance(lab, current)
    await lab.say("freeze", lab.freeze(current, relabelled))
    await lab.quiet()
    federation.reasons.add("freeze names an upload of 'device-00' that is not held here complete at that rung")


@script
async def old_model(lab: Lab, federation: Federation) -> None:
    """Devices are to train again on a model that they have trained on before."""
    current = federation.view(1, model_version=5)
    await honest_round(lab, federation, current)
    await lab.end(current)
    await lab.open(federation.view(2, model_version=4))
    federation.reasons.add("plan with version 4 of the model, expected 5 or later")


@script
async def sybils(lab: Lab, federation: Federation) -> None:
    """Devices that nobody has on the roster fill the cohort around one victim."""
    invented = ("sybil-1", "sybil-2", "sybil-3")
    await lab.say("round", federation.plan(cohort=(DEVICES[0], *invented)))
    await lab.quiet()
    federation.reasons.add("cohort names 'sybil-1', which is not on the roster")
    current = federation.view(2, cohort=DEVICES[:5])
    await lab.open(current)
    sent = await lab.upload_all(current, DEVICES[:5])
    extra = [Contribution(name, bytes(16), 0) for name in invented]
    await lab.say("freeze", lab.freeze(current, [sent[0], *extra]))
    await lab.quiet()
    federation.reasons.add("freeze names 'sybil-1', which is not in the cohort")


@script
async def own_keys(lab: Lab, federation: Federation) -> None:
    """A directory with the coordinator's own keys in place of two aggregators', signed by itself."""
    mine = {name: Service(keys("coordinator"), host="127.0.0.1", port=1883) for name in AGGREGATORS[:2]}
    devices = {**lab.directory.devices, "sybil-1": DeviceEntry(keys("sybil-1"))}
    forged = msgspec.structs.replace(
        directory(), version=2, aggregators={**directory().aggregators, **mine}, devices=devices
    )
    await lab.publish_directory(forged, identity("coordinator"))
    assert {aggregator._party.directory.version for aggregator in lab.aggregators.values()} == {1}
    await lab.say("round", federation.plan(1, directory_version=2))
    await lab.quiet()
    assert all(aggregator._book.view is None for aggregator in lab.aggregators.values())
    assert not lab.heard(Attendance)
    current = federation.view(2)
    await lab.open(current)
    device = lab.party(DEVICES[0], lab.role(DEVICES[0]))
    device.directory = forged  # a device that had been taken in would seal to the coordinator
    await lab.upload(current, DEVICES[0], to=AGGREGATORS[:2])
    await lab.quiet()
    assert all(lab.aggregators[name]._book.attempts() == [] for name in AGGREGATORS[:2])


# --------------------------------------------------------------------------- freezes


@script
async def two_freezes(lab: Lab, federation: Federation) -> None:
    """A second sum is asked for, without one device: of others than the first, then of the same aggregators."""
    current = federation.view()
    sent = await collected(lab, current)
    first, second = lab.freeze(current, sent), lab.freeze(current, sent[1:])
    async with lab.only(*AGGREGATORS[:1]):
        await lab.say("freeze", first)
    async with lab.only(*AGGREGATORS[1:]):
        await lab.say("freeze", second)
    for freeze in (first, second, first):
        await lab.say("freeze", freeze)
        await lab.quiet()
    federation.reasons.add("second freeze for round 1: the first one stands")
    if federation.level == 1:  # k of n cannot meet twice: the second sum opens, the first never does
        answered = {name: {m.freeze for m in lab.heard(SumShare, name)} for name in AGGREGATORS}
        assert answered[AGGREGATORS[0]] == {digest(encode(first))}
        assert all(answered[name] == {digest(encode(second))} for name in AGGREGATORS[1:])
        federation.honest |= {digest(encode(first)), digest(encode(second))}


@script
async def freeze_of_one(lab: Lab, federation: Federation) -> None:
    """The sum of one device is that device's update."""
    current = federation.view()
    sent = await collected(lab, current)
    await lab.say("freeze", lab.freeze(current, sent[:1]))
    await lab.quiet()
    federation.reasons.add("freeze of 1 devices, expected at least 3")


@script
async def freeze_below_the_floor(lab: Lab, federation: Federation) -> None:
    """A segment that two devices alone have reached, opened beside one that all have."""
    current = federation.view()
    await lab.open(current)
    sent = [await lab.upload(current, device, 2 if place < 2 else 0) for place, device in enumerate(DEVICES)]
    await lab.quiet()
    greedy = msgspec.structs.replace(lab.freeze(current, sent), segments=(0, 1, 2))
    await lab.say("freeze", greedy)
    await lab.quiet()
    federation.reasons.add("freeze opens segments (0, 1, 2), expected (0,) for these contributors")
    await lab.say("freeze", lab.freeze(current, sent[:2]))
    await lab.quiet()
    federation.reasons.add("freeze of 2 devices, expected at least 3")


@script
async def freeze_with_a_revoked_device(lab: Lab, federation: Federation) -> None:
    """A stolen device is summed although the root has revoked it."""
    current = federation.view()
    sent = await collected(lab, current)
    stolen = lab.directory.devices[DEVICES[4]].keys[0].raw().key_id.hex()
    await lab.publish_directory(msgspec.structs.replace(directory(), version=2, revoked={stolen: DEVICES[4]}))
    await lab.say("freeze", lab.freeze(current, sent))
    await lab.quiet()
    federation.reasons.add("freeze names 'device-04', which the directory has revoked since the plan")


@script
async def a_round_opened_again(lab: Lab, federation: Federation) -> None:
    """After its sum and outcome a round is to be collected and summed once more, also after restarts."""
    current = federation.view()
    sent = await honest_round(lab, federation, current)
    await lab.end(current)
    for restarted in ((), AGGREGATORS):
        for name in restarted:
            await lab.restart(name)
        await lab.open(current)
        await lab.say("freeze", lab.freeze(current, sent[1:]))
        await lab.quiet()
        federation.reasons.add("plan for round 1, expected a round after 1")


@script
async def a_small_difference_between_rounds(lab: Lab, federation: Federation) -> None:
    """A round is declared failed and repeated without one device: the two sums differ by its update."""
    first = federation.view(1, model_version=3)
    await honest_round(lab, federation, first)
    await lab.end(first)
    second = federation.view(2, model_version=3)
    await lab.open(second)
    sent = await lab.upload_all(second)
    await lab.say("freeze", lab.freeze(second, sent[1:]))
    await lab.quiet()
    federation.reasons.add(
        "freeze differs from that of round 1 by 0 devices that came and 1 that went, expected none or at least 3 each"
        " way: the difference of two sums would show them"
    )


@script
async def two_dealer_checks(lab: Lab, federation: Federation) -> None:
    """Two challenges under the same masks would show a combination of a device's values."""
    current = federation.view(sharing=Sharing(3, 2, 1, dealer_checks=1))
    sent = tuple(await collected(lab, current))
    checks = [DealerCheck(1, current.digest, bytes([number]) * 32, AGGREGATORS, sent) for number in (1, 2)]
    async with lab.only(AGGREGATORS[0]):
        await lab.say("check", checks[0])
    async with lab.only(*AGGREGATORS[1:]):
        await lab.say("check", checks[1])
    for check in (*checks, *checks):
        await lab.say("check", check)
        await lab.quiet()
    answered = {name: {m.check for m in lab.heard(CheckReply, name)} for name in AGGREGATORS}
    if federation.level == 2:
        assert not any(answered.values())
    else:  # one challenge each, for ever
        expected = [digest(encode(check)) for check in checks]
        assert answered == dict(zip(AGGREGATORS, ({expected[0]}, {expected[1]}, {expected[1]}), strict=True))


async def _wait_for_attendance(lab: Lab, current: PlanView) -> None:
    for device in DEVICES[3:]:
        await lab.upload(current, device)
    await lab.upload(current, DEVICES[0], 1)  # another upload of the victim's, so that it is of the round
    await lab.quiet()
    assert len(lab.heard(Attendance)) == 3


# --------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_aggregator_refuses_and_no_sum_leaves(name: str, level: int, tmp_path: Path) -> None:
    federation = Federation(level)

    async def scene(lab: Lab) -> None:
        await lab.start()
        await SCRIPTS[name](lab, federation)

    lab = play(tmp_path, scene)
    released = {message.freeze for message in lab.heard(SumShare)}
    assert released <= federation.honest
    for aggregator in AGGREGATORS:
        given = {refusal.reason for refusal in lab.heard(Refusal, aggregator)}
        assert federation.reasons <= given, aggregator


def test_all_twelve_are_here() -> None:
    assert len(SCRIPTS) == 12
