"""Takes down what the processes of a run say, hear and decide (docs/histories.md); installed by `roles`, never by them.

The seams are few and stable: what is signed, what a party hears, what a device gives to its shares, and what the two
stores commit. A function is replaced wherever a module of the project has imported it. An event that a store commits
is noted before the commit where a repetition says the same, and after it where only the commit makes it true.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from typing import Any, Final

from fedpruneshare import sealing
from fedpruneshare.messages import Freeze, Receipt, RoundPlan, SumShare, decode, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from testbed.faults.history import History
from testbed.faults.telling import KINDS, contributor, told, values_of

PACKAGES: Final = ("fedpruneshare", "aggregator", "coordinator", "edge_client", "testbed")


def replace(function: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
    """Put `wrapper` in the place of a function in every module of the project that has it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES and name != __name__:
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, wrapper)


def override(kind: type, name: str, method: Callable[..., Any]) -> None:
    """Put a method in the place of another."""
    setattr(kind, name, method)


class Recorder:
    """What one process writes to the run's history. `ident` is empty in a process of several devices."""

    def __init__(self, history: History, ident: str = "") -> None:
        self._note, self._ident = history.note, ident
        self._plaintext = b""
        self._planned = b""

    # ------------------------------------------------------------------ every party

    def listen(self) -> None:
        """What this process signs, and what it hears."""
        sign_body, take = sealing.sign_body, Party.take

        def signing(identity: Any, federation: str, kind: str, body: bytes, *rest: Any) -> bytes:
            self._signed(identity.ident, kind, body)
            return sign_body(identity, federation, kind, body, *rest)

        def taking(party: Party, channel: str, delivery: Any) -> Any:
            opened = take(party, channel, delivery)
            if opened is not None and isinstance(opened.message, Receipt):
                self._heard(party.ident, opened.sender, opened.message)
            return opened

        replace(sign_body, signing)
        override(Party, "take", taking)

    def _heard(self, device: str, aggregator: str, receipt: Receipt) -> None:
        facts = {"round": receipt.round_id, "upload": receipt.upload_id, "verdict": str(receipt.verdict)}
        self._note("receipt", aggregator=aggregator, device=device, **facts)

    def _signed(self, ident: str, kind: str, body: bytes) -> None:
        if kind not in KINDS - {"freeze"}:  # see `watch_freezes`
            return
        message = decode(kind, body)
        if isinstance(message, RoundPlan):
            if digest(body) == self._planned:
                return  # said again after a lost connection, perhaps when its round is decided and its model applied
            self._planned = digest(body)
        event, fields = told(ident, message, digest(body))
        if isinstance(message, SumShare):
            if message.chunk:
                return  # one event for a sum
            fields["digest"] = hashlib.sha256(self._plaintext).digest()
        self._note(event, **fields)

    # ------------------------------------------------------------------ devices

    def watch_uploads(self) -> None:
        """The words of every upload before the first of its shares is made."""
        from edge_client import share_chunks

        open_shares = share_chunks.open_shares

        def opening(view: PlanView, device_id: str, upload: Any) -> Any:
            about = {"round": view.plan.round_id, "device": device_id}
            digest_of_words = hashlib.sha256(upload.words.tobytes()).digest()
            words = dict(enumerate(_segments(view, upload)))
            values = values_of(view, words, dict.fromkeys(words, 1))
            facts = {"upload": upload.upload_id, "rung": upload.rung, "digest": digest_of_words}
            self._note("upload", **about, **facts, values=list(values.values()))
            return open_shares(view, device_id, upload)

        replace(open_shares, opening)

    def watch_models(self, *, are_kept: bool) -> None:
        """Each model by the bytes that came, once it is in use: once it is kept, on a device that keeps its progress.

        Such a device also says after a restart how far it has got.
        """
        from edge_client import receiving
        from edge_client.progress import Progress

        receive_model, begin, take_model = receiving.receive_model, Progress.__init__, Progress.take_model
        arrived: dict[str, Any] = {}

        async def arriving(party: Party, link: Any, view: PlanView, rung: int) -> list[bytes]:
            blobs = await receive_model(party, link, view, rung)
            found = {"plan": view.digest, "model": [digest(blob).hex() for blob in blobs]}
            if are_kept:
                arrived.update(found)
            else:
                about = {"round": view.plan.round_id, "version": view.plan.model_version}
                self._note("device-model", device=party.ident, **about, **found)
            return blobs

        def reached(progress: Progress, **found: Any) -> None:
            about = {"round": progress.reached.model_round, "version": progress.reached.model_version}
            self._note("device-model", device=self._ident, **about, **found)

        def taking(progress: Progress, *rest: Any) -> None:
            take_model(progress, *rest)
            reached(progress, **arrived)

        def beginning(progress: Progress, *rest: Any) -> None:
            begin(progress, *rest)
            if progress.reached.model_round:
                reached(progress)

        replace(receive_model, arriving)
        override(Progress, "take_model", taking)
        override(Progress, "__init__", beginning)

    # ------------------------------------------------------------------ aggregators

    def watch_shares(self) -> None:
        """The Freeze an aggregator accepts, the sum it answers with, and that it burned the shares."""
        from aggregator.store import ShareStore

        seal, freeze, burn = sealing.seal, ShareStore.freeze, ShareStore.burn

        def sealing_sum(public: Any, plaintext: bytes, *rest: Any, **more: Any) -> bytes:
            self._plaintext = bytes(plaintext)
            return seal(public, plaintext, *rest, **more)

        def accepting(store: ShareStore, round_id: int, body: bytes, frozen: bytes, *rest: Any, **more: Any) -> None:
            self._note("freeze-accepted", round=round_id, freeze=frozen, aggregator=self._ident)
            freeze(store, round_id, body, frozen, *rest, **more)

        def burning(store: ShareStore, round_id: int, *rest: Any, **more: Any) -> None:
            burn(store, round_id, *rest, **more)
            self._note("burned", round=round_id, aggregator=self._ident)

        replace(seal, sealing_sum)
        override(ShareStore, "freeze", accepting)
        override(ShareStore, "burn", burning)

    # ------------------------------------------------------------------ the coordinator

    def watch_freezes(self) -> None:
        """Each Freeze as it is chosen, with whom it leaves out although they have every receipt."""
        from coordinator.ledger import RoundLedger

        choose_freeze = RoundLedger.choose_freeze

        def choosing(ledger: RoundLedger, *rest: Any) -> Any:
            chosen = choose_freeze(ledger, *rest)
            if isinstance(chosen, Freeze):
                left_out = dict.fromkeys(ledger.lone_devices, "lone-rung")
                left_out |= dict.fromkeys(ledger.judgement.dealers if ledger.judgement else (), "dealer")
                event, fields = told(self._ident, chosen, digest(encode(chosen)))
                self._note(event, **fields, left_out=left_out)
            return chosen

        override(RoundLedger, "choose_freeze", choosing)

    def watch_rounds(self) -> None:
        """The sums that are opened, and each outcome as soon as it is committed, also one committed before a kill."""
        from coordinator import opening
        from coordinator.store import RoundStore

        decode_sums, finish, begin = opening.decode_sums, RoundStore.finish, RoundStore.__init__

        def decoding(current: Any, bench: Any, opened: Any, *rest: Any) -> Any:
            sums = decode_sums(current, bench, opened, *rest)
            ledger = current.ledger
            rungs = [c.rung for c in opened.contributors]
            counts = {index: sum(rung >= index for rung in rungs) for index in opened.words}
            values = values_of(ledger.view, opened.words, counts)
            who = [contributor(upload) for upload in opened.contributors]
            found = {str(index): segment for index, segment in values.items()}
            frozen = digest(encode(ledger.frozen))
            self._note("opened", round=ledger.view.plan.round_id, freeze=frozen, contributors=who, values=found)
            return sums

        def committed(store: RoundStore) -> None:
            for line in store.outcomes()[-1:]:
                reason = line.get("reason") or ""
                self._note("outcome", round=line["round"], phase=line["phase"], reason=reason)
                model = store.model()
                if line["phase"] == "APPLIED" and model is not None:
                    self._note("model-applied", round=line["round"], version=model.applied)

        @functools.wraps(begin)
        def beginning(store: RoundStore, *rest: Any, **more: Any) -> None:
            begin(store, *rest, **more)
            committed(store)

        def finishing(store: RoundStore, *rest: Any, **more: Any) -> None:
            finish(store, *rest, **more)
            committed(store)

        replace(decode_sums, decoding)
        override(RoundStore, "__init__", beginning)
        override(RoundStore, "finish", finishing)


def _segments(view: PlanView, upload: Any) -> list[Any]:
    ends = 0
    parts = []
    for length in view.segment_words[: upload.rung + 1]:
        parts.append(upload.words[ends : ends + length])
        ends += length
    return parts
