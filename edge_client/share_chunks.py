"""The shares of an upload, chunk by chunk, made when they are asked for (docs/protocol.md §3.3, §5.4).

A share is as long as the update, and a device makes n − t of them: none is ever held whole. Each follows from the
stored upload alone, so a chunk that is asked for again, also after a restart, has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_client.outbox import Upload
from fedpruneshare.errors import SharingError
from fedpruneshare.link.chunks import cut
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dispersal import disperse
from fedpruneshare.sharing.field import Words, check_canonical, to_bytes
from fedpruneshare.sharing.prg import LEAN_BACKEND, Seed


class WholeShare:
    """A share that is at hand: a seed, a fragment of a dispersed upload, or an upload that is not shared."""

    def __init__(self, share: bytes, chunk_bytes: int) -> None:
        self._pieces = cut(share, chunk_bytes)
        self.count = len(self._pieces)

    def chunk(self, index: int) -> bytes:
        """Chunk `index` of 0…count − 1."""
        return bytes(self._pieces[index])


class StreamedShare:
    """The elements of a full share, in one pass over the upload's words; going back begins a new pass.

    Couriers ask in ascending order, and again only for what was lost, so a share costs little more than one pass. Each
    has a pass of its own: an aggregator that is not there holds up nobody. Memory: 3·k chunks of 128 KiB at most.
    """

    def __init__(self, view: PlanView, device_id: str, upload: Upload, x: int) -> None:
        self._view, self._device_id, self._upload, self._x = view, device_id, upload, x
        self._total_bytes = view.share_bytes(upload.rung, x)
        self.count = view.chunks(self._total_bytes)
        self._next, self._left = 0, memoryview(b"")
        self._elements: Iterator[Words] = iter(())

    def chunk(self, index: int) -> bytes:
        """Chunk `index` of 0…count − 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"chunk {index}, expected 0 to {self.count - 1}")
        if index < self._next or self._next == 0:
            self._next, self._left, self._elements = 0, memoryview(b""), self._pass()
        while self._next < index:
            self._take()
        return bytes(self._take())

    def _take(self) -> bytearray:
        """The next chunk, filled from the elements of as many steps of the pass as it takes."""
        start = self._next * self._view.plan.chunk_bytes
        chunk = bytearray(min(self._view.plan.chunk_bytes, self._total_bytes - start))
        filled = 0
        while filled < len(chunk):
            if not self._left:
                self._left = to_bytes(next(self._elements), self._view.field)
            size = min(len(self._left), len(chunk) - filled)
            chunk[filled : filled + size] = self._left[:size]
            self._left, filled = self._left[size:], filled + size
        self._next += 1
        return chunk

    def _pass(self) -> Iterator[Words]:
        """Elements for this point: segment by segment, then the masks, all in one keystream (docs/protocol.md §5.4)."""
        view, upload = self._view, self._upload
        seeds = {x: Seed(value) for x, value in upload.seeds.items()}
        domain = view.keystream_domain(self._device_id, upload.upload_id)
        streams = view.scheme.open_streams(seeds, (upload.prg, domain), LEAN_BACKEND)
        lengths = view.segment_words[: upload.rung + 1]
        for words in (*np.split(upload.words, np.cumsum(lengths)[:-1]), upload.masks):
            for _part, elements in view.scheme.stream_next(words, streams, self._x):
                yield elements[self._x]


Share = WholeShare | StreamedShare


def open_shares(view: PlanView, device_id: str, upload: Upload) -> dict[int, Share]:
    """What each point is sent: a seed, a share's elements, or a fragment. Deterministic in the stored upload.

    The fragments of a dispersal (`reveal = "each"`) are made whole: its cipher and its code need all of the words.
    Raises `SharingError`, before anything is sent, for words that are not canonical or not as many as the plan says.
    """
    _check_words(view, upload)
    chunk_bytes, n = view.plan.chunk_bytes, view.plan.sharing.n
    if view.is_plain:
        return {1: WholeShare(bytes(to_bytes(upload.words, view.field)), chunk_bytes)}
    if view.is_each_revealed:
        context = view.dispersal_context(device_id, upload.upload_id, upload.rung)
        fragments = disperse(to_bytes(upload.words, view.field), n, view.scheme.k, context, upload.key)
        return {x: WholeShare(fragment, chunk_bytes) for x, fragment in fragments.items()}
    seeds: dict[int, Share] = {x: WholeShare(seed, chunk_bytes) for x, seed in upload.seeds.items()}
    return seeds | {x: StreamedShare(view, device_id, upload, x) for x in view.scheme.full_points}


def _check_words(view: PlanView, upload: Upload) -> None:
    found = upload.words.size, upload.masks.size
    expected = view.upload_words(upload.rung), 0 if view.is_each_revealed else view.checks * view.scheme.secrets
    if found != expected:
        raise SharingError(f"upload of {found[0]} words and {found[1]} masks, expected {expected[0]} and {expected[1]}")
    if view.is_plain:
        return  # floats, no elements of the field
    for words in (upload.words, upload.masks):
        check_canonical(words, view.field)
