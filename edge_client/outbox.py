"""The outbox: what a device must not lose between the first chunk and the last receipt (docs/protocol.md §4.2, §9.1).

Before a chunk leaves, upload id, sharing seeds and quantised words are on disk in one atomic file, so a restart sends
the *same* shares under the *same* upload id. Without the file a restart draws new ones, under a new id: two
polynomials are never mixed under one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fedpruneshare.sharing.field import FIELDS, Words, to_bytes
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.storage import write_atomically


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """File format of one upload."""

    plan: bytes
    round_id: int
    upload_id: bytes
    rung: int
    weight: int
    prg: str
    field: str
    seeds: dict[int, bytes]
    masks: bytes
    key: bytes
    words: bytes


@dataclass(frozen=True)
class Upload:
    """One upload, ready to be split. All of it is secret.

    Quantised words [m], the seeds of the seed points with their keystream algorithm, and the mask words of the dealer
    checks; where single updates are revealed, the dispersal key instead.
    """

    plan: bytes
    round_id: int
    upload_id: bytes
    rung: int
    weight: int
    prg: Prg
    seeds: dict[int, bytes]
    masks: Words
    key: bytes
    words: Words

    def __repr__(self) -> str:
        return f"Upload(round_id={self.round_id}, rung={self.rung}, words={self.words.size})"


class Outbox:
    """At most one upload, in one file only its owner can read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "upload.msgpack"
        self._done = folder / "done"

    def put(self, upload: Upload) -> None:
        """Keep an upload durably, instead of any earlier one."""
        field = next(name for name, field in FIELDS.items() if field.word_type == upload.words.dtype)
        # As `_Stored`, but the words follow without a copy: an update can be large, and the board small.
        stored = (
            upload.plan, upload.round_id, upload.upload_id, upload.rung, upload.weight, str(upload.prg), field,
            upload.seeds, to_bytes(upload.masks, FIELDS[field]), upload.key, b"",
        )  # fmt: skip
        words = to_bytes(upload.words, FIELDS[field])
        empty = msgspec.msgpack.encode(stored)[:-2]  # without the two bytes that say "no bytes"
        head = empty + b"\xc6" + words.nbytes.to_bytes(4, "big")
        write_atomically(self._path, head, words, mode=0o600)

    def get(self, plan: bytes) -> Upload | None:
        """The upload made for exactly this plan, if the outbox holds it whole; anything else is dropped."""
        try:
            stored = msgspec.msgpack.decode(self._path.read_bytes(), type=_Stored)
            word_type = FIELDS[stored.field].word_type
            words, masks = (np.frombuffer(data, dtype=word_type) for data in (stored.words, stored.masks))
            prg = Prg(stored.prg)
        except (OSError, msgspec.DecodeError, KeyError, ValueError):
            return None
        if stored.plan != plan:
            return None
        return Upload(
            plan, stored.round_id, stored.upload_id, stored.rung, stored.weight, prg, stored.seeds, masks, stored.key,
            words,
        )  # fmt: skip

    def finish(self, round_id: int) -> None:
        """Forget the upload: its round is over, and no plan up to that round is taken part in again."""
        write_atomically(self._done, b"%d" % max(round_id, self.last_round()))
        self._path.unlink(missing_ok=True)

    def last_round(self) -> int:
        """The highest round that is over for this device, also after a restart; 0 if there was none."""
        try:
            return int(self._done.read_bytes())
        except (OSError, ValueError):
            return 0
