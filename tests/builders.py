"""A small federation to test rules on: keys, directory, and a sound plan that single fields can be changed in."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service, party_keys
from fedpruneshare.messages import Coding, Reveal, RoundPlan, Segment, Sharing, Training, digest, encode
from fedpruneshare.plain import PlainLayout
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sealing import Identity
from fedpruneshare.words import WordLayout

DEVICES = tuple(f"device-{index:02}" for index in range(10))
AGGREGATORS = ("aggregator-1", "aggregator-2", "aggregator-3")


@cache
def identity(name: str) -> Identity:
    """Keys of a party, the same for the whole test run."""
    return Identity.generate(name)


def keys(name: str) -> tuple[PartyKeys, ...]:
    return tuple(party_keys(public) for public in identity(name).public())


def directory(**changes: Any) -> Directory:
    """Three aggregators, ten devices, floors of 3."""
    services = {n: Service(keys(n), host="127.0.0.1", port=1883) for n in ("coordinator", *AGGREGATORS)}
    whole = Directory(
        federation="lab",
        version=1,
        coordinator_id="coordinator",
        coordinator=services["coordinator"],
        aggregators={name: services[name] for name in AGGREGATORS},
        devices={name: DeviceEntry(keys(name)) for name in DEVICES},
        min_devices=3,
        min_devices_segment=3,
    )
    return msgspec.structs.replace(whole, **changes)


def plan(round_id: int = 1, **changes: Any) -> RoundPlan:
    """(2, 3) sharing, three segments, chunks of 1 KiB so that full shares take several."""
    coding = Coding(4, 16, (0.1, 0.2), (0.05,), 512, len(DEVICES))
    layout = WordLayout(coding)
    shapes = ((1200, 20), (900, 0), (500, 0))
    segments = tuple(
        Segment(weights, vectors, layout.words(vectors, weights), 0.1 * (place + 1), bytes(32), 100, bytes(32))
        for place, (weights, vectors) in enumerate(shapes)
    )
    whole = RoundPlan(
        round_id=round_id,
        directory_version=1,
        task="hapt",
        bundle=bytes(32),
        table=bytes(32),
        sharing=Sharing(3, 2, 1),
        points={name: 1 + (place + round_id) % 3 for place, name in enumerate(AGGREGATORS)},
        coding=coding,
        segments=segments,
        rungs=(0, 1, 2),
        training=Training(1, 32, 0.1),
        cohort=DEVICES,
        min_devices=3,
        min_devices_segment=3,
        deadline_s=60.0,
        chunk_bytes=1024,
    )
    return msgspec.structs.replace(whole, **changes)


def view(round_id: int = 1, **changes: Any) -> PlanView:
    """A checked plan."""
    made = plan(round_id, **changes)
    return check_plan(made, digest(encode(made)), directory())


def plain_directory() -> Directory:
    """One aggregator, to which updates may travel unshared."""
    one = {"aggregator-1": directory().aggregators["aggregator-1"]}
    return directory(aggregators=one, plain_updates=True)


def plain_plan(bits: int = 32, **changes: Any) -> RoundPlan:
    """No sharing: floats of so many bits, to one aggregator (docs/protocol.md §5.10)."""
    base = plan()
    coding = msgspec.structs.replace(base.coding, value_bits=bits, vector_bits=bits)
    layout = PlainLayout(coding)
    segments = tuple(
        msgspec.structs.replace(segment, words=layout.words(segment.vectors, segment.weights))
        for segment in base.segments
    )
    sharing = Sharing(1, 1, 0, reveal=Reveal.PLAIN)
    whole = plan(sharing=sharing, points={"aggregator-1": 1}, coding=coding, segments=segments)
    return msgspec.structs.replace(whole, **changes)


def plain_view(bits: int = 32, **changes: Any) -> PlanView:
    """A checked plan without sharing."""
    made = plain_plan(bits, **changes)
    return check_plan(made, digest(encode(made)), plain_directory())
