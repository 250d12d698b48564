"""A device of the simulation: the product's rounds, outbox and couriers; words that say whose they are."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.byte_ledger import ByteLedger
from edge_client.checksum_seed import fill_checksums, receive_seed
from edge_client.dispatch import Consignment
from edge_client.fresh_upload import new_upload
from edge_client.outbox import Outbox, Upload
from edge_client.receiving import receive_model
from edge_client.rounds import Links, Rounds
from edge_client.settings import DeviceLimits
from edge_client.share_chunks import open_shares
from edge_client.waiting import until
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import PlanError
from fedpruneshare.messages import digest
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.prg import Prg
from testbed.faults.oracle import oracle_words
from testbed.faults.telling import values_of


@dataclass(frozen=True)
class Habits:
    """What one device does: its place among so many, its highest rung, how long it trains, its keystream."""

    place: int
    of: int
    rung_max: int
    train_s: float
    prg: Prg


class _Ledger(ByteLedger):
    """Counts, and writes nothing."""

    def _append(self, line: dict[str, Any]) -> None:
        pass


class SimDevice:
    """One device. `world` is told what it does, and says whether it declines."""

    def __init__(self, party: Party, folder: Path, habits: Habits, links: Links, world: Any) -> None:
        self._party, self._habits, self._links, self._world = party, habits, links, world
        self._outbox = Outbox(folder / "outbox")
        limits = DeviceLimits(rung_max=habits.rung_max)
        self._ledger = _Ledger(folder, is_durable=False)
        self._rounds = Rounds(party, limits, links, self._ledger, self)
        self._rounds.newest_round = self._outbox.last_round()
        if self._outbox.progress.reached.model_round:
            self._note_model()

    async def run(self) -> None:
        """Serve rounds until the power goes or it is cancelled."""
        control, uplinks = self._links
        await self._rounds.listen()
        connecting = [asyncio.create_task(link.connect(wait=True)) for link in uplinks.values()]
        try:
            await control.connect(wait=True)
            await self._rounds.serve()
        finally:
            for task in connecting:
                task.cancel()
            await asyncio.gather(*connecting, return_exceptions=True)
            await self._rounds.close()

    # ------------------------------------------------------------------ what `Rounds` asks for

    def accept(self, view: PlanView) -> PlanView:
        self._outbox.progress.check_model(view.plan.model_version, view.plan.round_id)
        return view

    def finish(self, round_id: int) -> None:
        self._outbox.finish(round_id)

    def end_entry(self) -> None:
        self._ledger.end()

    async def take_part(self, view: PlanView, ends_at: float) -> None:
        ident = self._party.ident
        upload = self._outbox.get(view.digest)
        is_resumed = upload is not None
        if upload is None:
            if self._world.declines(ident):
                raise PlanError("no wish to take part")
            rung = max(rung for rung in view.plan.rungs if rung <= self._habits.rung_max)
            blobs = await receive_model(self._party, self._links[0], view, rung)
            reach("device.model-verified")
            self._outbox.progress.take_model(view.plan.model_version, view.plan.round_id)
            reach("device.model-taken")
            reach("device.model-stored")
            self._note_model(plan=view.digest, model=[digest(blob).hex() for blob in blobs])
            seed = await receive_seed(self._party, self._links[0], view, until(ends_at) / 2)
            reach("device.training")
            await asyncio.sleep(self._habits.train_s)
            reach("device.trained")
            weight, words = oracle_words(view, rung, self._habits.place, self._habits.of)
            fill_checksums(view, words, seed)
            reach("device.encoded")
            upload = new_upload(view, rung, weight, words, self._habits.prg)
            self._outbox.put(upload)
        self._note_upload(view, upload)
        shares = open_shares(view, ident, upload)
        await self._rounds.dispatch.deliver(Consignment(view, upload, shares, ends_at, is_resumed))

    def _note_model(self, **found: Any) -> None:
        """What the device keeps of the model it has taken into use; after a restart no more than that."""
        reached = self._outbox.progress.reached
        about = {"round": reached.model_round, "version": reached.model_version}
        self._world.note("device-model", device=self._party.ident, **about, **found)

    def _note_upload(self, view: PlanView, upload: Upload) -> None:
        ends = np.cumsum(view.segment_words[: upload.rung + 1])
        words = dict(enumerate(np.split(upload.words, ends[:-1])))
        values = values_of(view, words, dict.fromkeys(words, 1))
        secret = b"".join([upload.words.tobytes(), upload.masks.tobytes(), *upload.seeds.values(), upload.key])
        self._world.note(
            "upload", round=view.plan.round_id, device=self._party.ident, upload=upload.upload_id, rung=upload.rung,
            digest=hashlib.sha256(secret).digest(), values=list(values.values()),
        )  # fmt: skip
