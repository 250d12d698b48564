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
from fedpruneshare.messages import (
    Attendance,
    Decline,
    Freeze,
    Receipt,
    RoundPlan,
    SumShare,
    decode,
    digest,
    encode,
)
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.digits import unshift
from testbed.faults.history import History

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
        if kind not in _TOLD:
            return
        message = decode(kind, body)
        event, fields = _TOLD[kind](ident, message, digest(body))
        if isinstance(message, SumShare):
            if message.chunk:
                return  # one event for a sum
            fields["digest"] = hashlib.sha256(self._plaintext).digest()
        self._note(event, **fields)

    # ------------------------------------------------------------------ devices

    def watch_uploads(self) -> None:
        """The words of every upload before the first of its shares is made, and the model it was made on."""
        from edge_client import share_chunks

        open_shares = share_chunks.open_shares

        def opening(view: PlanView, device_id: str, upload: Any) -> Any:
            about = {"round": view.plan.round_id, "device": device_id}
            version = view.plan.model_version
            self._note("device-model", **about, plan=view.digest, version=version)
            digest_of_words = hashlib.sha256(upload.words.tobytes()).digest()
            words = dict(enumerate(_segments(view, upload)))
            values = values_of(view, words, dict.fromkeys(words, 1))
            facts = {"upload": upload.upload_id, "rung": upload.rung, "digest": digest_of_words}
            self._note("upload", **about, **facts, values=list(values.values()))
            return open_shares(view, device_id, upload)

        replace(open_shares, opening)

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
                event, fields = _freeze(self._ident, chosen, digest(encode(chosen)))
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
            who = [[c.device_id, c.upload_id.hex(), c.rung] for c in opened.contributors]
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


def values_of(view: PlanView, words: dict[int, Any], uploads: dict[int, int]) -> dict[int, list[int]]:
    """What words of so many uploads say, all by segment: values, vector elements and weight, as integers."""
    found, coding = {}, view.plan.coding
    for index, own in words.items():
        segment = view.plan.segments[index]
        part = view.layout.unpack(own, segment.vectors, segment.weights)
        values = unshift(part.values, coding.value_bits, uploads[index]).tolist()
        vectors = unshift(part.vectors, coding.vector_bits, uploads[index]).tolist()
        found[index] = [*map(int, values), *map(int, vectors), int(part.weight)]
    return found


Told = tuple[str, dict[str, Any]]


def _plan(_ident: str, plan: RoundPlan, name: bytes) -> Told:
    return "plan", {
        "round": plan.round_id,
        "plan": name,
        "version": plan.model_version,
        "k": plan.sharing.k,
        "points": dict(plan.points),
        "cohort": list(plan.cohort),
        "min_devices": plan.min_devices,
        "min_devices_segment": plan.min_devices_segment,
        "segments": len(plan.segments),
        "deadline_s": plan.deadline_s,
    }


def _decline(ident: str, message: Decline, _name: bytes) -> Told:
    return "decline", {"round": message.round_id, "device": ident, "reason": message.reason}


def _attendance(ident: str, message: Attendance, _name: bytes) -> Told:
    uploads = [[entry.device_id, entry.upload_id.hex()] for entry in message.uploads]
    return "attendance", {"round": message.round_id, "aggregator": ident, "uploads": uploads}


def _freeze(_ident: str, message: Freeze, name: bytes) -> Told:
    return "freeze-signed", {
        "round": message.round_id,
        "freeze": name,
        "aggregators": list(message.aggregators),
        "contributors": [[c.device_id, c.upload_id.hex(), c.rung] for c in message.contributors],
        "segments": list(message.segments),
    }


def _sum(ident: str, message: SumShare, _name: bytes) -> Told:
    return "sum-released", {"round": message.round_id, "freeze": message.freeze, "aggregator": ident}


#: Message kind -> what is told of it.
_TOLD: Final[dict[str, Callable[[str, Any, bytes], Told]]] = {
    "round-plan": _plan,
    "decline": _decline,
    "attendance": _attendance,
    "sum-share": _sum,
}
