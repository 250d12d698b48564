"""F12: who can read and write what, tried on the brokers as they ship, topic by topic, role by role.

A cell of the matrix is proved by a message that arrives or does not, never by what the broker answers: Mosquitto grants
every subscription. Everybody reads with all the wildcards there are, so that one arrival too many would show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.access import EVERYBODY, MEMBERS, Crowd, Party, Place, site
from faults.mqtt_client import Client, Got, MQTTv311, Will, hostile_context

from fedpruneshare.topics import CHANNELS
from fedpruneshare.topics import Broker as Kind

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(120)]
#: The coordinator's broker takes longest; the quick tests try an aggregator's.
KINDS = [pytest.param(Kind.OWN, id="own"), pytest.param(Kind.CONTROL, id="control", marks=pytest.mark.faults)]


@pytest.fixture(params=KINDS)
def crowd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crowd]:
    with site(tmp_path, request.param) as at, ExitStack() as stack:
        yield Crowd(at, stack)


def payload_of(party: Party, place: Place, action: str) -> bytes:
    return f"{action} {party.role} {party.ident} {place.topic}".encode()


def cells(crowd: Crowd) -> list[tuple[Party, Place]]:
    return [(party, place) for party in EVERYBODY for place in crowd.places]


def test_the_matrix_has_all_cells() -> None:
    from faults.access import places

    found = {kind: len(EVERYBODY) * len(places(kind)) * 4 for kind in Kind}
    assert found[Kind.OWN] == 160
    assert sum(found.values()) >= 1000
    assert {place.channel.name for kind in Kind for place in places(kind)} == set(CHANNELS)


def test_publish_reaches_its_readers_from_its_writer_alone(crowd: Crowd) -> None:
    for party, place in cells(crowd):
        crowd.clients[party].publish(place.topic, payload_of(party, place, "publish"))
    arrived = crowd.arrivals()
    for party, place in cells(crowd):
        expected = crowd.readers(place) if place.may_write(party) else set()
        assert arrived.get(payload_of(party, place, "publish"), set()) == expected, (party, place.topic)


def test_subscribe_brings_what_the_table_allows_and_no_byte_more(crowd: Crowd) -> None:
    for place in crowd.places:
        crowd.writer(place).publish(place.topic, place.topic.encode())
    arrived = crowd.arrivals()
    for place in crowd.places:
        assert arrived[place.topic.encode()] == crowd.readers(place), place.topic
    assert set(arrived) == {place.topic.encode() for place in crowd.places}  # and nothing of $SYS


def test_retained_messages_stay_where_the_broker_can_tell(crowd: Crowd) -> None:
    """On the coordinator's broker a writer can leave one on any topic of its own; readers refuse it (`Party.take`)."""
    for party, place in cells(crowd):
        if crowd.clients[party].is_lost:
            crowd.join(party)
        crowd.clients[party].publish(place.topic, payload_of(party, place, "retain"), retain=True)
        stored = {got.payload for reader in crowd.readers(place) for got in anew(crowd, reader, place) if got.retained}
        is_kept = place.may_write(party) and crowd.at.kind is Kind.CONTROL
        assert stored == ({payload_of(party, place, "retain")} if is_kept else set()), (party, place.topic)
        if is_kept:
            crowd.clients[party].publish(place.topic, b"", retain=True)


def anew(crowd: Crowd, reader: Party, place: Place) -> list[Got]:
    """What a reader gets that subscribes to a topic again."""
    client = crowd.clients[reader]
    if client.is_lost:
        client = crowd.join(reader)
    before = len(client.got)
    client.unsubscribe(place.topic)
    client.subscribe(place.topic)
    client.unsubscribe("fps/v1/lab/none")
    return client.got[before:]


def test_wills_go_where_their_party_may_write(crowd: Crowd) -> None:
    """A will on a party's own topic is no more than a message that it could have sent: signed, or refused."""
    for party in EVERYBODY:
        for place in crowd.places:
            crowd.at.client(party, Will(place.topic, payload_of(party, place, "will"))).cut()
        crowd.join(party)  # the broker has let go of the connection before, and published its will
    arrived = crowd.arrivals()
    for party, place in cells(crowd):
        # Who was not there while the will was published cannot have got it.
        expected = crowd.readers(place) - {party} if place.may_write(party) else set()
        assert arrived.get(payload_of(party, place, "will"), set()) == expected, (party, place.topic)


def test_topics_of_nobody(crowd: Crowd) -> None:
    """Another federation's, none of the protocol's, the broker's own."""
    strange = (
        "fps/v1/other/up/pi-01",
        "fps/v1/other/round",
        "fps/v2/lab/round",
        "x",
        "$SYS/x",
        "$CONTROL/dynamic-security/v1",
    )
    for party in EVERYBODY:
        for topic in strange:
            if crowd.clients[party].is_lost:
                crowd.join(party)
            crowd.clients[party].publish(topic, f"strange {party} {topic}".encode())
    assert not [payload for payload in crowd.arrivals() if payload.startswith(b"strange")]


def test_nobody_is_thrown_out_by_anothers_client_id(crowd: Crowd) -> None:
    """All of these clients gave the same client id, `chosen-by-the-client`."""
    assert not any(client.is_lost for client in crowd.clients.values())


def test_retained_will_is_refused_where_nothing_is_retained(crowd: Crowd) -> None:
    place = crowd.places[0]
    party = next(party for party in MEMBERS if place.may_write(party))
    context = hostile_context(crowd.at.certificate(party), str(crowd.at.certificates.ca_file))
    client = Client(crowd.at.broker.address, context, Will(place.topic, b"will", retained=True))
    assert (client.login == "Success") is (crowd.at.kind is Kind.CONTROL)
    client.close()


def test_older_mqtt_is_bound_by_the_same_list(crowd: Crowd) -> None:
    """Mosquitto 2.0 cannot refuse MQTT 3.1.1; to it, it says success and does nothing."""
    device, foreign = MEMBERS[0], next(place for place in crowd.places if not place.may_write(MEMBERS[0]))
    own = next(place for place in crowd.places if place.may_write(device))
    context = hostile_context(crowd.at.certificate(device), str(crowd.at.certificates.ca_file))
    old = Client(crowd.at.broker.address, context, protocol=MQTTv311)
    for place in (foreign, own):
        old.publish(place.topic, b"old " + place.topic.encode())
    arrived = crowd.arrivals()
    assert b"old " + foreign.topic.encode() not in arrived
    assert arrived[b"old " + own.topic.encode()] == crowd.readers(own)
    old.close()
