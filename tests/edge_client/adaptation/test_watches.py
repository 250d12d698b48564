"""Rates and round-trip times from timed publishes: right on a modelled link, robust, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.adaptation.watches import KEPT, LARGE_BYTES, SMALL_BYTES, LinkEstimate, LinkWatch, StepWatch, width_key

CHUNK = 65_536


def published(watch: LinkWatch, rate: float, rtt_s: float, count: int = 8, chunk: int = CHUNK) -> None:
    """Publishes over a link of this rate and round-trip time, one after the other."""
    for _ in range(count):
        watch.add("agg-a", 300, rtt_s + 300 / rate)
        watch.add("agg-a", chunk, rtt_s + chunk / rate)


def test_nothing_is_known_before_the_first_publish() -> None:
    assert LinkWatch().estimate("agg-a") == LinkEstimate(None, None, 0, 0)
    assert LinkWatch().estimates() == {}


@given(rate=st.floats(2e4, 2e6), rtt_s=st.floats(0.001, 0.03))
def test_a_link_is_found_again(rate: float, rtt_s: float) -> None:
    watch = LinkWatch()
    published(watch, rate, rtt_s)
    found = watch.estimate("agg-a")
    assert found.rtt_s == pytest.approx(rtt_s + 300 / rate)
    assert found.up_bytes_s == pytest.approx(rate, rel=0.01)
    assert (found.large, found.small) == (8, 8)


@given(rate=st.floats(1e3, 1e10), rtt_s=st.floats(1e-6, 5))
def test_a_rate_is_never_more_than_twice_what_was_seen(rate: float, rtt_s: float) -> None:
    watch = LinkWatch()
    published(watch, rate, rtt_s)
    seen = CHUNK / (rtt_s + CHUNK / rate)
    found = watch.estimate("agg-a").up_bytes_s
    assert found is not None
    assert seen <= found <= 2 * seen * 1.000001


def test_publishes_that_wait_behind_others_do_not_make_a_link_look_slow() -> None:
    watch, rate, rtt_s = LinkWatch(), 1e6, 0.01
    watch.add("agg-a", 300, rtt_s)
    for outstanding in (1, 2, 3, 4, 4, 4, 4):
        ahead = outstanding * CHUNK
        watch.add("agg-a", CHUNK, rtt_s + ahead / rate, in_flight_bytes=ahead)
    assert watch.estimate("agg-a").up_bytes_s == pytest.approx(rate, rel=1e-6)


def test_a_small_publish_behind_large_ones_does_not_pass_for_a_round_trip() -> None:
    watch = LinkWatch()
    watch.add("agg-a", 300, 0.9, in_flight_bytes=300 + 4 * CHUNK)
    assert watch.estimate("agg-a") == LinkEstimate(None, None, 0, 0)


def test_a_stall_and_a_lucky_packet_move_nothing() -> None:
    watch = LinkWatch()
    published(watch, 1e6, 0.02, count=9)
    before = watch.estimate("agg-a")
    for seconds in (60.0, 1e-5, 45.0):
        watch.add("agg-a", 300, seconds)
        watch.add("agg-a", CHUNK, seconds)
    after = watch.estimate("agg-a")
    assert (after.up_bytes_s, after.rtt_s) == (before.up_bytes_s, before.rtt_s)


def test_a_link_that_changes_is_followed_and_memory_is_bounded() -> None:
    watch = LinkWatch()
    published(watch, 1e6, 0.02, count=500)
    published(watch, 1e5, 0.2, count=KEPT)
    found = watch.estimate("agg-a")
    assert found.up_bytes_s == pytest.approx(1e5, rel=0.02)
    assert (found.large, found.small) == (KEPT, KEPT)


def test_sizes_between_small_and_large_show_neither() -> None:
    watch = LinkWatch()
    watch.add("agg-a", SMALL_BYTES + 1, 0.1)
    watch.add("agg-a", LARGE_BYTES - 1, 0.1)
    assert watch.estimate("agg-a") == LinkEstimate(None, None, 0, 0)
    watch.add("agg-a", LARGE_BYTES, 0.5)
    assert watch.estimate("agg-a") == LinkEstimate(LARGE_BYTES / 0.5, None, 1, 0)


def test_links_are_apart() -> None:
    watch = LinkWatch()
    watch.add("agg-b", 100, 0.5)
    watch.add("agg-a", 100, 0.1)
    assert {ident: found.rtt_s for ident, found in watch.estimates().items()} == {"agg-a": 0.1, "agg-b": 0.5}


@pytest.mark.parametrize(
    ("payload", "seconds", "ahead"),
    [
        (-1, 1.0, None),
        (10, 0.0, None),
        (10, -1.0, None),
        (10, float("nan"), None),
        (10, float("inf"), None),
        (10, 1.0, 9),
    ],
)
def test_impossible_figures_are_refused(payload: int, seconds: float, ahead: int | None) -> None:
    with pytest.raises(ValueError, match="expected bytes >= 0"):
        LinkWatch().add("agg-a", payload, seconds, in_flight_bytes=ahead)


# --------------------------------------------------------------------------- steps


def test_steps_are_medians_by_width() -> None:
    watch = StepWatch()
    for seconds in (0.1, 0.2, 9.0):
        watch.add(1, seconds)
    watch.add(0.5, 0.04)
    assert watch.steps_s() == {"0.5": 0.04, "1.0": 0.2}


def test_steps_follow_a_board_that_throttles() -> None:
    watch = StepWatch()
    for _ in range(1000):
        watch.add(1.0, 0.1)
    for _ in range(KEPT):
        watch.add(1.0, 0.3)
    assert watch.steps_s() == {"1.0": pytest.approx(0.3)}


@pytest.mark.parametrize(("width", "seconds"), [(0, 1.0), (1.01, 1.0), (0.5, 0.0), (0.5, float("nan"))])
def test_impossible_steps_are_refused(width: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected seconds > 0 and 0 < width <= 1"):
        StepWatch().add(width, seconds)


def test_a_width_as_a_key() -> None:
    assert (width_key(1), width_key(0.5), width_key(0.25)) == ("1.0", "0.5", "0.25")
