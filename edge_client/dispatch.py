"""An upload on its way: one courier per aggregator, all at once (docs/protocol.md §3.2, §4.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from edge_client.byte_ledger import ByteLedger
from edge_client.outbox import Upload
from edge_client.share_chunks import Share
from edge_client.uploading import CountSent, Courier, Parcel, Uplink, WatchLink, is_accepted
from edge_client.waiting import cancel, lap
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import PeerError, SealError, SignatureError
from fedpruneshare.link import Link
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Missing, Receipt, Verdict
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView

_log = structlog.get_logger()


@dataclass(frozen=True)
class Consignment:
    """What is sent in a round: the upload's shares by point; when the round ends, by the loop's monotonic clock.

    `is_resumed`: an earlier process may have delivered parts of it.
    """

    view: PlanView
    upload: Upload
    shares: Mapping[int, Share]
    ends_at: float
    is_resumed: bool = False


class Dispatch:
    """Sends a round's shares and counts what came of it into the ledger's entry."""

    def __init__(
        self, party: Party, uplinks: dict[str, Link], ledger: ByteLedger, outstanding: int, backoff: Backoff
    ) -> None:
        self._party, self._uplinks, self._ledger = party, uplinks, ledger
        self._outstanding, self._backoff = outstanding, backoff
        self._couriers: dict[str, Courier] = {}
        self._shut_out = 0
        self.watch: WatchLink | None = None
        """Told how long each chunk took."""

    def answer(self, aggregator_id: str, message: Receipt | Missing) -> None:
        """Hand an aggregator's answer to its courier, if one is under way."""
        courier = self._couriers.get(aggregator_id)
        if courier is not None:
            courier.answer(message)

    def clear(self) -> None:
        """The round is over; answers that are late are dropped."""
        self._couriers = {}

    async def deliver(self, sent: Consignment) -> list[Receipt]:
        """Send until every aggregator has spoken; cut off when it is cancelled.

        `seconds` of the ledger's entry: `send` until the last receipt so far, without the `share` that making chunks
        between those that are sent took.
        """
        started, uplink, self._shut_out = time.monotonic(), Uplink(), 0
        for aggregator_id, x in sent.view.plan.points.items():
            parcel = Parcel(sent.view, sent.upload, aggregator_id, x, sent.shares[x], sent.ends_at, sent.is_resumed)
            courier = Courier(self._party, self._uplinks[aggregator_id], parcel, self._backoff, self._outstanding)
            courier.watch, courier.uplink = self.watch, uplink
            self._couriers[aggregator_id] = courier
        deliveries = [
            asyncio.create_task(self._bring(courier, sent, started, self._counter(aggregator_id, sent.is_resumed)))
            for aggregator_id, courier in self._couriers.items()
        ]
        try:
            return list(await asyncio.gather(*deliveries))
        finally:
            await cancel(deliveries)
            self._count_seconds()

    def _do_without(self, sent: Consignment, error: PeerError) -> Receipt:
        """An aggregator has no key that its share can be sealed to: n − k of them may as well be down (§7.1).

        Raises the error where too few are left.
        """
        self._shut_out += 1
        if self._shut_out > len(sent.view.plan.points) - sent.view.plan.sharing.k:
            raise error
        _log.warning("aggregator-shut-out", round_id=sent.upload.round_id, reason=str(error))
        return Receipt(sent.upload.round_id, sent.upload.upload_id, Verdict.MALFORMED, str(error)[:500])

    def _count_seconds(self) -> None:
        seconds = self._ledger.entry.seconds
        made_s = sum(courier.prepared_s for courier in self._couriers.values())
        seconds["share"] = round(made_s, 4)
        if "send" in seconds:
            seconds["send"] = round(max(0.0, seconds["send"] - made_s), 4)

    def _counter(self, aggregator_id: str, is_resumed: bool) -> CountSent:
        def count(size_bytes: int, is_first: bool) -> None:
            # What a killed process had sent is not known chunk by chunk: a resumed upload counts as sent again.
            self._ledger.sent("shares" if is_first and not is_resumed else "resent", size_bytes, aggregator_id)

        return count

    async def _bring(self, courier: Courier, sent: Consignment, started: float, count: CountSent) -> Receipt:
        entry = self._ledger.entry
        try:
            receipt = await courier.deliver(count)
        except (SignatureError, SealError) as error:
            receipt = self._do_without(sent, error)
        if not is_accepted(receipt):
            entry.reason = f"{receipt.verdict}: {receipt.detail}"
            return receipt
        entry.receipts += 1
        if entry.receipts == 1:
            reach("device.first-receipt")
        if entry.receipts == len(sent.view.plan.points):
            reach("device.last-receipt")
        entry.seconds["send"], _ = lap(started)
        if entry.receipts >= sent.view.plan.sharing.k:
            entry.status = "uploaded"
        return receipt
