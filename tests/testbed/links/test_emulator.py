"""The arithmetic of an emulated link, in virtual time: exact."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from testbed.links.emulator import QUEUE_PACKETS, Direction, Gate, both_ways
from testbed.links.settings import LinkProfile


def up(seed: int = 1, **keys: Any) -> Direction:
    return both_ways(LinkProfile(**keys), seed)[0]


def test_a_free_link_delivers_at_once() -> None:
    assert up().offer(3.0, 1500) == 3.0


def test_packets_leave_one_after_the_other_at_the_rate_and_arrive_a_delay_later() -> None:
    link = up(up_kbit_s=1000, delay_ms=40)
    assert [link.offer(0.0, 1250) for _ in range(3)] == pytest.approx([0.05, 0.06, 0.07])
    assert link.offer(1.0, 1250) == pytest.approx(1.05)


def test_each_direction_has_its_own_rate_and_its_own_losses() -> None:
    forth, back = both_ways(LinkProfile(up_kbit_s=100, down_kbit_s=1000, loss_percent=30), 5)
    first, second = ([link.offer(float(i), 125) is None for i in range(200)] for link in (forth, back))
    assert first != second
    quick, slow = both_ways(LinkProfile(up_kbit_s=100, down_kbit_s=1000), 5)
    assert (quick.offer(0.0, 125), slow.offer(0.0, 125)) == (pytest.approx(0.01), pytest.approx(0.001))


def test_which_packets_are_lost_follows_from_the_seed_not_from_when_or_how_large_they_are() -> None:
    def pattern(seed: int, gap_s: float, size: int) -> list[bool]:
        link = up(seed, loss_percent=5, delay_ms=10, jitter_ms=5, up_kbit_s=10_000)
        outcome = []
        for index in range(2000):
            outcome.append(link.offer(index * gap_s, size) is None)
            if not outcome[-1]:
                link.arrived()
        return outcome

    assert pattern(1, 0.01, 100) == pattern(1, 0.02, 1500)
    assert pattern(1, 0.01, 100) != pattern(2, 0.01, 100)
    assert abs(sum(pattern(1, 0.01, 100)) - 100) < 3 * math.sqrt(2000 * 0.05 * 0.95)


def test_a_lost_packet_takes_no_time_on_the_link() -> None:
    link = up(up_kbit_s=1000, loss_percent=50)
    arrivals = [at for _ in range(50) if (at := link.offer(0.0, 1250)) is not None]
    assert arrivals == pytest.approx([0.01 * (index + 1) for index in range(len(arrivals))])
    assert link.counts["lost"] == 50 - len(arrivals)


def test_jitter_wanders_around_the_delay_and_no_packet_overtakes() -> None:
    link = up(delay_ms=50, jitter_ms=40)
    sent = [index * 0.001 for index in range(60_000)]
    delays = []
    last = 0.0
    for now in sent:
        arrives = link.offer(now, 100)
        assert arrives is not None
        assert arrives >= last
        last = arrives
        delays.append(arrives - now)
        link.arrived()
    assert min(delays) >= 0.010
    assert max(delays) <= 0.090
    assert max(delays) - min(delays) > 0.06
    assert sum(delays) / len(delays) == pytest.approx(0.050, abs=0.004)


def test_the_queue_is_bounded_and_drops_the_newest() -> None:
    link = up(up_kbit_s=1)
    arrivals = [link.offer(0.0, 125) for _ in range(QUEUE_PACKETS + 5)]
    assert [at is None for at in arrivals] == [False] * QUEUE_PACKETS + [True] * 5
    assert link.counts["queue_full"] == 5
    link.arrived()
    assert link.offer(0.0, 125) == pytest.approx(QUEUE_PACKETS + 1.0)


def test_a_duty_cycle_makes_packets_wait_for_the_radio() -> None:
    link = up(duty_period_s=10, duty_on_s=2, up_kbit_s=1000)
    assert link.offer(1.0, 1250) == pytest.approx(1.01)
    assert link.offer(2.0, 1250) == pytest.approx(10.01)
    assert link.offer(3.0, 1250) == pytest.approx(10.02)
    assert link.offer(19.9, 1250) == pytest.approx(20.01)


def test_outages_come_at_the_asked_rate_and_are_the_same_in_both_directions() -> None:
    profile = LinkProfile(outage_every_s=20, outage_s=2)
    forth, back = both_ways(profile, 9)
    times = [index * 0.1 for index in range(200_000)]

    def outages(link: Direction) -> list[bool]:
        outcome = []
        for now in times:
            outcome.append(link.offer(now, 100) is None)
            if not outcome[-1]:
                link.arrived()
        return outcome

    out = outages(forth)
    assert out == outages(back)
    assert sum(out) / len(out) == pytest.approx(2 / 20, rel=0.15)
    starts = sum(is_out and not was_out for was_out, is_out in itertools.pairwise(out))
    assert starts == pytest.approx(20_000 / 20, rel=0.15)
    assert forth.counts["in_outage"] == sum(out)


def test_what_still_waits_when_an_outage_begins_is_lost_with_it() -> None:
    profile = LinkProfile(outage_every_s=20, outage_s=5, up_kbit_s=1)
    gate = Gate(profile, 3)
    begins = next(now / 100 for now in range(100_000) if gate.outage_until(now / 100) is not None)
    link = Direction(profile, profile.up_bit_s, Gate(profile, 3), 4)
    arrivals = [link.offer(begins - 3.0, 125) for _ in range(6)]  # one second each on this link
    assert [at is None for at in arrivals] == [False] * 3 + [True] * 3 or arrivals[3] is not None
    assert all(at is None for at in arrivals[4:])
    assert link.offer(begins + 5.1, 125) is not None
