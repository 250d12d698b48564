"""ShareBook against a plain model of what an aggregator may do, with restarts from the real store at any step."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from builders import DEVICES, plain_view, plan, view
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregator.book import Committed, ShareBook
from aggregator.settings import AggregatorFloors
from aggregator.store import NewChunk, ShareStore
from aggregator.uploads import MAX_ATTEMPTS, Refused
from fedpruneshare.errors import ProtocolError
from fedpruneshare.floors import open_segments
from fedpruneshare.messages import (
    SEAL_BYTES,
    Contribution,
    DealerCheck,
    Freeze,
    Reveal,
    ShareUpload,
    Sharing,
    Suite,
    Verdict,
    digest,
    encode,
)

AGGREGATOR = "aggregator-1"
#: A file system that syncs nothing, where there is one.
MEMORY = Path("/dev/shm")
UPLOAD_IDS = [bytes([number]) * 16 for number in range(1, 4)]


def share_upload(book: ShareBook, upload_id: bytes, rung: int, chunk: int) -> ShareUpload:
    """A chunk of exactly the right shape for the open round."""
    current = book.view
    assert current is not None
    size = current.share_bytes(rung, book.x)
    chunks = current.chunks(size)
    chunk %= chunks
    length = min(current.plan.chunk_bytes, size - chunk * current.plan.chunk_bytes)
    sealed = bytes(length + SEAL_BYTES)
    position = (upload_id, book.x, rung, "chacha20", chunk, chunks)
    return ShareUpload(current.plan.round_id, current.digest, *position, Suite.X25519_CHACHA20, bytes(8), sealed)


def upload_whole(book: ShareBook, device: str) -> None:
    """All chunks of a device's upload at rung 0."""
    for chunk in range(share_upload(book, UPLOAD_IDS[0], 0, 0).chunks):
        attempt = book.admit(device, share_upload(book, UPLOAD_IDS[0], 0, chunk))
        assert not isinstance(attempt, Refused)
        book.stored(attempt, chunk)


