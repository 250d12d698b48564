"""The uploads of the open round: who sent what so far, and what of it may still come (docs/protocol.md §4.2, §4.3).

Rules only, no I/O. A chunk is *pending* from when it was opened until the store has committed it, with others that came
at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from fedpruneshare.link.chunks import Bitmap
from fedpruneshare.messages import KINDS, Attendance, Contribution, ShareUpload, Verdict, decode, encode
from fedpruneshare.plan import PlanView

#: Complete or half-done uploads kept per device and round (docs/protocol.md §4.2).
MAX_ATTEMPTS = 2


@dataclass
class Attempt:
    """One upload of one device: its rung, the chunks stored and pending, and the keys that signed them."""

    device_id: str
    upload_id: bytes
    rung: int
    prg: str
    chunks: int
    stored: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    signers: set[bytes] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is stored."""
        return len(self.stored) == self.chunks

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is kept or about to be."""
        return not self.stored and not self.pending

    def missing(self) -> bytes:
        """Bitmap of the chunks not stored yet."""
        return Bitmap.encode(set(range(self.chunks)) - self.stored, self.chunks)


@dataclass(frozen=True)
class Refused:
    """An upload that will not be taken, and why."""

    verdict: Verdict
    detail: str


class Uploads:
    """Attempts and declines of one cohort."""

    def __init__(self, cohort: Iterable[str]) -> None:
        self._cohort = set(cohort)
        self._attempts: dict[str, dict[bytes, Attempt]] = {}
        self._uploaded: set[str] = set()
        self._declined: set[str] = set()
        self._expelled: set[str] = set()

    def resume(self, attempts: Iterable[Attempt], declined: Iterable[str]) -> None:
        """Put back what the store held."""
        self._attempts = {}
        for attempt in attempts:
            self._attempts.setdefault(attempt.device_id, {})[attempt.upload_id] = attempt
        self._uploaded = {attempt.device_id for attempt in self.all() if attempt.is_complete}
        self._declined = self._cohort.intersection(declined) - self._uploaded  # one may have thought better of it

    # ------------------------------------------------------------------ one device

    def all(self) -> list[Attempt]:
        """All attempts."""
        return [attempt for mine in self._attempts.values() for attempt in mine.values()]

    def of(self, device_id: str) -> Mapping[bytes, Attempt]:
        """The attempts of one device by upload id, the newest last."""
        return self._attempts.get(device_id, {})

    def is_open_to(self, device_id: str) -> bool:
        """Whether a device is in the cohort, and still on the roster."""
        return device_id in self._cohort

    def begin(self, device_id: str, upload: ShareUpload) -> Attempt | Refused:
        """A new attempt; one that is not complete makes room for it."""
        mine = self._attempts.setdefault(device_id, {})
        if len(mine) >= MAX_ATTEMPTS:
            unfinished = [attempt for attempt in mine.values() if not attempt.is_complete]
            if not unfinished:
                return Refused(Verdict.TOO_MANY_UPLOADS, f"{len(mine)} complete uploads already, expected at most that")
            del mine[unfinished[0].upload_id]
        attempt = Attempt(device_id, upload.upload_id, upload.rung, upload.prg, upload.chunks)
        mine[upload.upload_id] = attempt
        self._declined.discard(device_id)
        return attempt

    def stored(self, attempt: Attempt, chunk: int) -> bool:
        """Note a chunk that the store has committed; whether the upload is complete by it."""
        attempt.pending.discard(chunk)
        attempt.stored.add(chunk)
        if attempt.is_complete:
            self._uploaded.add(attempt.device_id)
            self._declined.discard(attempt.device_id)
        return attempt.is_complete

    def discard(self, attempt: Attempt) -> None:
        """Forget an attempt of which nothing is kept."""
        self._attempts.get(attempt.device_id, {}).pop(attempt.upload_id, None)

    def is_undecided(self, device_id: str) -> bool:
        """Whether a device of the cohort has neither uploaded nor declined."""
        return device_id in self._cohort and not (device_id in self._declined or device_id in self._uploaded)

    def decline(self, device_id: str) -> None:
        """Note that a device will not upload."""
        self._declined.add(device_id)

    # ------------------------------------------------------------------ revocation

    def tainted(self, devices: Iterable[str], revoked_keys: Iterable[bytes]) -> list[Attempt]:
        """The attempts of some devices, and whatever a revoked key signed."""
        gone, keys = set(devices), set(revoked_keys)
        return [attempt for attempt in self.all() if attempt.device_id in gone or attempt.signers & keys]

    def expel(self, devices: Iterable[str], tainted: Iterable[Attempt]) -> None:
        """Take devices out of the cohort, and forget attempts that the store has deleted."""
        gone = set(devices)
        self._expelled |= gone
        self._cohort -= gone
        self._declined -= gone
        for attempt in tainted:
            self.discard(attempt)
        self._uploaded = {attempt.device_id for attempt in self.all() if attempt.is_complete}

    def was_expelled(self, device_id: str) -> bool:
        """Whether a device of the cohort has lost its place on the roster since."""
        return device_id in self._expelled

    # ------------------------------------------------------------------ attendance

    def is_everyone_done(self) -> bool:
        """Whether the whole cohort has uploaded or declined, so that waiting longer is useless."""
        return len(self._uploaded) + len(self._declined) == len(self._cohort)  # a device is never in both

    def attendance(self, view: PlanView) -> Attendance:
        """Everything that is complete. Where that does not fit into a message, older attempts are left out.

        A device's newest attempt is the one it pursues. The first ones to be left out are the older attempts of those
        devices that began to upload first: their newest has most probably reached every aggregator.
        """
        complete = [attempt for attempt in self.all() if attempt.is_complete]
        declined = tuple(sorted(self._declined - {attempt.device_id for attempt in complete}))
        uploads = {a.upload_id + a.device_id.encode(): Contribution(a.device_id, a.upload_id, a.rung) for a in complete}
        whole = Attendance(view.plan.round_id, view.digest, tuple(uploads.values()), declined)
        excess = len(encode(whole)) - KINDS["attendance"][1]
        newest = {attempt.device_id: attempt.upload_id for attempt in complete}
        for name, contribution in list(uploads.items()):
            if excess <= 0:
                break
            if contribution.upload_id != newest[contribution.device_id]:
                excess -= len(msgspec.msgpack.encode(contribution))
                del uploads[name]
        return Attendance(view.plan.round_id, view.digest, tuple(uploads.values()), declined)


def attended_attempts(attempts: Iterable[Attempt], attendance: bytes) -> list[Attempt]:
    """The attempts that an attendance (its body) lists, as whole as they were: their devices may ask for a receipt."""
    said = decode("attendance", attendance)
    assert isinstance(said, Attendance)
    listed = {(upload.device_id, upload.upload_id) for upload in said.uploads}
    kept = [attempt for attempt in attempts if (attempt.device_id, attempt.upload_id) in listed]
    return [replace(attempt, stored=set(range(attempt.chunks))) for attempt in kept]
