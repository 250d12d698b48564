"""F06: a network that cuts, holds, doubles, swaps and delays, and an attacker who says again what was said before.

The faults are those of a proxy before every broker, drawn from a seed; what is replayed was captured from the same
run. Nothing of either may change a sum, and rounds go on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from e2e.fleets import Capture
from faults.harness import await_rounds, decided, decision, judge, newest_round, phases, synthetic_fleet, wait

from fedpruneshare.errors import RunError
from fedpruneshare.link import BrokerAddress
from fedpruneshare.party import LinkSettings
from fedpruneshare.process import open_link
from testbed.faults.fleet import FaultFleet
from testbed.faults.proxy import Proxy
from testbed.federation import CONTROL

pytestmark = [pytest.mark.faults, pytest.mark.timeout(170)]

#: Of rounds in bad weather some may fail: nobody is there for longer than a deadline.
_LEAST_APPLIED = 0.9
_KINDS = {
    "round-plan", "model-chunk", "hello", "heartbeat", "share-upload", "receipt", "attendance", "freeze", "sum-share",
    "outcome",
}  # fmt: skip


#: Fault -> what a proxy says that it has done once it has met something.
_DONE = {"cut": "cut", "hold": "held", "duplicate": "doubled", "swap": "swapped", "delay": "delayed", "drop": "reset"}


def disturb(proxy: Proxy, rng: random.Random) -> str:
    """One fault out of six, for as long as it lasts."""
    kind = rng.choice(tuple(_DONE))
    if kind == "cut":
        proxy.cut_after(rng.randint(0, 6000), rng.choice(("up", "down")))
    elif kind == "hold":
        proxy.hold()
    elif kind == "duplicate":
        proxy.duplicate = 0.3
    elif kind == "swap":
        proxy.swap = 0.3
    elif kind == "delay":
        proxy.delay_s = rng.uniform(0.01, 0.1)
    else:
        proxy.drop()
    return kind


@pytest.mark.usefixtures("quick_links")
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_rounds_in_bad_weather(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with synthetic_fleet(tmp_path / "run", "rounds.grace_s=0.4", seed=seed) as fleet:
        fleet.start()
        await_rounds(fleet)
        while decided(fleet) < 51:
            names = rng.sample(sorted(fleet.brokers), rng.randint(1, 2))
            before = {name: Counter(fleet.proxy(name).done) for name in names}
            kinds = {name: disturb(fleet.proxy(name), rng) for name in names}
            fleet.note("fault", what=", ".join(f"{kind} before {name}" for name, kind in kinds.items()))
            struck = newest_round(fleet) + 1
            wait_at_most(fleet, struck, rng.uniform(0.05, 0.3))
            wait(
                fleet,
                lambda k=kinds, b=before, s=struck: decided(fleet) >= s or have_met(fleet, k, b),
                "somebody to meet it",
            )
            for name in names:
                fleet.proxy(name).heal()
            decision(fleet, struck)
        judge(fleet)
        assert phases(fleet).count("APPLIED") >= _LEAST_APPLIED * len(phases(fleet))
        done = sum((fleet.proxy(name).done for name in fleet.brokers), Counter[str]())
        assert (+done).keys() >= set(_DONE.values()), done


def have_met(fleet: FaultFleet, kinds: dict[str, str], before: dict[str, Counter[str]]) -> bool:
    """Whether a fault has hit something by now: what one holds back never comes to the other."""
    return any(fleet.proxy(name).done[_DONE[kind]] > before[name][_DONE[kind]] for name, kind in kinds.items())


def wait_at_most(fleet: FaultFleet, round_id: int, limit_s: float) -> None:
    """Until a round is decided, or so long."""
    with suppress(RunError):
        fleet.wait_for(lambda: decided(fleet) >= round_id, limit_s, "a round")


def test_what_comes_a_round_late_is_not_counted(tmp_path: Path) -> None:
    with synthetic_fleet(tmp_path / "run", "rounds.grace_s=0.3", "rounds.deadline_s=3") as fleet:
        fleet.start()
        await_rounds(fleet)
        for name in fleet.aggregators:
            fleet.proxy(name).hold()
            late = newest_round(fleet) + 1
            line = decision(fleet, late)
            assert line.phase == "APPLIED"
            assert name not in line.aggregators and fleet.proxy(name).done["held"]
            fleet.proxy(name).heal()
            await_rounds(fleet, 2)
        fleet.proxy(CONTROL).hold()
        wait_at_most(fleet, newest_round(fleet) + 1, 1.0)
        fleet.proxy(CONTROL).heal()
        await_rounds(fleet, 2)
        judge(fleet)


# --------------------------------------------------------------------------- replays


def captured(messages: list[tuple[str, str, bytes, bool]]) -> dict[str, list[tuple[str, str, bytes]]]:
    """Kind of message -> (broker, topic, payload) of each that was heard."""
    found: dict[str, list[tuple[str, str, bytes]]] = {}
    for broker, topic, payload, _ in messages:
        if payload:
            found.setdefault(msgspec.msgpack.decode(payload)[1], []).append((broker, topic, payload))
    return found


async def say(addresses: dict[str, BrokerAddress], messages: list[tuple[str, str, bytes]]) -> None:
    """Publish captured messages where they were heard."""
    links = {name: open_link(address, f"replay-{name}", LinkSettings()) for name, address in addresses.items()}
    for link in links.values():
        await link.connect()
    for broker, topic, payload in messages:
        await links[broker].publish(topic, payload)
    for link in links.values():
        await link.close()


def test_replays_of_every_kind_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(1)
    with synthetic_fleet(tmp_path / "run") as fleet:
        addresses = {name: fleet.proxy(name).target for name in fleet.brokers}
        with Capture(addresses).running() as tap:
            fleet.start()
            await_rounds(fleet, 3)
        heard = captured(tap.messages)
        assert heard.keys() >= _KINDS
        for later in (1, 2, 20):  # at once, a round later, and long after
            await_rounds(fleet, later)
            for kind in sorted(heard):
                chosen = rng.sample(heard[kind], min(6, len(heard[kind])))
                fleet.note("fault", what=f"replay of {len(chosen)} {kind}")
                asyncio.run(say(addresses, chosen))
                await_rounds(fleet)
        wait(fleet, lambda: decided(fleet) > 30, "rounds after the replays")
        judge(fleet)
        assert set(phases(fleet)) == {"APPLIED"}
        assert all(line.contributors == len(fleet.devices) for line in fleet.rounds())
