"""What devices say is counted before any signature, each by itself (docs/protocol.md §4.2)."""

from __future__ import annotations

from unittest.mock import patch

from builders import DEVICES, directory, identity
from structlog.testing import capture_logs

from fedpruneshare import sealing
from fedpruneshare.keys import verify
from fedpruneshare.link import Delivery
from fedpruneshare.messages import Hello
from fedpruneshare.party import Party
from fedpruneshare.quota import Allowance, Quota, Turnstile, usual_allowance
from fedpruneshare.topics import Role

HERE, ELSEWHERE = DEVICES[0], DEVICES[1]


def coordinator() -> Party:
    return Party(identity("coordinator"), directory(), Role.COORDINATOR)


def hello(device: str, topic: str = "", rung_limit: int = 3) -> Delivery:
    party = Party(identity(device), directory(), Role.DEVICE)
    return Delivery(party.topics.name("hello", topic or device), party.sign(Hello("0.1.0", rung_limit)), True)


def test_each_device_has_a_quota_of_its_own_in_each_round() -> None:
    quota = Quota(Allowance(3, 250, 100))
    roster = {"a", "b"}
    assert [quota.refuse("a", 100, roster) for _ in range(2)] == ["", ""]
    assert quota.refuse("a", 51, roster) == "251 bytes in this round, expected at most 250"
    assert quota.refuse("a", 1, roster) == "message 4 of this round, expected at most 3"
    assert quota.refuse("b", 101, roster) == "message of 101 bytes, expected at most 100"
    assert quota.refuse("b", 100, roster) == ""
    assert quota.refuse("c", 1, roster) == "not on the roster"
    quota.open_round(Allowance(3, 250, 100))
    assert quota.refuse("a", 100, roster) == ""


def test_a_flood_costs_few_signatures_and_one_line() -> None:
    turnstile = Turnstile(coordinator(), "hello")
    one = hello(HERE)
    with patch.object(sealing, "verify", wraps=verify) as verified, capture_logs() as lines:
        taken = [turnstile.take(one) for _ in range(2000)]
        assert turnstile.take(hello(ELSEWHERE)) is not None
    assert sum(opened is not None for opened in taken) == usual_allowance("hello").messages == verified.call_count - 1
    assert [(line["event"], line["device"], line["reason"]) for line in lines] == [
        ("message-dropped", HERE, "message 257 of this round, expected at most 256")
    ]
    turnstile.open_round(usual_allowance("hello", 60.0))
    assert turnstile.take(one) is not None


def test_garbage_counts_as_much_as_what_is_signed() -> None:
    turnstile = Turnstile(coordinator(), "hello")
    topic = hello(HERE).topic
    with capture_logs() as lines:
        for _ in range(1000):
            assert turnstile.take(Delivery(topic, bytes(300))) is None
        assert turnstile.take(hello(HERE)) is None
        assert turnstile.take(Delivery(hello(ELSEWHERE).topic, bytes(100_000))) is None
        assert turnstile.take(hello(ELSEWHERE)) is not None
    assert [line["event"] for line in lines] == ["message-refused"] * 256 + ["message-dropped"] * 2
    assert lines[-1]["reason"] == "message of 100000 bytes, expected at most 680"


def test_a_device_that_comes_back_fifty_times_in_a_round_is_heard_by_a_reader_that_does_so_too() -> None:
    turnstile = Turnstile(coordinator(), "hello")
    turnstile.open_round(usual_allowance("hello", 30.0))
    for rung_limit in range(50):
        one = hello(HERE, rung_limit=rung_limit % 16)
        assert turnstile.take(one) is not None  # as it is said
        for _ in range(4):
            assert turnstile.take(one) is not None  # and again, for the broker keeps it


def test_nobody_uses_up_a_quota_in_anothers_name_and_strangers_leave_no_trace() -> None:
    turnstile = Turnstile(coordinator(), "hello")
    with capture_logs() as lines:
        assert turnstile.take(hello(HERE, topic=ELSEWHERE)) is None
        for number in range(5000):
            assert turnstile.take(Delivery(f"fps/v1/lab/hello/{'x' * 30_000}{number}", b"x")) is None
            assert turnstile.take(Delivery(f"fps/v1/lab/hello/{number}", b"x")) is None
    assert (lines[0]["device"], lines[0]["reason"]) == (HERE, "published on another device's topic")
    assert len(lines) == 1 + 4096
    assert sum(map(len, turnstile._named)) < 50_000
    assert not turnstile._quota._messages.keys() - {ELSEWHERE}
