"""A synthetic device: it serves rounds as a real one does (`edge_client.rounds`), with random words for training.

What is left out: decoding the model, training, pruning, the outbox on disk, energy and density decisions. It takes the
highest rung that plan and settings allow.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from edge_client.byte_ledger import ByteLedger
from edge_client.checksum_seed import fill_checksums, receive_seed
from edge_client.ciphers import own_ciphers
from edge_client.dispatch import Consignment
from edge_client.fresh_upload import new_upload
from edge_client.receiving import receive_model
from edge_client.rounds import Links, Rounds
from edge_client.settings import DeviceSettings
from edge_client.share_chunks import open_shares
from edge_client.waiting import lap, until
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from testbed.synthetic.words import random_words


@dataclass
class Shared:
    """What the devices of one process share: the newest plan (each checks it, one copy is kept), and a gate.

    `connecting`: so many connect at a time; with thousands at once, logins would time out and begin again.
    """

    connecting: asyncio.Semaphore
    view: PlanView | None = None

    def plan(self, view: PlanView) -> PlanView:
        """The kept copy of an equal plan; this one, if it is news."""
        if self.view is None or self.view.digest != view.digest:
            self.view = view
        return self.view


class SyntheticDevice:
    """One device: a link to the control broker and one to each aggregator's."""

    def __init__(self, party: Party, settings: DeviceSettings, links: Links, shared: Shared) -> None:
        self._party, self._settings, self._shared = party, settings, shared
        self._control, self._uplinks = links
        self._ledger = ByteLedger(Path(settings.store), is_durable=False)
        self._rounds = Rounds(party, settings.limits, links, self._ledger, self)
        self._ciphers = own_ciphers(settings.limits.prg)

    async def run(self) -> int:
        """Serve rounds until cancelled."""
        await self._rounds.listen()
        async with self._shared.connecting:  # the aggregators' brokers first: who says hello can upload
            await asyncio.gather(*(link.connect(wait=True) for link in self._uplinks.values()))
            await self._control.connect(wait=True)
        return await self._rounds.serve()

    async def stop(self) -> None:
        """Disconnect."""
        await self._rounds.close()

    async def until_free(self) -> None:
        """See `Guest.until_free`."""

    # ------------------------------------------------------------------ what `Rounds` asks for

    def accept(self, view: PlanView) -> PlanView:
        """One copy of a plan is kept for all devices of a process."""
        return self._shared.plan(view)

    def finish(self, round_id: int) -> None:
        """Nothing is kept."""

    def end_entry(self) -> None:
        """Write the ledger's entry under way."""
        self._ledger.end()

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        """Receive the model, and send random words."""
        entry, started = self._ledger.entry, time.monotonic()
        entry.status = "incomplete"
        rung = max(rung for rung in view.plan.rungs if rung <= self._settings.limits.rung_max)
        entry.rung, entry.width, entry.constraint = rung, view.plan.segments[rung].width, "plan"
        await receive_model(self._party, self._control, view, rung)
        entry.seconds["receive"], started = lap(started)
        seed = await receive_seed(self._party, self._control, view, until(ends_at) / 2)
        task = self._settings.task
        entry.weight, words = random_words(view, rung, task.seed, task.index)
        fill_checksums(view, words, seed)
        entry.seconds["encode"], _ = lap(started)
        prg, suite = self._ciphers.prg, self._ciphers.suite(view.plan.suites)
        upload = new_upload(view, rung, entry.weight, words, prg, suite=suite)
        shares = open_shares(view, self._party.ident, upload)
        await self._rounds.dispatch.deliver(Consignment(view, upload, shares, ends_at))
