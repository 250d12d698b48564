"""Settings of `fedpruneshare device run` (one TOML file per device)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fedpruneshare.party import LinkSettings, PartySettings


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


class DeviceTask(_Table, frozen=True):
    """What is trained, and which part of the data is this device's: part `index` of `devices`."""

    name: str
    index: Annotated[int, Meta(ge=0)]
    devices: Annotated[int, Meta(ge=1)]
    data_dir: str = "data"
    seed: Annotated[int, Meta(ge=0)] = 0


class DeviceLimits(_Table, frozen=True):
    """What this device may use. `rung_max` bounds the rung it trains (0 = the sparsest).

    `prg`: keystream algorithm of its seed shares; `auto` takes the one its processor is quicker at.
    """

    rung_max: Annotated[int, Meta(ge=0, le=15)] = 15
    torch_threads: Annotated[int, Meta(ge=1, le=64)] = 1
    outstanding_chunks: Annotated[int, Meta(ge=1, le=16)] = 4
    prg: Literal["auto", "chacha20", "aes-256-ctr"] = "auto"


class DeviceSettings(_Table, frozen=True):
    """The whole file. `store` is the folder of the outbox, the ledger and the exported updates."""

    party: PartySettings
    task: DeviceTask
    store: str
    limits: DeviceLimits = DeviceLimits()
    link: LinkSettings = LinkSettings()