class Book(RuleBasedStateMachine):
    """What may happen at one aggregator. The model is the dictionary of stored chunks and a few flags."""

    @initialize(floor=st.integers(3, 5))
    def begin(self, floor: int) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.floors = AggregatorFloors(floor, 3)
        self.store = ShareStore(self.folder, 1 << 30)
        self.book = ShareBook(AGGREGATOR, self.floors)
        self.round_id = 0
        self.is_open = False
        self.freezes: dict[int, bytes] = {}
        self.open_round()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.store.close()
            shutil.rmtree(self.folder)

    # ---------------------------------------------------------------- rounds

    @rule()
    def open_round(self) -> None:
        self.round_id += 1
        checks = self.round_id % 2  # dealer checks in every other round
        self.current = view(self.round_id, sharing=Sharing(3, 2, 1, dealer_checks=checks))
        assert self.book.open_round(self.current)
        self.store.open_round(self.round_id, encode(self.current.plan), 0.0)
        self.is_open, self.attended, self.checked, self.frozen, self.summed = True, None, None, None, False
        self.uploads: dict[tuple[str, bytes], tuple[int, set[int]]] = {}
        self.declined: set[str] = set()

    @precondition(lambda self: self.is_open)
    @rule()
    def the_same_plan_again(self) -> None:
        assert not self.book.open_round(self.current)

    @rule(back=st.integers(0, 3))
    def an_older_or_other_plan(self, back: int) -> None:
        other = view(max(1, self.round_id - back), deadline_s=61.0)
        with pytest.raises(ProtocolError, match="plan for round"):
            self.book.open_round(other)

    @precondition(lambda self: self.is_open)
    @rule()
    def close(self) -> None:
        self.store.close_round(self.round_id)
        self.book.close_round()
        self.is_open = False
        self.uploads, self.declined = {}, set()

    # ---------------------------------------------------------------- uploads

    @precondition(lambda self: self.is_open)
    @rule(
        device=st.sampled_from(DEVICES[:6]), upload_id=st.sampled_from(UPLOAD_IDS), rung=st.integers(0, 2),
        whole=st.booleans(), chunk=st.integers(0, 2),
    )  # fmt: skip
    def upload(self, device: str, upload_id: bytes, rung: int, whole: bool, chunk: int) -> None:
        count = self.current.chunks(self.current.share_bytes(rung, self.book.x))
        for number in range(count) if whole else [chunk % count]:
            self._upload_chunk(device, upload_id, rung, number)

    def _upload_chunk(self, device: str, upload_id: bytes, rung: int, chunk: int) -> None:
        message = share_upload(self.book, upload_id, rung, chunk)
        admitted = self.book.admit(device, message)
        known = self.uploads.get((device, upload_id))
        if known and known[0] != rung:
            assert isinstance(admitted, Refused)
            assert admitted.verdict is Verdict.MALFORMED
        elif known and (chunk in known[1]):
            assert not isinstance(admitted, Refused)
            assert chunk in admitted.stored
        elif self.attended is not None:
            assert isinstance(admitted, Refused)
            assert admitted.verdict is Verdict.LATE
        else:
            self._new_chunk(device, upload_id, rung, chunk, admitted)

    def _new_chunk(self, device: str, upload_id: bytes, rung: int, chunk: int, admitted: object) -> None:
        mine = [key for key in self.uploads if key[0] == device]
        if (device, upload_id) not in self.uploads and len(mine) >= MAX_ATTEMPTS:
            unfinished = [key for key in mine if not self._is_complete(key)]
            if not unfinished:
                assert isinstance(admitted, Refused)
                assert admitted.verdict is Verdict.TOO_MANY_UPLOADS
                return
            del self.uploads[unfinished[0]]
        assert not isinstance(admitted, Refused)
        if not admitted.stored:
            kept = [attempt.upload_id for attempt in self.book.attempts() if attempt.device_id == device]
            self.store.keep_uploads(self.round_id, device, kept)
        self.store.add_chunks(self.round_id, [NewChunk(admitted, chunk, b"\1\2\3\4", b"a device")])
        self.uploads.setdefault((device, upload_id), (rung, set()))[1].add(chunk)
        self.declined.discard(device)
        assert self.book.stored(admitted, chunk) == self._is_complete((device, upload_id))

    def _is_complete(self, key: tuple[str, bytes]) -> bool:
        rung, chunks = self.uploads[key]
        return len(chunks) == self.current.chunks(self.current.share_bytes(rung, self.book.x))

    @precondition(lambda self: self.is_open)
    @rule(device=st.sampled_from(DEVICES), is_right=st.booleans())
    def decline(self, device: str, is_right: bool) -> None:
        there = any(self._is_complete(key) for key in self.uploads if key[0] == device)
        is_news = is_right and self.attended is None and device not in self.declined and not there
        plan_digest = self.current.digest if is_right else bytes(32)
        assert self.book.decline(device, self.round_id, plan_digest) == is_news
        if is_news:
            self.store.decline(self.round_id, device)
            self.declined.add(device)

    # ---------------------------------------------------------------- closing

    @precondition(lambda self: self.is_open and self.attended is None)
    @rule()
    def attend(self) -> None:
        attendance = self.book.attendance()
        complete = {(d, u, r) for (d, u), (r, _) in self.uploads.items() if self._is_complete((d, u))}
        assert {(c.device_id, c.upload_id, c.rung) for c in attendance.uploads} == complete
        assert set(attendance.declined) == self.declined - {device for device, _, _ in complete}
        self.store.attend(self.round_id, encode(attendance))
        self.book.note_attendance()
        self.attended = attendance

    @precondition(lambda self: self.is_open and not self.summed)
    @rule(data=st.data(), challenge=st.sampled_from([bytes(32), b"\1" * 32]))
    def dealer_check(self, data: st.DataObject, challenge: bytes) -> None:
        held = self.attended.uploads if self.attended else ()
        uploads = data.draw(st.lists(st.sampled_from(held or [None]), unique=True, max_size=8))
        contributors = {c.device_id: c for c in uploads if c is not None}
        wrong = data.draw(st.sampled_from(["", "", "stranger", "few aggregators", "plan"]))
        check = DealerCheck(self.round_id, self.current.digest, challenge, ("aggregator-1", "aggregator-3"),
                            tuple(contributors.values()))  # fmt: skip
        check = _spoil(check, wrong)
        name = digest(encode(check))
        in_time = bool(self.round_id % 2) and self.attended is not None and self.frozen is None
        if wrong or not in_time or self.checked not in (None, name):
            with pytest.raises(ProtocolError):
                self.book.check_dealer_check(check, name)
            return
        assert self.book.check_dealer_check(check, name)
        if self.checked is None:
            self.store.note_check(self.round_id, name)
            self.book.note_check(name)
            self.checked = name

    @precondition(lambda self: self.is_open and self.attended is not None and not self.summed)
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        uploads = data.draw(st.lists(st.sampled_from(self.attended.uploads or [None]), unique=True, max_size=8))
        contributors = {c.device_id: c for c in uploads if c is not None}
        rungs = [c.rung for c in contributors.values()]
        segments = open_segments(rungs, 3, max(3, self.floors.min_devices), 3)
        wrong = data.draw(st.sampled_from(["", "", "segments", "stranger", "few aggregators", "plan"]))
        freeze = Freeze(self.round_id, self.current.digest, ("aggregator-1", "aggregator-3"),
                        tuple(contributors.values()), segments or (0,))  # fmt: skip
        freeze = _spoil(freeze, wrong)
        self._try_freeze(freeze, is_sound=not wrong and bool(segments))

    def _try_freeze(self, freeze: Freeze, is_sound: bool) -> None:
        name = digest(encode(freeze))
        if self.frozen is not None:
            is_sound = name == self.frozen
        if not is_sound:
            with pytest.raises(ProtocolError):
                self.book.check_freeze(freeze, name)
            return
        assert self.book.check_freeze(freeze, name)
        if self.frozen is None:
            self.store.freeze(self.round_id, encode(freeze), name)
            self.book.freeze(name)
            self.frozen = name
            assert self.freezes.setdefault(self.round_id, name) == name

    @precondition(lambda self: self.is_open and self.frozen is not None and not self.summed)
    @rule()
    def sum(self) -> None:
        self.store.burn(self.round_id, b"sum")
        self.summed = True

    # ---------------------------------------------------------------- a restart at any moment

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = ShareStore(self.folder, 1 << 30)
        self.book = ShareBook(AGGREGATOR, self.floors)
        stored = self.store.latest()
        assert stored is not None
        assert stored.is_closed == (not self.is_open)
        if stored.is_closed:
            self.book.forget_up_to(stored.round_id)
            return
        self.book.open_round(self.current)
        attempts, declined = self.store.attempts(self.round_id), self.store.declined(self.round_id)
        committed = Committed(stored.attendance is not None, stored.check_digest, stored.freeze_digest)
        self.book.resume(attempts, declined, committed)
        if not self.summed:
            assert {(a.device_id, a.upload_id): (a.rung, a.stored) for a in attempts} == self.uploads
            assert set(declined) == self.declined
        assert (stored.attendance is not None) == (self.attended is not None)
        assert stored.check_digest == self.checked == self.book.checked
        assert stored.freeze_digest == self.frozen == self.book.frozen

    # ---------------------------------------------------------------- always

    @invariant()
    def a_sum_leaves_no_share(self) -> None:
        if getattr(self, "summed", False) or not getattr(self, "is_open", True):
            assert self.store.attempts(self.round_id) == []

    @invariant()
    def no_device_has_too_many_uploads(self) -> None:
        for device in DEVICES:
            assert sum(key[0] == device for key in getattr(self, "uploads", {})) <= MAX_ATTEMPTS

    @invariant()
    def nothing_is_admitted_after_the_attendance(self) -> None:
        if getattr(self, "is_open", False) and self.attended is not None and not self.summed:
            complete = {(d, u) for (d, u) in self.uploads if self._is_complete((d, u))}
            assert {(c.device_id, c.upload_id) for c in self.attended.uploads} == complete


