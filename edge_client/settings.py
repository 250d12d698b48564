"""Settings of `fedpruneshare device run` (one TOML file per device)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_client.energy.settings import EnergySettings
from fedpruneshare.party import LinkSettings, PartySettings


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options shared by all tables."""


SplitKind = Literal["", "dirichlet", "iid", "shards", "person"]


class SplitSettings(_Table, frozen=True):
    """How a task's training data are dealt to devices; `edge_client.datasets.splits.deal` does it.

    `kind`: the task's own way (empty), each class by shares from Dirichlet(`alpha`), evenly, `shards` pieces of the
    data sorted by class to each device, or whole people.
    """

    kind: SplitKind = ""
    alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    shards: Annotated[int, Meta(ge=1, le=1000)] = 2


class DeviceTask(_Table, frozen=True):
    """What is trained, and which part of the data is this device's: part `index` of `devices`.

    `split`, `alpha`, `shards`: how the data are dealt, as `SplitSettings`; equal on all devices of a fleet.
    `bundle`: path of the task's bundle, whose ONNX graph then serves `device predict`; empty: the device exports one.
    """

    name: str
    index: Annotated[int, Meta(ge=0)]
    devices: Annotated[int, Meta(ge=1)]
    data_dir: str = "data"
    seed: Annotated[int, Meta(ge=0)] = 0
    split: SplitKind = ""
    alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    shards: Annotated[int, Meta(ge=1, le=1000)] = 2
    bundle: str = ""

    @property
    def dealing(self) -> SplitSettings:
        """How the data are dealt."""
        return SplitSettings(self.split, self.alpha, self.shards)


class DeviceLimits(_Table, frozen=True):
    """What this device may use. `rung_max` bounds the rung it trains (0 = the sparsest).

    `torch_device`: where training computes; `auto` is a CUDA device that works, else the processor.
    `prg`: keystream algorithm of its seed shares, whose cipher seals too if the plan allows; `auto`: the quicker one.
    `outbox_mib`: how large an upload may be that waits on disk for its receipts.
    `memory_mib` bounds the whole process, `temperature_c` the chip below what its board profile allows, and
    `battery_reserve_percent` stays in the battery. `deadline_safety` is the part of the remaining time left unused,
    `up_margin` the slack that going up a rung needs on every limit, so that noise does not move the device to and fro.
    """

    rung_max: Annotated[int, Meta(ge=0, le=15)] = 15
    torch_threads: Annotated[int, Meta(ge=1, le=64)] = 1
    torch_device: Literal["auto", "cpu", "cuda"] = "cpu"
    outstanding_chunks: Annotated[int, Meta(ge=1, le=16)] = 4
    prg: Literal["auto", "chacha20", "aes-256-ctr"] = "auto"
    outbox_mib: Annotated[int, Meta(ge=1, le=4096)] = 64
    memory_mib: Annotated[int, Meta(ge=16)] | None = None
    temperature_c: Annotated[float, Meta(gt=0, le=150)] | None = None
    battery_reserve_percent: Annotated[float, Meta(ge=0, le=100)] = 20.0
    deadline_safety: Annotated[float, Meta(ge=0, le=0.9)] = 0.2
    up_margin: Annotated[float, Meta(ge=0, le=1)] = 0.25


class GateSettings(_Table, frozen=True):
    """The model gate: what a published model may be, and how fast it may change (`edge_client.gate`).

    `growth`: the factor by which a tensor's root mean square may grow in a round. `dead_share`: of a layer's units, how
    many may go dead at once. `scale_max` bounds the scales of norms, `value_max` every other value. `least_steps`: with
    fewer local steps nothing is uploaded; where the plan asks for one step, the device halves its batches first.
    """

    growth: Annotated[float, Meta(gt=1, le=1e6)] = 10.0
    dead_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    scale_max: Annotated[float, Meta(gt=0, le=1e9)] = 100.0
    value_max: Annotated[float, Meta(gt=0, le=1e30)] = 1e6
    least_steps: Annotated[int, Meta(ge=1, le=2)] = 2


class DeviceSettings(_Table, frozen=True):
    """The whole file. `store` is the folder of the outbox, the ledger and the exported updates.

    `board`: name of the board profile; empty: the one that fits. `calibration`: path of calibration.toml; empty: the
    one in `store`, if any. `adaptive = false` decides by the plan, `limits.rung_max` and the energy budget alone, so
    that two runs are alike (docs/adaptation.md). `root`: below which the board's files lie (`/proc`, `/sys`); another
    than `/` only where a board is emulated (docs/emulated-boards.md).
    """

    party: PartySettings
    task: DeviceTask
    store: str
    board: str = ""
    calibration: str = ""
    root: str = "/"
    adaptive: bool = True
    limits: DeviceLimits = DeviceLimits()
    gate: GateSettings = GateSettings()
    energy: EnergySettings = EnergySettings()
    link: LinkSettings = LinkSettings()
