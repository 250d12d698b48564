"""F07: clocks that are wrong, jump or were never set: no security decision changes, and refusals name both times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import msgspec
import pytest
from simulators.lone_device import DEVICE, lone_device
from structlog.testing import capture_logs

from fedpruneshare.directory import DeviceEntry, party_keys
from fedpruneshare.errors import PlanError, SignatureError
from fedpruneshare.messages import Heartbeat, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import check_plan
from fedpruneshare.topics import Role

pytestmark = pytest.mark.faults

MINUTE, DAY = 60, 86_400
#: 2026-11-21 12:00:00 UTC, when the directory was issued; it counts for 90 days, a plan for two.
ISSUED = 1_795_262_400
NOW = ISSUED + 10 * DAY
LASTS = {"issued_at": ISSUED, "expires_at": ISSUED + 90 * DAY}
CLOCKS = {
    "right": NOW,
    "five minutes slow": NOW - 5 * MINUTE,
    "five minutes fast": NOW + 5 * MINUTE,
    "a day slow": NOW - DAY,
    "a day fast": NOW + DAY,
    "never set": 0,
    "1970 and running": 3600,
    "2000": 946_684_800,
}


async def served(tmp_path: Path, clock: Callable[[], float], expires_at: int = NOW + 2 * DAY) -> list[str]:
    """Serve one round by a clock; why plans were refused."""
    async with lone_device(tmp_path, clock, **LASTS) as device:
        with capture_logs() as logs:
            await device.publish_plan(builders.plan(1, expires_at=expires_at), expiry_s=60)
            await device.until(
                lambda: device.work.finished or any(line["event"] == "plan-refused" for line in logs), "a verdict"
            )
        return [line["reason"] for line in logs if line["event"] == "plan-refused"]


@pytest.mark.parametrize("clock", CLOCKS)
async def test_rounds_go_on_by_a_clock_that_is_wrong_by_less_than_a_plan_lasts(tmp_path: Path, clock: str) -> None:
    """How long a round lasts is said in seconds, not by a time of day."""
    assert await served(tmp_path, lambda: CLOCKS[clock]) == []


@pytest.mark.parametrize("clock", [c for c in CLOCKS if c not in ("never set", "1970 and running", "2000")])
async def test_an_expired_plan_is_refused_and_both_times_are_named(tmp_path: Path, clock: str) -> None:
    (reason,) = await served(tmp_path, lambda: CLOCKS[clock], expires_at=NOW - 2 * DAY)
    assert reason.startswith("plan expired at 2026-11-29 12:00:00 UTC, and this machine's clock says 2026-1")


@pytest.mark.parametrize("clock", ["never set", "1970 and running", "2000"])
async def test_a_board_without_a_clock_believes_the_directory_instead(tmp_path: Path, clock: str) -> None:
    """It cannot know that a plan of yesterday is over, but never takes one from before its directory was made."""
    (reason,) = await served(tmp_path, lambda: CLOCKS[clock], expires_at=ISSUED - 1)
    expected = "plan expired at 2026-11-21 11:59:59 UTC, and this machine's clock says 2026-11-21 12:00:00 UTC"
    assert reason == expected


@pytest.mark.parametrize("now", [ISSUED + 90 * DAY, 2**31 - 1, 2**31, 2**32, 4_102_444_800])
async def test_an_expired_directory_serves_no_plan_whatever_the_century(tmp_path: Path, now: int) -> None:
    """Also past 2038, when seconds do not fit 31 bits any more."""
    (reason,) = await served(tmp_path, lambda: now, expires_at=0)
    assert reason.startswith("directory expired at 2027-02-19 12:00:00 UTC, and this machine's clock says 2")


async def test_a_clock_that_jumps_back_in_a_round_changes_nothing_of_it(tmp_path: Path) -> None:
    now = [float(NOW)]
    async with lone_device(tmp_path, lambda: now[0], **LASTS) as device:
        device.work.is_long = True
        await device.publish_plan(builders.plan(1, expires_at=NOW + DAY), expiry_s=60)
        await device.until(lambda: device.work.taken == [1], "round 1")
        now[0] = 0.0
        await device.publish_plan(builders.plan(1, expires_at=NOW + DAY), expiry_s=60)
        await device.publish_plan(builders.plan(2, expires_at=NOW + DAY), expiry_s=60)
        await device.until(lambda: device.work.taken == [1, 2], "round 2, and round 1 not again")
        now[0] = NOW + 50 * DAY
        await device.close_round(2)
        await device.until(lambda: device.work.finished == [1, 2], "the end of round 2")


async def test_a_round_ends_by_the_seconds_left_whatever_the_clock_says(tmp_path: Path) -> None:
    """A clock that gains an hour a minute neither shortens a round nor makes it last."""
    started, now = [NOW], [0]

    def clock() -> float:
        now[0] += 3600
        return started[0] + now[0]

    async with lone_device(tmp_path, clock, **LASTS) as device:
        device.work.is_long = True
        await device.publish_plan(builders.plan(1, deadline_s=0.3))
        await device.until(lambda: device.work.taken == [1], "round 1")
        assert device.work.finished == []
        await device.until(lambda: device.work.finished == [1], "its end")


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("drift", [0.9, 1.0, 1.1])
def test_keys_count_until_they_expire_by_no_clock_before_the_directory(clock: str, drift: float) -> None:
    """Ten days on a clock that drifts by a tenth is a day off: keys that live longer than that are not hit."""
    public = builders.identity(DEVICE).public()[0]
    now = ISSUED + (CLOCKS[clock] - ISSUED) * drift
    for expires_at, counts in ((NOW + 60 * DAY, True), (ISSUED - 1, False)):
        entry = DeviceEntry((party_keys(public, expires_at),))
        known = builders.directory(**LASTS, devices={**builders.directory().devices, DEVICE: entry})
        reader = Party(builders.identity("coordinator"), known, Role.COORDINATOR, clock=lambda: now)
        writer = Party(builders.identity(DEVICE), known, Role.DEVICE, clock=lambda: NOW)
        payload = writer.sign(Heartbeat(1, 0, "plan", 0.0, 0.0, 0, 0))
        if counts:
            assert reader.open("heartbeat", payload).sender == DEVICE
            continue
        with pytest.raises(SignatureError, match=r"expired at 2026-11-21 11:59:59 UTC, now it is 20\d\d-"):
            reader.open("heartbeat", payload)


@pytest.mark.parametrize("field", ["issued_at", "expires_at"])
def test_times_beyond_all_clocks_are_refused_as_they_are_read(field: str) -> None:
    body = msgspec.json.decode(msgspec.json.encode(builders.directory(**LASTS)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**body, field: 2**63}, type(builders.directory()))


def test_an_expired_plan_is_refused_by_the_rule_that_all_roles_share() -> None:
    plan = builders.plan(expires_at=NOW)
    check_plan(plan, digest(encode(plan)), builders.directory(**LASTS), NOW - 1)
    with pytest.raises(PlanError, match=r"plan expired at .* UTC, and this machine's clock says .* UTC"):
        check_plan(plan, digest(encode(plan)), builders.directory(**LASTS), NOW)