Asked = TypeVar("Asked", Freeze, DealerCheck)


def _spoil(asked: Asked, wrong: str) -> Asked:
    if wrong == "segments":
        return msgspec.structs.replace(asked, segments=(0, 2) if asked.segments != (0, 2) else (0,))
    changes: dict[str, dict[str, object]] = {
        "": {},
        "stranger": {"contributors": (*asked.contributors, Contribution("device-09", bytes(16), 0))},
        "few aggregators": {"aggregators": ("aggregator-1",)},
        "plan": {"plan": bytes(32)},
    }
    return msgspec.structs.replace(asked, **changes[wrong])


Book.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestShareBook = Book.TestCase


# --------------------------------------------------------------------------- single rules


@pytest.fixture
def book() -> ShareBook:
    made = ShareBook(AGGREGATOR, AggregatorFloors())
    made.open_round(view(5))
    return made


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"round_id": 4}, Verdict.LATE),
        ({"round_id": 6}, Verdict.WRONG_ROUND),
        ({"plan": bytes(32)}, Verdict.WRONG_ROUND),
        ({"x": 2}, Verdict.MALFORMED),
        ({"chunks": 9}, Verdict.MALFORMED),
        ({"chunk": 60}, Verdict.MALFORMED),
        ({"sealed": bytes(60)}, Verdict.MALFORMED),
        ({"rung": 7}, Verdict.MALFORMED),
    ],
)
def test_a_wrong_chunk_is_refused_before_it_is_opened(
    book: ShareBook, changes: dict[str, object], verdict: Verdict
) -> None:
    assert book.x != 2
    upload = msgspec.structs.replace(share_upload(book, UPLOAD_IDS[0], 1, 0), **changes)
    refused = book.admit("device-00", upload)
    assert isinstance(refused, Refused)
    assert refused.verdict is verdict
    assert book.attempts() == []


