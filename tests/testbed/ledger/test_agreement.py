"""Ledgers held against each other, and how much framing may add."""

from __future__ import annotations

import math

import pytest

from fedpruneshare.errors import RunError
from testbed.ledger.agreement import Wire, compare_books, is_quiet, longest_topic
from testbed.ledger.framing import HEADER_BYTES, PUBACK_BYTES, PUBLISH_BYTES, SEGMENT_BYTES, framing_bound
from testbed.ledger.rounds import BytesDown, BytesUp, DeviceRound, InterfaceBytes, LinkCounts
from testbed.links.settings import FREE, LinkProfile

TOPIC_BYTES = 40
QUIET = Wire(links=4, topic_bytes=TOPIC_BYTES, seconds=30.0, is_quiet=True)


def ledger(**changed: object) -> list[DeviceRound]:
    fields: dict[str, object] = {
        "up": BytesUp(40_000, 500, 100), "down": BytesDown(20_000, 800, 400, 0),
        "shares_by": {"aggregator-1": 25_000, "aggregator-2": 15_000},
        "traffic": LinkCounts(40_600, 6, 21_200, 8, 4),
    }  # fmt: skip
    return [DeviceRound(1, "uploaded", **(fields | changed)), DeviceRound(2, "declined", traffic=LinkCounts())]  # type: ignore[arg-type]


def test_ledgers_that_agree_are_told_as_checked() -> None:
    wire = {0: {"a": InterfaceBytes(500, 500)}, 1: {"a": InterfaceBytes(43_000, 23_000)}}
    found = compare_books({"a": ledger()}, wire, {"a": QUIET})
    found.check()
    assert found.conditions == {"devices": 1, "payload_checked": 1, "interface_checked": 1, "unexplained": []}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"up": BytesUp(40_000, 500, 101)}, "a: found 40601 bytes up by cause, expected the 40600 its links sent"),
        ({"down": BytesDown(20_000, 800, 400, 5)}, "a: found 21205 bytes down by cause, expected the 21200"),
        ({"shares_by": {"aggregator-1": 39_999}}, "a: found 39999 share bytes by aggregator, expected 40000"),
    ],
)
def test_a_cause_too_many_or_too_few_fails_the_run(changed: dict[str, object], said: str) -> None:
    with pytest.raises(RunError, match=said):
        compare_books({"a": ledger(**changed)}, {}, {"a": QUIET}).check()


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (InterfaceBytes(40_599, 23_000), "a: found 40599 bytes up at the interface, expected the 40600 it sent"),
        (InterfaceBytes(43_000, 21_199), "a: found 21199 bytes down at the interface, expected the 21200 it received"),
        (InterfaceBytes(43_000, 90_000), "a: found 90000 bytes down at the interface, expected at most"),
    ],
)
def test_an_interface_that_cannot_be_explained_fails_on_a_quiet_wire_alone(passed: InterfaceBytes, said: str) -> None:
    with pytest.raises(RunError, match=said):
        compare_books({"a": ledger()}, {1: {"a": passed}}, {"a": QUIET}).check()
    lossy = Wire(QUIET.links, QUIET.topic_bytes, QUIET.seconds, is_quiet=False)
    found = compare_books({"a": ledger()}, {1: {"a": passed}}, {"a": lossy})
    found.check()
    assert len(found.conditions["unexplained"]) == 1
    # So it is with a device that was cut off: what it had handed over may never have left.
    again = ledger(traffic=LinkCounts(40_600, 6, 21_200, 8, 5))
    compare_books({"a": again}, {1: {"a": passed}}, {"a": QUIET}).check()


def test_what_a_killed_device_did_not_write_down_is_told_and_fails_nothing() -> None:
    cut = Wire(QUIET.links, QUIET.topic_bytes, QUIET.seconds, is_quiet=True, is_cut=True)
    found = compare_books({"a": ledger(down=BytesDown(20_000, 0, 400, 0))}, {}, {"a": cut})
    found.check()
    assert found.conditions["unexplained"] == [
        "a: found 20400 bytes down by cause, expected the 21200 its links received"
    ]


