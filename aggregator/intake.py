"""Uploads as they come in: count, verify, admit, open, and commit what came together (docs/protocol.md §4.2).

A commit costs a sync of the disk, so chunks that arrive close together are committed together, and their receipts sent
after that. Whoever decides over what is stored (attendance, Freeze) has `flush` run first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from aggregator.desk import Desk
from aggregator.quota import allowance
from aggregator.store import NewChunk
from aggregator.summing import check_share
from aggregator.uploads import Attempt, Refused
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import PeerError, StoreDamagedError, StoreError
from fedpruneshare.link import Delivery, Link
from fedpruneshare.messages import Missing, Receipt, ShareUpload, Verdict
from fedpruneshare.plan import PlanView
from fedpruneshare.quota import Turnstile
from fedpruneshare.sealing import Opened, share_context

_log = structlog.get_logger()
#: How long a chunk waits for others, and how much waits at most.
_WAIT_S: Final = 0.005
_MOST_CHUNKS: Final = 256
_MOST_BYTES: Final = 8 * 1024 * 1024
#: What a device is told; where and why stands in this aggregator's own log.
_FULL: Final = "the share store is at its limit, or its disk full or failing"


class Intake:
    """Takes uploads in. `on_complete` is called after whole uploads were committed."""

    def __init__(self, desk: Desk, own: Link, uploads_per_device: int, on_complete: Callable[[], None]) -> None:
        self._desk, self._own, self._uploads_per_device = desk, own, uploads_per_device
        self._on_complete = on_complete
        self._turnstile = Turnstile(desk.party, "up")
        self._batch: list[NewChunk] = []
        self._batch_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin_round(self, view: PlanView, x: int) -> None:
        """A round has opened: what still waits is of another one, and what devices have sent is counted anew."""
        self.end_round()
        self._turnstile.open_round(allowance(view, x, self._uploads_per_device))

    def end_round(self) -> None:
        """Forget what waits for a commit; whoever sent it gets no receipt, and asks."""
        self._stop_timer()
        self._batch, self._batch_bytes = [], 0

    # ------------------------------------------------------------------ one message

    async def on_upload(self, delivery: Delivery) -> None:
        """Take one message of a device."""
        reach("aggregator.chunk-received")
        opened = self._turnstile.take(delivery)
        if opened is not None and isinstance(opened.message, ShareUpload):
            self._admit(opened, opened.message)

    def _admit(self, opened: Opened, upload: ShareUpload) -> None:
        book, device_id = self._desk.book, opened.sender
        known = book.attempts_of(device_id)
        if known and upload.upload_id not in known:
            self.flush()  # a further attempt may take the place of one that waits
        admitted = book.admit(device_id, upload)
        if isinstance(admitted, Refused):
            self._receipt(device_id, upload, admitted.verdict, admitted.detail)
        elif upload.chunk in admitted.stored:
            self._answer_repeat(device_id, upload, admitted)
        elif upload.chunk not in admitted.pending:  # else its receipt is about to follow
            self._take_in(opened, upload, admitted)

    def _answer_repeat(self, device_id: str, upload: ShareUpload, attempt: Attempt) -> None:
        if attempt.is_complete:
            self._receipt(device_id, upload, Verdict.ACCEPTED)
        else:
            missing = Missing(upload.round_id, upload.upload_id, attempt.missing())
            self._desk.post.answer(self._own, self._desk.party.topics.name("ack", device_id), missing)

    def _take_in(self, opened: Opened, upload: ShareUpload, attempt: Attempt) -> None:
        try:
            data = self._open(opened.sender, upload)
            self._make_room(upload, attempt, len(data))
        except (PeerError, StoreError) as error:
            if attempt.is_empty:
                self._desk.book.discard(attempt)
            if isinstance(error, StoreError):
                self._receipt(opened.sender, upload, Verdict.STORE_FULL, _FULL)
            else:
                self._receipt(opened.sender, upload, Verdict.MALFORMED, str(error))
            return
        except StoreDamagedError as error:
            self._desk.disk.end(error)
            return
        reach("aggregator.chunk-opened")
        attempt.pending.add(upload.chunk)
        attempt.signers.add(opened.key)
        self._batch.append(NewChunk(attempt, upload.chunk, data, opened.key))
        self._batch_bytes += len(data)
        if len(self._batch) >= _MOST_CHUNKS or self._batch_bytes >= _MOST_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAIT_S, self.flush)

    def _open(self, device_id: str, upload: ShareUpload) -> bytes:
        party = self._desk.party
        position = (upload.upload_id, upload.x, upload.rung, upload.prg, upload.chunk, upload.chunks)
        context = share_context(party.directory.federation, upload.plan, (device_id, party.ident), position)
        data = party.identity.unseal(upload.sealed, context, upload.suite, upload.key)
        check_share(self._desk.view, upload.x, data)
        return data

    def _make_room(self, upload: ShareUpload, attempt: Attempt, size_bytes: int) -> None:
        """Room in store and on disk for a chunk. Raises `StoreError` where there is none."""
        store, kept = self._desk.store, self._desk.book.attempts_of(attempt.device_id)
        if not store.has_room_for(self._batch_bytes + size_bytes):
            raise StoreError(_FULL)
        if attempt.is_empty and len(kept) > 1:  # with one alone, none was ever given up
            store.keep_uploads(upload.round_id, attempt.device_id, list(kept))

    # ------------------------------------------------------------------ what came together

    def flush(self) -> None:
        """Commit what waits, and do what follows from whole uploads."""
        if self.commit():
            self._on_complete()

    def commit(self) -> bool:
        """Commit what waits, and send the receipts of the uploads that are whole by it; whether there were any.

        Where the disk does not take it, none of it is kept, and every device is told to try again.
        """
        self._stop_timer()
        if not self._batch:
            return False
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        view = self._desk.view
        try:
            self._desk.store.add_chunks(view.plan.round_id, batch)
        except (StoreError, StoreDamagedError) as error:
            self._give_back(batch, view.plan.round_id, error)
            return False
        reach("aggregator.chunks-committed.after")
        whole = [new.attempt for new in batch if self._desk.book.stored(new.attempt, new.chunk)]
        for attempt in whole:
            receipt = Receipt(view.plan.round_id, attempt.upload_id, Verdict.ACCEPTED)
            self._send(attempt.device_id, receipt)
        return bool(whole)

    def _give_back(self, batch: list[NewChunk], round_id: int, error: StoreError | StoreDamagedError) -> None:
        if isinstance(error, StoreDamagedError):
            self._desk.disk.end(error)
            return
        _log.error("disk-does-not-take-it", step="uploads", chunks=len(batch), error=str(error))
        attempts = {id(new.attempt): new.attempt for new in batch}
        for new in batch:
            new.attempt.pending.discard(new.chunk)
        for attempt in attempts.values():
            if attempt.is_empty:
                self._desk.book.discard(attempt)
            self._send(attempt.device_id, Receipt(round_id, attempt.upload_id, Verdict.STORE_FULL, _FULL))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------------ receipts

    def _receipt(self, device_id: str, upload: ShareUpload, verdict: Verdict, detail: str = "") -> None:
        if verdict is not Verdict.ACCEPTED:
            _log.warning("upload-refused", device=device_id, round_id=upload.round_id, verdict=verdict, reason=detail)
        self._send(device_id, Receipt(upload.round_id, upload.upload_id, verdict, detail[:500]))

    def _send(self, device_id: str, receipt: Receipt) -> None:
        topic = self._desk.party.topics.name("ack", device_id)
        point = "aggregator.receipted" if receipt.verdict is Verdict.ACCEPTED else ""
        self._desk.post.answer(self._own, topic, receipt, point)
