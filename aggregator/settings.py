"""Settings of `fedpruneshare aggregator run`."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedpruneshare.floors import KEPT_SETS, LOWEST_FLOOR, RETRY_ROUNDS
from fedpruneshare.messages import MAX_AGGREGATORS, MAX_DEVICES
from fedpruneshare.party import LinkSettings, PartySettings

#: For so many rounds a sum is compared with those of the same model. Who claims a newer model evades this in any case,
#: and is met by `differencing_rounds`.
RETRIES: Final = RETRY_ROUNDS
Floor = Annotated[int, Meta(ge=LOWEST_FLOOR, le=MAX_DEVICES)]


class AggregatorFloors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The aggregator's own floors (docs/protocol.md §8): it takes part in nothing below them, whatever a plan says.

    `privacy_threshold`: the lowest t, the number of aggregators that may collude and still learn nothing.
    `allow_reveal_each`: whether a plan may have every single update shown to the coordinator; `allow_plain`: also to
    this aggregator, which is then the only one (docs/protocol.md §5.10). `freeze_quorum`: the fewest aggregators that
    must have accepted a Freeze before a sum leaves, 0 for none. `differencing_rounds`: its so many last sums may
    differ by no few devices, whatever their models; those of one model may not in any case (§4.4). The coordinator must
    choose by it: its `rounds.differencing_rounds` has to be at least that of any aggregator.
    """

    min_devices: Floor = LOWEST_FLOOR
    min_devices_segment: Floor = LOWEST_FLOOR
    privacy_threshold: Annotated[int, Meta(ge=1, lt=MAX_AGGREGATORS)] = 1
    allow_reveal_each: bool = False
    allow_plain: bool = False
    freeze_quorum: Annotated[int, Meta(ge=0, le=MAX_AGGREGATORS)] = 0
    differencing_rounds: Annotated[int, Meta(ge=0, le=KEPT_SETS)] = 0


class AggregatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `store` is the folder of the share journal; `store_mib` bounds the shares it holds.

    `uploads_per_device`: of how many whole uploads' messages and bytes one device may send in a round, before any of it
    is looked at. Two are kept; the others leave room for what a bad link has sent again.
    """

    party: PartySettings
    store: str
    floors: AggregatorFloors = AggregatorFloors()
    store_mib: Annotated[int, Meta(ge=1)] = 1024
    uploads_per_device: Annotated[int, Meta(ge=2, le=1000)] = 16
    link: LinkSettings = LinkSettings()
