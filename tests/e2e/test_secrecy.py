"""What a listener on every broker gets: nothing about any device."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.fleets import Capture, outboxes, paused, small_fleet, start

from edge_client.outbox import Upload
from fedpruneshare.errors import SealError
from fedpruneshare.messages import RoundPlan, ShareUpload, SumShare, decode
from fedpruneshare.party import Party
from fedpruneshare.sealing import Identity, share_context, sum_context
from fedpruneshare.topics import Role
from testbed.federation import FEDERATION

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def channel(topic: str) -> str:
    return topic.split("/")[3]


def test_a_listener_on_every_broker_learns_nothing(tmp_path: Path) -> None:
    overrides = ("rounds.count=2", "rounds.deadline_s=300", "rounds.grace_s=60", "coding.chunk_bytes=4096")
    with small_fleet(tmp_path / "run", *overrides) as fleet:
        capture = Capture({name: broker.address for name, broker in fleet.brokers.items()})
        with capture.running():
            pids = start(fleet)
            # One aggregator says nothing for a while, so every device keeps its upload until the test has read it.
            with paused(pids["aggregator-3"]):
                uploads = fleet.wait_for(lambda: outboxes(fleet), 200, "every device's upload")
            assert fleet.wait_done(250) == 0
            identities = {name: Identity.load(fleet.folder.key(name)) for name in ("coordinator", "aggregator-2")}
        rounds = fleet.rounds()
        directory = fleet.directory
    assert directory is not None
    assert [line.phase for line in rounds] == ["APPLIED", "APPLIED"]
    reader = Party(identities["coordinator"], directory, Role.COORDINATOR)
    shares = opened(reader, capture, ShareUpload)
    assert len(shares) >= 2 * 3 * len(fleet.devices)
    for identity in identities.values():
        check_closed_to(identity, shares)
    check_no_canary(uploads, capture)


def opened(reader: Party, capture: Capture, kind: type) -> list[tuple[str, str, ShareUpload]]:
    """(broker, sender, message) of every signed message of a kind."""
    found = []
    for broker, topic, payload, _ in capture.messages:
        name = channel(topic)
        if payload and name in ("up", "sum"):
            message = reader.open(name, payload)
            if isinstance(message.message, kind):
                found.append((broker, message.sender, message.message))
    return found


def check_closed_to(identity: Identity, shares: list[tuple[str, str, ShareUpload]]) -> None:
    """No share for another party opens with this one's key, whatever receiver its context names."""
    tried = 0
    for broker, sender, share in shares:
        if broker == identity.ident:
            continue
        position = (share.upload_id, share.x, share.rung, share.prg, share.chunk, share.chunks)
        for receiver in {broker, identity.ident}:
            context = share_context(FEDERATION, share.plan, (sender, receiver), position)
            with pytest.raises(SealError):
                identity.unseal(share.sealed, context, share.suite, identity.public()[0].key_id)
            tried += 1
    assert tried > 30


def check_no_canary(uploads: dict[str, Upload], capture: Capture) -> None:
    """No run of a device's words, and no sharing seed, stands in anything that passed a broker."""
    haystack = b"\0\0".join(payload for _, _, payload, _ in capture.messages)
    assert len(uploads) == 8
    for upload in uploads.values():
        words = upload.words.astype("<u4").tobytes()
        for start_at in range(0, len(words) - 16, 400):
            needle = words[start_at : start_at + 16]
            assert len(set(needle)) < 4 or needle not in haystack
        for seed in upload.seeds.values():
            assert seed not in haystack


def test_sums_are_sealed_to_the_coordinator(tmp_path: Path) -> None:
    with small_fleet(tmp_path / "run", "rounds.count=1") as fleet:
        capture = Capture({"control": fleet.brokers["control"].address})
        with capture.running():
            start(fleet)
            assert fleet.wait_done(250) == 0
            stranger = Identity.load(fleet.folder.key("aggregator-1"))
        directory = fleet.directory
    assert directory is not None
    reader = Party(stranger, directory, Role.AGGREGATOR)
    sums = opened(reader, capture, SumShare)
    assert len({sender for _, sender, _ in sums}) == 3
    for _, sender, message in sums:
        assert isinstance(message, SumShare)
        for receiver in ("coordinator", stranger.ident):
            position = (message.x, message.chunk, message.chunks)
            context = sum_context(FEDERATION, message.freeze, (sender, receiver), position)
            with pytest.raises(SealError):
                stranger.unseal(message.sealed, context, message.suite, stranger.public()[0].key_id)
    plans = [payload for _, topic, payload, _ in capture.messages if channel(topic) == "round" and payload]
    plan = reader.open("round", plans[0])
    assert isinstance(decode("round-plan", plan.body), RoundPlan)