def test_a_device_outside_the_cohort_is_refused() -> None:
    book = ShareBook(AGGREGATOR, AggregatorFloors())
    book.open_round(view(1, cohort=DEVICES[:5]))
    refused = book.admit("device-07", share_upload(book, UPLOAD_IDS[0], 0, 0))
    assert isinstance(refused, Refused)
    assert refused.verdict is Verdict.NOT_IN_COHORT


def test_a_rung_the_plan_leaves_out_is_refused() -> None:
    book = ShareBook(AGGREGATOR, AggregatorFloors())
    book.open_round(view(1, rungs=(0, 2)))
    refused = book.admit("device-00", share_upload(book, UPLOAD_IDS[0], 1, 0))
    assert isinstance(refused, Refused)
    assert "rung 1, expected one of (0, 2)" in refused.detail


def test_everyone_done_counts_uploads_and_declines(book: ShareBook) -> None:
    for device in DEVICES[:9]:
        upload_whole(book, device)
    assert not book.is_everyone_done()
    assert book.decline("device-09", 5, view(5).digest)
    assert book.is_everyone_done()


def test_everyone_is_done_after_a_restart_too_where_one_had_declined_before_it_uploaded(book: ShareBook) -> None:
    first, *others = DEVICES
    for device in others:
        book.decline(device, 5, view(5).digest)
    book.decline(first, 5, view(5).digest)
    upload_whole(book, first)
    assert book.is_everyone_done()
    book.resume(book.attempts(), DEVICES, Committed(False, None, None))
    assert book.is_everyone_done()


