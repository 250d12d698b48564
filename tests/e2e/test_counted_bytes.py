"""Every figure of summary.json that is made of bytes, counted again from what passed the brokers."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from e2e.fleets import SMALL, Capture
from rich.console import Console

import testbed.run
from fedpruneshare.messages import Heartbeat, ModelChunk, RoundPlan, ShareUpload, decode
from testbed.fleet import Fleet
from testbed.run import RunOptions, run_scenario
from testbed.scenario import load_scenario
from testbed.summary import ARM
from testbed.watching.progress import Progress

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROUNDS, DEVICES = 3, 8


@dataclass(frozen=True)
class Seen:
    """One message that passed a broker: `ident` is the last part of its topic, the party it is from or for."""

    broker: str
    channel: str
    ident: str
    kind: str
    sender: str
    body: bytes
    size: int


def seen(capture: Capture) -> Iterator[Seen]:
    for broker, topic, payload, _ in capture.messages:
        if payload:
            _, kind, sender, _, _, body = msgspec.msgpack.decode(payload)
            parts = topic.split("/")
            yield Seen(broker, parts[3], parts[-1], kind, sender, body, len(payload))


class TappedFleet(Fleet):
    """A fleet whose brokers are listened to from before its first service starts until every device is done."""

    capture: Capture
    _tap: ExitStack | None = None

    def start(self) -> None:
        type(self).capture = Capture({name: broker.address for name, broker in self.brokers.items()})
        self._tap = ExitStack()
        self._tap.enter_context(self.capture.running())
        super().start()

    def stop(self) -> None:
        try:
            if self._tap is not None:
                with self._tap:
                    self.wait_for(self._is_written, 200, "every device to end its last round")
        finally:
            super().stop()

    def _is_written(self) -> bool:
        ledgers = [self.folder.ledger(device) for device in self.devices]
        return all(path.exists() and f'"round": {ROUNDS}' in path.read_text() for path in ledgers)


@pytest.mark.parametrize("chunk_bytes", [65536, 2048])
def test_bytes_in_the_summary_are_those_that_passed_the_brokers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(testbed.run, "Fleet", TappedFleet)
    overrides = [*SMALL, f"rounds.count={ROUNDS}", "rounds.deadline_s=300", f"coding.chunk_bytes={chunk_bytes}"]
    lines: list[str] = []
    progress = Progress(Console(file=io.StringIO()), lines.append)
    assert run_scenario(load_scenario("demo", overrides), RunOptions(tmp_path / "run"), progress).succeeded
    figures = json.loads((tmp_path / "run" / "summary.json").read_bytes())["arms"][ARM]
    messages = list(seen(TappedFleet.capture))
    check_shares(messages, figures)
    check_uplink(messages, figures)
    assert figures["downlink_bytes"] == figures["wire_bytes"]["down"]
    least = received(messages)
    seeds = [message.size for message in messages if message.channel == "seed" and message.size]
    stale = figures["downlink_bytes"] - least - sum(seeds)  # a device quicker than the seeds gets the last round's, too
    assert 0 <= stale <= sum(seeds) and stale % min(seeds) <= stale // min(seeds) * (max(seeds) - min(seeds))
    assert figures["by_seed"] == [{key: value for key, value in figures.items() if key != "by_seed"}]


def check_shares(messages: list[Seen], figures: dict) -> None:  # type: ignore[type-arg]
    """Every share of every device, each chunk once, as long as plan, rung and point say."""
    first: dict[tuple[object, ...], int] = {}
    plans = {plan.round_id: plan for plan in map(plan_of, messages) if plan}
    for message in messages:
        if message.kind == "share-upload":
            share = decode("share-upload", message.body)
            assert isinstance(share, ShareUpload)
            assert plans[share.round_id].points[message.broker] == share.x
            place = (share.round_id, message.sender, share.x, share.upload_id, share.chunk)
            first.setdefault(place, message.size)
    assert sum(first.values()) == figures["uplink_share_bytes"]
    shares = {place[:3] for place in first}
    assert len(shares) == ROUNDS * DEVICES * 3
    assert len({place[:4] for place in first}) == len(shares)


def plan_of(message: Seen) -> RoundPlan | None:
    plan = decode("round-plan", message.body) if message.kind == "round-plan" else None
    assert plan is None or isinstance(plan, RoundPlan)
    return plan


def check_uplink(messages: list[Seen], figures: dict) -> None:  # type: ignore[type-arg]
    """All that devices sent, over all and by round; a hello belongs to no round."""
    sent = [message for message in messages if message.sender.startswith("device-")]
    assert figures["uplink_bytes"] == figures["wire_bytes"]["up"] == sum(message.size for message in sent)
    by_round: dict[int, int] = defaultdict(int)
    for message in sent:
        if message.kind != "hello":
            body = decode(message.kind, message.body)
            assert isinstance(body, (ShareUpload, Heartbeat))
            by_round[body.round_id] += message.size
    assert set(by_round) == set(range(1, ROUNDS + 1))
    assert figures["uplink_bytes_per_device_round"] == sum(by_round.values()) / (ROUNDS * DEVICES)
    assert figures["uplink_bytes_last_round_per_device"] == by_round[ROUNDS] / DEVICES


def received(messages: list[Seen]) -> int:
    """What devices got but for seeds: answers, plans and outcomes, and of each model the segments of their rungs."""
    model: dict[tuple[int, bytes], int] = defaultdict(int)
    rungs: dict[tuple[int, str], int] = {}
    plans = [plan for plan in map(plan_of, messages) if plan]
    for message in messages:
        if message.kind in ("model-chunk", "share-upload"):
            body = decode(message.kind, message.body)
            if isinstance(body, ModelChunk):
                model[body.segment, body.blob] += message.size
            elif isinstance(body, ShareUpload):
                rungs[body.round_id, message.sender] = body.rung
    assert [plan.round_id for plan in plans] == list(range(1, ROUNDS + 1))
    answers = sum(message.size for message in messages if message.channel == "ack")
    for_all = sum(message.size for message in messages if message.channel in ("round", "outcome"))
    models = sum(
        model[index, segment.blob]
        for plan in plans
        for device in plan.cohort
        for index, segment in enumerate(plan.segments[: rungs[plan.round_id, device] + 1])
    )
    return answers + DEVICES * for_all + models
