"""Settings of `fedpruneshare aggregator run`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from fedpruneshare.floors import LOWEST_FLOOR
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES
from fedpruneshare.party import LinkSettings, PartySettings

Floor = Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)]


class AggregatorFloors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The aggregator's own floors (docs/protocol.md §8): it takes part in nothing below them, whatever a plan says.

    `privacy_threshold`: the lowest t, the number of aggregators that may collude and still learn nothing.
    `allow_reveal_each`: whether a plan may have every single update shown to the coordinator; `allow_plain`: also to
    this aggregator, which is then the only one (docs/protocol.md §5.10).
    """

    min_devices: Floor = LOWEST_FLOOR
    min_devices_segment: Floor = LOWEST_FLOOR
    privacy_threshold: Annotated[int, Meta(ge=1, lt=MAX_AGGREGATORS)] = 1
    allow_reveal_each: bool = False
    allow_plain: bool = False


class AggregatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `store` is the folder of the share journal; `store_mib` bounds the shares it holds."""

    party: PartySettings
    store: str
    floors: AggregatorFloors = AggregatorFloors()
    store_mib: Annotated[int, Meta(ge=1)] = 1024
    link: LinkSettings = LinkSettings()