def test_the_aggregators_own_floor_stands_above_the_plans(book: ShareBook) -> None:
    strict = ShareBook(AGGREGATOR, AggregatorFloors(min_devices=8, min_devices_segment=3))
    strict.open_round(view(5))
    contributors = []
    for device in DEVICES[:6]:
        upload_whole(strict, device)
        contributors.append(Contribution(device, UPLOAD_IDS[0], 0))
    strict.note_attendance()
    freeze = Freeze(5, view(5).digest, ("aggregator-1", "aggregator-2"), tuple(contributors), (0,))
    with pytest.raises(ProtocolError, match="freeze of 6 devices, expected at least 8"):
        strict.check_freeze(freeze, digest(encode(freeze)))


def test_an_aggregator_that_is_not_named_does_not_sum(book: ShareBook) -> None:
    contributors = tuple(Contribution(device, UPLOAD_IDS[0], 0) for device in DEVICES[:4])
    freeze = Freeze(5, view(5).digest, ("aggregator-2", "aggregator-3"), contributors, (0,))
    assert not book.check_freeze(freeze, digest(encode(freeze)))


def test_without_a_round_nothing_is_open() -> None:
    book = ShareBook(AGGREGATOR, AggregatorFloors())
    assert book.view is None
    with pytest.raises(RuntimeError):
        book.attendance()
    upload = ShareUpload(1, bytes(32), bytes(16), 1, 0, "chacha20", 0, 1, Suite.X25519_CHACHA20, bytes(8), bytes(80))
    refused = book.admit("device-00", upload)
    assert isinstance(refused, Refused)
    assert refused.verdict is Verdict.WRONG_ROUND
    assert plan().round_id == 1


# --------------------------------------------------------------------------- privacy


def test_a_plan_below_the_privacy_threshold_is_refused() -> None:
    strict = ShareBook(AGGREGATOR, AggregatorFloors(privacy_threshold=2))
    with pytest.raises(ProtocolError, match="t = 1, expected at least the privacy_threshold of this aggregator, 2"):
        strict.open_round(view(1))
    assert strict.open_round(view(1, sharing=Sharing(3, 3, 2)))


def test_single_updates_are_shown_only_where_the_aggregator_allows_it() -> None:
    each = Sharing(3, 2, 1, reveal=Reveal.EACH)
    with pytest.raises(ProtocolError, match="allow_reveal_each is off"):
        ShareBook(AGGREGATOR, AggregatorFloors()).open_round(view(1, sharing=each))
    assert ShareBook(AGGREGATOR, AggregatorFloors(allow_reveal_each=True)).open_round(view(1, sharing=each))


def test_a_refused_plan_leaves_the_open_round_as_it_is(book: ShareBook) -> None:
    with pytest.raises(ProtocolError):
        book.open_round(view(6, sharing=Sharing(3, 2, 1, reveal=Reveal.EACH)))
    assert book.view is not None
    assert book.view.plan.round_id == 5


def test_one_upload_has_one_keystream_algorithm(book: ShareBook) -> None:
    upload = share_upload(book, UPLOAD_IDS[0], 1, 0)
    attempt = book.admit("device-00", upload)
    assert not isinstance(attempt, Refused)
    refused = book.admit("device-00", msgspec.structs.replace(upload, chunk=1, prg="aes-256-ctr"))
    assert isinstance(refused, Refused)
    assert "rung 1 with aes-256-ctr, expected 1 with chacha20 as before" in refused.detail


def test_updates_that_are_not_shared_need_this_aggregators_leave() -> None:
    with pytest.raises(ProtocolError, match="allow_plain is off"):
        ShareBook("aggregator-1", AggregatorFloors(allow_reveal_each=True)).open_round(plain_view())
    assert ShareBook("aggregator-1", AggregatorFloors(allow_plain=True)).open_round(plain_view())
