"""F05: brokers restarted by SIGTERM and SIGKILL at five phases of a round, as they ship and with their own defaults.

As shipped the coordinator's broker writes down what is retained and the others keep nothing; by default all forget when
they are killed. No round depends on either: what has a receipt is in the sum, and what has none is sent again.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from faults.harness import await_rounds, decision, judge, mosquitto_with, newest_round, synthetic_fleet

from testbed.faults.fleet import FaultFleet
from testbed.federation import COORDINATOR

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("quick_links"),
    pytest.mark.mosquitto,
    pytest.mark.timeout(170),
]

#: Phase -> who stands still, and where, while the brokers are away.
PHASES = {
    "plan": (COORDINATOR, "coordinator.plan-published"),
    "upload": ("aggregator-1", "aggregator.chunk-received"),
    "attendance": ("aggregator-2", "aggregator.attendance-signed.after"),
    "freeze": (COORDINATOR, "coordinator.freeze-sent"),
    "sum": ("aggregator-3", "aggregator.sum-persisted.after"),
}


def restart_brokers(fleet: FaultFleet, names: list[str], how: signal.Signals) -> None:
    """All of them away at a time, then back on their ports."""
    for name in names:
        fleet.note("fault", what=f"{how.name} of the broker {name}")
        if how is signal.SIGKILL:
            fleet.kill_broker(name)
    for name in names:
        if how is signal.SIGKILL:
            fleet.start_broker(name)
        else:
            fleet.restart_broker(name)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("persistence", ["shipped", "default"])
def test_brokers_restarted_at_every_phase(tmp_path: Path, persistence: str, how: signal.Signals) -> None:
    rng = random.Random(f"{persistence} {how}")
    kind = ('brokers.kind="mosquitto"', "brokers.tls=true") if persistence == "shipped" else ()
    make = mosquitto_with("persistence true") if persistence == "default" else None
    with synthetic_fleet(tmp_path / "run", *kind, own_broker=make) as fleet:
        fleet.start()
        await_rounds(fleet)
        for ident, point in PHASES.values():
            fleet.arm(ident, point, 1, signal.SIGSTOP)
            fleet.await_stop(ident)
            struck = newest_round(fleet)
            names = sorted(fleet.brokers)
            restart_brokers(fleet, rng.sample(names, rng.randint(1, len(names))), how)
            fleet.resume(ident)
            line = decision(fleet, struck)
            assert line.phase == "APPLIED", (ident, point, line.reason)
            assert line.contributors == len(fleet.devices)
            await_rounds(fleet)
        judge(fleet)
