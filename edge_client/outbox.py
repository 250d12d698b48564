"""The outbox: what a device must not lose between the first chunk and the last receipt (docs/protocol.md §4.2, §9.1).

Before a chunk leaves, upload id, sharing seeds and quantised words are on disk in one atomic file, so a restart sends
the *same* shares under the *same* upload id. Without the file a restart draws new ones, under a new id: two
polynomials are never mixed under one name. The same holds for a file that is damaged: it carries its own digest.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edge_client.progress import Progress
from fedpruneshare.crash_points import reach
from fedpruneshare.errors import SettingsError
from fedpruneshare.messages import Suite
from fedpruneshare.sharing.field import FIELDS, Words, to_bytes
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.storage import write_atomically

_DIGEST_BYTES: Final = 32
_MIB: Final = 1 << 20


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """File format of one upload."""

    plan: bytes
    round_id: int
    upload_id: bytes
    rung: int
    weight: int
    prg: str
    suite: str
    field: str
    seeds: dict[int, bytes]
    masks: bytes
    key: bytes
    words: bytes


@dataclass(frozen=True)
class Upload:
    """One upload, ready to be split. All of it is secret.

    Quantised words [m] with their checksums, the seeds of the seed points with their keystream algorithm, and the mask
    words of the dealer checks; where single updates are revealed, the dispersal key instead. `suite`: of its seals.
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
    suite: Suite = Suite.X25519_CHACHA20

    def __repr__(self) -> str:
        return f"Upload(round_id={self.round_id}, rung={self.rung}, words={self.words.size})"


class Outbox:
    """At most one upload, in one file only its owner can read, of at most `limit_mib`; and what is over for ever.

    Raises `SettingsError` where it is not known any more which rounds are over.
    """

    def __init__(self, folder: Path, limit_mib: int = 64) -> None:
        self.progress = Progress(folder)
        self._path, self._limit_mib = folder / "upload.msgpack", limit_mib

    def put(self, upload: Upload) -> None:
        """Keep an upload durably, instead of any earlier one.

        Raises `SettingsError` where it is larger than the outbox may be, `OSError` where it cannot be kept.
        """
        field = next(name for name, field in FIELDS.items() if field.word_type == upload.words.dtype)
        # As `_Stored`, but the words follow without a copy: an update can be large, and the board small.
        stored = (
            upload.plan, upload.round_id, upload.upload_id, upload.rung, upload.weight, str(upload.prg),
            str(upload.suite), field, upload.seeds, to_bytes(upload.masks, FIELDS[field]), upload.key, b"",
        )  # fmt: skip
        words = to_bytes(upload.words, FIELDS[field])
        empty = msgspec.msgpack.encode(stored)[:-2]  # without the two bytes that say "no bytes"
        head = empty + b"\xc6" + words.nbytes.to_bytes(4, "big")
        size_bytes = _DIGEST_BYTES + len(head) + words.nbytes
        if size_bytes > self._limit_mib * _MIB:
            found = f"upload of {size_bytes / _MIB:.1f} MiB"
            raise SettingsError(f"{found}, expected at most limits.outbox_mib = {self._limit_mib}")
        check = hashlib.sha256(head)
        check.update(words)
        reach("device.upload-persisted.before")
        write_atomically(self._path, check.digest(), head, words, mode=0o600)
        reach("device.upload-persisted.after")

    def get(self, plan: bytes) -> Upload | None:
        """The upload made for exactly this plan, if the outbox holds it whole."""
        upload = self.held()
        return upload if upload is not None and upload.plan == plan else None

    def held(self) -> Upload | None:
        """The upload it holds; None where there is none, or it is damaged."""
        try:
            data = memoryview(self._path.read_bytes())
            if not hmac.compare_digest(hashlib.sha256(data[_DIGEST_BYTES:]).digest(), data[:_DIGEST_BYTES]):
                return None
            stored = msgspec.msgpack.decode(data[_DIGEST_BYTES:], type=_Stored)
            word_type = FIELDS[stored.field].word_type
            words, masks = (np.frombuffer(data, dtype=word_type) for data in (stored.words, stored.masks))
            prg, suite = Prg(stored.prg), Suite(stored.suite)
        except (OSError, msgspec.DecodeError, KeyError, ValueError):
            return None
        return Upload(
            stored.plan, stored.round_id, stored.upload_id, stored.rung, stored.weight, prg, stored.seeds, masks,
            stored.key, words, suite,
        )  # fmt: skip

    def finish(self, round_id: int) -> None:
        """Forget the upload: its round is over, and no plan up to that round is taken part in again.

        Raises `OSError` where that cannot be kept; the upload then stays, so that it would be sent as it was.
        """
        reach("device.round-finished.before")
        self.progress.finish(round_id)
        self._path.unlink(missing_ok=True)
        reach("device.round-finished.after")

    def last_round(self) -> int:
        """The highest round that is over for this device, also after a restart; 0 if there was none.

        So are those before the one whose model it has taken, though that may not be over.
        """
        reached = self.progress.reached
        return max(reached.round_id, reached.model_round - 1)
