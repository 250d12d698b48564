"""Topics and the access lists that follow from their table (docs/protocol.md §2)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedpruneshare.link.inbox import matches
from fedpruneshare.messages import KINDS
from fedpruneshare.topics import CHANNELS, TABLE, WRITER_OF_KIND, Broker, Role, Topics, access_rules

TOPICS = Topics("lab")
CONTROL = {"coordinator": Role.COORDINATOR, "aggregator-1": Role.AGGREGATOR, "device-01": Role.DEVICE,
           "device-02": Role.DEVICE}  # fmt: skip
OWN = {"aggregator-1": Role.AGGREGATOR, "device-01": Role.DEVICE, "device-02": Role.DEVICE}


def may(party: str, action: str, topic: str, broker: Broker, parties: dict[str, Role]) -> bool:
    rules = access_rules("lab", broker, parties)
    return any(r.party == party and r.action == action and matches(r.topic_filter, topic) for r in rules)


def test_every_kind_travels_on_one_channel() -> None:
    """But for the refusal, which answers a plan or a Freeze."""
    kinds = [kind for channel in TABLE for kind in channel.kinds]
    assert sorted(kinds) == sorted([*KINDS, "refusal"])
    assert set(WRITER_OF_KIND) == set(KINDS)


def test_names_and_filters() -> None:
    assert TOPICS.name("up", "device-01") == "fps/v1/lab/up/device-01"
    assert TOPICS.name("model", 0, 3) == "fps/v1/lab/model/0/3"
    assert TOPICS.every("model") == "fps/v1/lab/model/+/+"
    assert matches(TOPICS.segment(2), TOPICS.name("model", 2, 9))
    assert TOPICS.party("up", "fps/v1/lab/up/device-01") == "device-01"
    assert TOPICS.party("up", "fps/v1/lab/up/device-01/more") == ""
    assert TOPICS.party("up", "fps/v1/other/up/device-01") == ""


@pytest.mark.parametrize("channel", list(CHANNELS))
def test_a_device_writes_only_in_its_own_name(channel: str) -> None:
    for broker, parties in ((Broker.CONTROL, CONTROL), (Broker.OWN, OWN)):
        if "{device}" in CHANNELS[channel].pattern:
            topic = TOPICS.name(channel, "device-02")
            assert not may("device-01", "write", topic, broker, parties)
            if CHANNELS[channel].writer is not Role.DEVICE:
                assert not may("device-01", "read", topic, broker, parties)


def test_who_may_speak_for_whom() -> None:
    own, control = (Broker.OWN, OWN), (Broker.CONTROL, CONTROL)
    assert may("device-01", "write", TOPICS.name("up", "device-01"), *own)
    assert may("aggregator-1", "read", TOPICS.name("up", "device-01"), *own)
    assert may("device-01", "read", TOPICS.name("ack", "device-01"), *own)
    assert not may("device-01", "read", TOPICS.name("up", "device-01"), *own)
    for topic in ("round", "freeze", "outcome"):
        assert may("coordinator", "write", TOPICS.name(topic), *control)
        assert not may("aggregator-1", "write", TOPICS.name(topic), *control)
        assert not may("device-01", "write", TOPICS.name(topic), *control)
    assert not may("device-01", "read", TOPICS.name("sum", "aggregator-1"), *control)
    assert not may("aggregator-1", "write", TOPICS.name("sum", "aggregator-2"), *control)


def test_the_coordinator_has_no_business_on_an_aggregators_broker() -> None:
    rules = access_rules("lab", Broker.OWN, {**OWN, "coordinator": Role.COORDINATOR})
    assert rules
    assert not [rule for rule in rules if rule.party == "coordinator"]


def test_the_protocol_document_has_the_same_table() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (\w+) \| ([^|]+) \| (yes|no)[^|]* \| ([^|]+) \|$", text, re.M)
    documented = {
        pattern.replace("<", "{").replace(">", "}"): (broker, writer, readers, retained == "yes", kinds)
        for pattern, broker, writer, readers, retained, kinds in rows
    }
    assert set(documented) == {channel.pattern for channel in TABLE}
    for channel in TABLE:
        broker, writer, readers, retained, kinds = documented[channel.pattern]
        assert (broker, writer, retained) == (channel.broker, channel.writer, channel.retained), channel.name
        assert sorted(r.strip().rstrip("s") for r in readers.split(",")) == sorted(channel.readers)
        assert sorted(k.strip() for k in kinds.split(",")) == sorted(KINDS[kind][0].__name__ for kind in channel.kinds)