def test_what_a_killed_device_had_handed_over_and_never_left_fails_nothing() -> None:
    """Also where it never came back, so that it connected no more often than others."""
    cut = Wire(QUIET.links, QUIET.topic_bytes, QUIET.seconds, is_quiet=True, is_cut=True)
    found = compare_books({"a": ledger()}, {1: {"a": InterfaceBytes(30_000, 23_000)}}, {"a": cut})
    found.check()
    assert found.conditions["unexplained"] == ["a: found 30000 bytes up at the interface, expected the 40600 it sent"]


def test_a_ledger_without_counts_of_its_links_is_not_checked() -> None:
    found = compare_books({"a": ledger(traffic=None), "b": []}, {}, {})
    assert found.conditions == {"devices": 2, "payload_checked": 0}


def test_only_the_first_disagreements_are_named() -> None:
    ledgers = {f"device-{number}": ledger(up=BytesUp()) for number in range(9)}
    with pytest.raises(RunError, match=r"device-0: .*\n.*\ndevice-1: .*\n.*\ndevice-2: .*\nand 13 more"):
        compare_books(ledgers, {}, dict.fromkeys(ledgers, QUIET)).check()


def test_a_wire_is_quiet_if_tcp_has_nothing_to_repeat() -> None:
    assert is_quiet(FREE)
    assert is_quiet(LinkProfile(up_kbit_s=20_000, down_kbit_s=40_000, delay_ms=30, jitter_ms=5))
    for noisy in (
        LinkProfile(loss_percent=0.1),
        LinkProfile(up_kbit_s=500),
        LinkProfile(outage_every_s=60, outage_s=1),
        LinkProfile(duty_period_s=10, duty_on_s=1),
    ):
        assert not is_quiet(noisy)


def test_the_longest_topic_is_that_of_a_model_chunk_or_of_the_device() -> None:
    assert longest_topic("testbed", "device-00") == len("fps/v1/testbed/heartbeat/device-00")
    assert longest_topic("testbed", "d") == len("fps/v1/testbed/model/65535/65535")


def packets(messages: int, payload_bytes: int) -> tuple[int, int]:
    """Bytes of messages sent one by one, and of what answers them: full segments, every one acknowledged."""
    packet = payload_bytes + PUBLISH_BYTES + TOPIC_BYTES
    segments = math.ceil(packet / SEGMENT_BYTES)
    forth = messages * (packet + segments * HEADER_BYTES + HEADER_BYTES)  # the last: what acknowledges the PUBACK
    back = messages * (segments * HEADER_BYTES + PUBACK_BYTES + HEADER_BYTES)
    return forth, back


@pytest.mark.parametrize("payload_bytes", [50, 1400, 20_000, 65_536])
@pytest.mark.parametrize("messages", [1, 100])
def test_the_bound_holds_what_an_exchange_of_packets_takes_and_not_much_more(messages: int, payload_bytes: int) -> None:
    forth, back = packets(messages, payload_bytes)
    counts = LinkCounts(messages * payload_bytes, messages, 0, 0, 1)
    bound = framing_bound(counts, TOPIC_BYTES, 10.0)
    assert forth <= bound.up
    assert back <= bound.down
    if messages == 100 and payload_bytes >= 20_000:
        assert bound.up <= 1.2 * forth  # a message's tail sent twice, and an interface that says something by itself


def test_messages_of_20_kb_cost_less_than_12_percent_more_at_the_interface() -> None:
    forth, back = packets(100, 20_000)
    assert forth / (100 * 20_000) <= 1.12
    # Also where as much comes down as goes up: acknowledgements of both directions are counted in each.
    assert (forth + back) / (100 * 20_000) <= 1.12
