"""What the self-test makes of what it measured: a tenth is allowed, chance is allowed for, and no more."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from testbed.links import self_test
from testbed.links.self_test import WayFound, allowed_loss, delay_pace, expected_delay_ms, judge, tells_loss
from testbed.links.settings import LinkProfile
from testbed.scenario import load_scenario

PROFILE = LinkProfile(up_kbit_s=1000, down_kbit_s=4000, delay_ms=50, loss_percent=2)


def found(**keys: Any) -> tuple[WayFound, WayFound]:
    """A sound link, but for the keys of its uplink."""
    up = {"rate_bit_s": 1.02e6, "delay_ms": 51.0, "packets": 1000, "lost": 23, **keys}
    return WayFound(**up), WayFound(3.9e6, 49.0, 1000, 17)


def test_a_sound_link_passes() -> None:
    assert judge(PROFILE, found()) == []
    assert judge(LinkProfile(), (WayFound(None, 0.2, 1000, 0),) * 2) == []


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"rate_bit_s": 0.89e6}, "up: found 890 kbit/s, expected 1000"),
        ({"rate_bit_s": 1.11e6}, "up: found 1110 kbit/s, expected 1000"),
        ({"rate_bit_s": None}, "up: found 0 kbit/s, expected 1000"),
        ({"delay_ms": 56.0}, "up: found a delay of 56 ms, expected 50.48 within 5"),
        ({"delay_ms": 44.0}, "up: found a delay of 44 ms, expected 50.48 within 5"),
        ({"delay_ms": float("inf")}, "up: found a delay of inf ms, expected 50.48 within 5"),
        ({"lost": 34}, "up: found 34 of 1000 packets lost, expected 20.0 within 13.3"),
        ({"lost": 6}, "up: found 6 of 1000 packets lost, expected 20.0 within 13.3"),
    ],
)
def test_what_is_off_is_named_with_found_and_expected(wrong: dict[str, Any], complaint: str) -> None:
    assert judge(PROFILE, found(**wrong)) == [complaint]


def test_of_loss_a_tenth_or_three_standard_deviations_whichever_is_more() -> None:
    assert allowed_loss(LinkProfile(loss_percent=2), 1000) == pytest.approx(13.28, abs=0.01)
    assert allowed_loss(LinkProfile(loss_percent=2), 1_000_000) == pytest.approx(2000)
    assert allowed_loss(LinkProfile(), 1000) == 2.0


def test_jitter_widens_what_a_short_measurement_can_tell() -> None:
    wandering = LinkProfile(delay_ms=50, jitter_ms=20)
    assert judge(wandering, (WayFound(None, 58.0, 1000, 0),) * 2) == []
    assert len(judge(wandering, (WayFound(None, 62.0, 1000, 0),) * 2)) == 2


SHIPPED = [
    (scenario, name, profile)
    for scenario in ("lossy-wifi", "lte-farm")
    for name, profile in load_scenario(scenario).links.profiles.items()
]


@pytest.mark.parametrize(("scenario", "name", "profile"), SHIPPED)
def test_a_shipped_link_without_its_delay_or_its_loss_is_refused(
    scenario: str, name: str, profile: LinkProfile
) -> None:
    def way(rate_bit_s: float, lacks: str = "") -> WayFound:
        gap_s, seconds = delay_pace(profile, rate_bit_s)
        packets, delay_ms = int(seconds / gap_s), expected_delay_ms(profile, rate_bit_s)
        lost = 0 if lacks == "loss" else round(packets * profile.loss_percent / 100)
        return WayFound(rate_bit_s, delay_ms - profile.delay_ms * (lacks == "delay"), packets, lost)

    up, down = way(profile.up_bit_s), way(profile.down_bit_s)
    assert judge(profile, (up, down)) == []
    assert judge(profile, (way(profile.up_bit_s, "delay"), down)), (scenario, name)
    assert judge(profile, (up, way(profile.down_bit_s, "delay"))), (scenario, name)
    # Mobile links carry too few packets in six seconds for one loss in a hundred; their record says so.
    is_told = tells_loss(profile, up.packets)
    assert is_told == (scenario != "lte-farm" or name == "wired")
    if is_told and profile.loss_percent:
        assert judge(profile, (way(profile.up_bit_s, "loss"), down)), (scenario, name)
        assert judge(profile, (up, way(profile.down_bit_s, "loss"))), (scenario, name)


@pytest.mark.timeout(60)
def test_a_rate_that_nobody_can_send_at_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "_LATE_S", 0.2)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        for one in (sender, receiver):
            one.setblocking(False)
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        flow = self_test._Flow(sender, receiver)
        flow.plan(1514, 1e-9, 0.1)
        self_test._run([flow], 0.05)
    assert 0 < flow.sent < flow.count == 100_000_000
    assert flow.arrivals
    rate = WayFound(self_test._rate_bit_s(flow), 0.0, 100, 0)
    (complaint,) = judge(LinkProfile(up_kbit_s=1.2e10), (rate, WayFound(None, 0.0, 100, 0)))
    assert "expected" in complaint
