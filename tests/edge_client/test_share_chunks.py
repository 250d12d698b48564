"""Chunks made on demand are those of the whole shares, in any order and as often as they are asked for."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from builders import AGGREGATORS, DEVICES, directory, plain_view, plan
from simulators.whole_shares import split_upload

from edge_client.fresh_upload import new_upload
from edge_client.outbox import Upload
from edge_client.share_chunks import StreamedShare, open_shares
from fedpruneshare.errors import SharingError
from fedpruneshare.messages import Coding, Reveal, Segment, Sharing, digest, encode
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.dispersal import disperse
from fedpruneshare.sharing.field import FIELDS, to_bytes
from fedpruneshare.sharing.prg import Prg, Seed
from fedpruneshare.words import WordLayout

DEVICE = DEVICES[0]
SHARINGS = [
    Sharing(3, 2, 1),
    Sharing(3, 2, 1, dealer_checks=3),
    Sharing(3, 3, 2),
    Sharing(4, 3, 1, "F61"),
    Sharing(5, 3, 2, dealer_checks=1),
]


def view_of(sharing: Sharing, sizes: tuple[int, ...], chunk_bytes: int = 1024) -> PlanView:
    coding = Coding(16, 16, (0.1,), (), 512, 10)
    layout = WordLayout(coding, FIELDS[sharing.field])
    segments = tuple(Segment(v, 0, layout.words(0, v), 1.0, bytes(32), 100, bytes(32)) for v in sizes)
    names = [f"aggregator-{place}" for place in range(1, sharing.n + 1)]
    whole = plan(
        sharing=sharing, coding=coding, segments=segments, rungs=tuple(range(len(sizes))), chunk_bytes=chunk_bytes,
        points={name: place + 1 for place, name in enumerate(names)},
    )  # fmt: skip
    services = directory().aggregators
    parties = directory(aggregators={name: services.get(name, services[AGGREGATORS[0]]) for name in names})
    return check_plan(whole, digest(encode(whole)), parties)


def upload_of(view: PlanView, rung: int) -> Upload:
    draw = np.random.default_rng(7)
    words, masks = (
        draw.integers(0, view.field.p, size, dtype=view.field.word_type)
        for size in (view.upload_words(rung), view.checks * view.scheme.secrets)
    )
    seeds = {x: bytes([x]) * 32 for x in range(1, view.scheme.t + 1)}
    return Upload(view.digest, 1, b"u" * 16, rung, 1, Prg.CHACHA20, seeds, masks, b"k" * 32, words)


def split_at_once(view: PlanView, upload: Upload) -> dict[int, bytes]:
    """Every vector by itself into whole buffers, in the same keystreams."""
    seeds = {x: Seed(value) for x, value in upload.seeds.items()}
    streams = view.scheme.open_streams(seeds, (upload.prg, view.keystream_domain(DEVICE, upload.upload_id)))
    shares = {x: bytearray() for x in view.scheme.full_points}
    for words in (*np.split(upload.words, np.cumsum(view.segment_words[: upload.rung + 1])[:-1]), upload.masks):
        out = {x: np.empty(view.scheme.elements(words.size), words.dtype) for x in view.scheme.full_points}
        view.scheme.split_next(words, streams, out)
        for x, share in out.items():
            shares[x] += to_bytes(share, view.field)
    return {**upload.seeds, **{x: bytes(share) for x, share in shares.items()}}


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
@pytest.mark.parametrize("sizes", [(5, 900, 300), (1,), (40_000, 70_000)], ids=str)
@pytest.mark.parametrize("rung", [0, -1])
def test_the_chunks_are_those_of_whole_shares(sharing: Sharing, sizes: tuple[int, ...], rung: int) -> None:
    view = view_of(sharing, sizes, chunk_bytes=1024 if sum(sizes) < 10_000 else 65_536)
    upload = upload_of(view, rung % len(sizes))
    found = split_upload(view, DEVICE, upload)
    assert found == split_at_once(view, upload)
    assert {x: len(share) for x, share in found.items()} == {x: view.share_bytes(upload.rung, x) for x in found}


@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_any_chunk_any_time(sharing: Sharing) -> None:
    view = view_of(sharing, (900, 1500, 700))
    upload = upload_of(view, 2)
    whole, rng = split_at_once(view, upload), random.Random(3)
    for x, share in open_shares(view, DEVICE, upload).items():
        asked = [rng.randrange(share.count) for _ in range(30)] + [0, 0, share.count - 1, share.count - 1]
        for index in asked:
            assert share.chunk(index) == whole[x][index * 1024 : (index + 1) * 1024]


def test_there_is_no_chunk_beyond_the_last() -> None:
    view = view_of(Sharing(3, 2, 1), (900,))
    share = open_shares(view, DEVICE, upload_of(view, 0))[3]
    for index in (-1, share.count):
        with pytest.raises(IndexError, match=rf"{index}.*0 to {share.count - 1}"):
            share.chunk(index)


def test_a_dispersed_upload_is_cut_from_whole_fragments() -> None:
    view = view_of(Sharing(3, 2, 1, reveal=Reveal.EACH), (3000,))
    upload = upload_of(view, 0)
    context = view.dispersal_context(DEVICE, upload.upload_id, 0)
    assert split_upload(view, DEVICE, upload) == disperse(to_bytes(upload.words), 3, 2, context, upload.key)


def test_words_that_are_none_are_refused_before_a_chunk_is_made() -> None:
    view = view_of(Sharing(3, 2, 1), (900,))
    upload = upload_of(view, 0)
    upload.words[-1] = view.field.p
    with pytest.raises(SharingError):
        open_shares(view, DEVICE, upload)


def test_what_is_not_shared_is_the_upload_itself_and_of_its_length_only() -> None:
    view = plain_view()
    words = np.arange(view.upload_words(1), dtype=np.uint32) + 0x7FFFFFF0  # floats, not elements of the field
    upload = new_upload(view, 1, 1, words, Prg.AES_256_CTR)
    assert (upload.seeds, upload.masks.size, upload.key) == ({}, 0, b"")
    (share,) = open_shares(view, DEVICE, upload).values()
    assert b"".join(share.chunk(index) for index in range(share.count)) == words.astype("<u4").tobytes()
    with pytest.raises(SharingError, match=rf"upload of {words.size - 1} words"):
        open_shares(view, DEVICE, replace(upload, words=words[:-1]))


@pytest.mark.parametrize("reveal", [Reveal.SUM, Reveal.EACH])
def test_an_upload_of_another_length_is_refused(reveal: Reveal) -> None:
    view = view_of(Sharing(3, 2, 1, reveal=reveal), (900, 300))
    for words in (0, 1199, 1203):
        with pytest.raises(SharingError, match=rf"{words} words and 0 masks, expected 1202 and 0"):
            open_shares(view, DEVICE, replace(upload_of(view, 1), words=np.zeros(words, view.field.word_type)))


@pytest.mark.parametrize("sharing", [Sharing(3, 2, 1), Sharing(5, 3, 2)], ids=str)
def test_all_couriers_together_hold_no_more_than_a_few_chunks(sharing: Sharing) -> None:
    """10^6 words, every share in its own pass and all at once: below 6 MiB, however long the update."""
    view = view_of(sharing, (1_000_000,), chunk_bytes=65_536)
    upload = upload_of(view, 0)
    shares = open_shares(view, DEVICE, upload)
    streamed = [share for share in shares.values() if isinstance(share, StreamedShare)]
    tracemalloc.start()
    try:
        for index in range(streamed[0].count):
            assert {len(share.chunk(index)) for share in streamed} <= {65_536, 4 * upload.words.size % 65_536}
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(streamed) == sharing.n - sharing.t
    assert peak_bytes < 6 * 2**20
