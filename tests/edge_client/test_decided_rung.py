"""What a device decided stands in its entry, and so in its heartbeat, also where the round ends before its upload."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builders import view

from edge_client.byte_ledger import ByteLedger
from edge_client.density import Constraint
from edge_client.service import Device
from edge_client.settings import DeviceLimits


def test_the_rung_is_noted_when_it_is_decided(tmp_path: Path) -> None:
    """The coordinator draws cohorts by it: a device cut short at rung 1 does not belong to stratum 0."""
    decision = SimpleNamespace(rung=1, width=1.0, local_steps=4, constraint=Constraint.DEADLINE, reason="")
    device: Any = object.__new__(Device)
    device._ledger, device._settings = ByteLedger(tmp_path), SimpleNamespace(limits=DeviceLimits())
    device._work = SimpleNamespace(dataset=[0] * 10)
    device._account = SimpleNamespace(left_j=lambda *_: None)
    device._adapter = SimpleNamespace(health=lambda: None, decide=lambda *_: decision)
    device._decide(view(), 60.0)
    assert (device._ledger.entry.rung, device._ledger.entry.constraint) == (1, "deadline")
