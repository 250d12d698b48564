"""Offers, limits and states for the tests of what a device decides."""

from __future__ import annotations

import dataclasses
from typing import Any

from edge_client.adaptation.calibration import Calibration, LinkRate
from edge_client.board.profiles import BoardProfile, LinkDefaults, PowerStates, Processor, Thermal
from edge_client.density import DeviceState, Offer, RungCost
from edge_client.device import Health

PARAMETERS = 500_000

BOARD = BoardProfile(
    name="test-board",
    title="Board of the tests",
    match=(),
    processor=Processor(cores=4, arch="aarch64", aes=False, neon=True, fp16=False, tensor_cores=False),
    ram_mib=1024,
    power=PowerStates(idle_w=2.0, busy_w=4.0, send_w=3.0, receive_w=2.5),
    link=LinkDefaults(kind="wifi", up_mbit_s=8.0, down_mbit_s=16.0, rtt_ms=10.0),
    thermal=Thermal(limit_c=80.0, busy_rise_c=30.0, time_constant_s=100.0),
    sensor="none",
    train_scale=10.0,
    memory_reserve_mib=128,
)

CALIBRATION = Calibration(
    board="test-board",
    task="toy",
    batch_size=32,
    step_s={"0.25": 0.05, "0.5": 0.1, "1": 0.2},
    share_bytes_s=10_000_000.0,
    receive_bytes_s=1_000_000.0,
    links={"agg-1": LinkRate(1_000_000.0, 0.01), "agg-2": LinkRate(1_000_000.0, 0.01)},
    base_mib=200.0,
    step_mib={"0.25": 20.0, "0.5": 40.0, "1": 100.0},
)


def health(**known: Any) -> Health:
    """A look at a board that could read nothing but what is given."""
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(Health)}
    return Health(**(fields | {"board": "test-board", "model": "", "alarms": (), "links": (), "unread": ()} | known))


def rung(number: int, width: float, density: float, size_bytes: int) -> RungCost:
    """A rung whose download and two shares are `size_bytes` each."""
    each = {"agg-1": size_bytes, "agg-2": size_bytes}
    return RungCost(number, width, density, size_bytes, 2 * size_bytes, each, size_bytes // 4)


RUNGS = (rung(0, 0.25, 0.025, 12_500), rung(1, 0.5, 0.05, 25_000), rung(2, 1.0, 0.1, 50_000))


def offer(**changes: Any) -> Offer:
    plain: dict[str, Any] = {
        "rungs": RUNGS,
        "steps": 100,
        "least_steps": 20,
        "remaining_s": 60.0,
        "batch_size": 32,
        "parameters": PARAMETERS,
        "task": "toy",
    }
    return Offer(**(plain | changes))


def state(**changes: Any) -> DeviceState:
    return DeviceState(**({"profile": BOARD, "calibration": CALIBRATION} | changes))
