"""A frozen round without brokers: what seven devices at three rungs dealt, and what each aggregator answers."""

from __future__ import annotations

import msgspec
import numpy as np
from builders import DEVICES, directory, plan
from simulators.whole_shares import split_upload

from aggregator.summing import answer_freeze, check_share
from edge_client.fresh_upload import new_upload
from fedpruneshare.messages import Contribution, Freeze, Segment, Sharing, digest, encode
from fedpruneshare.plan import PlanView, check_plan
from fedpruneshare.sharing.checksum import CHECKSUM_WORDS, commitment, fill_checksum
from fedpruneshare.sharing.field import FIELDS
from fedpruneshare.sharing.prg import Prg
from fedpruneshare.words import SegmentWords, WordLayout

SHAPES = ((40, 5), (30, 0), (21, 0))


class FrozenRound:
    """A frozen round of seven devices at three rungs, and what each of n aggregators answers.

    `seed`: of the hidden checksum; None for a round without. Devices `unfilled` leave
    theirs at zero. `quorum`: of the Freeze, without which k must be more than half of n.
    """

    def __init__(
        self, sharing: Sharing, seed: bytes | None = None, unfilled: tuple[str, ...] = (), quorum: int = 0
    ) -> None:
        self.seed, self.unfilled = seed, unfilled
        names = tuple(f"aggregator-{place}" for place in range(1, sharing.n + 1))
        tail = CHECKSUM_WORDS[sharing.field] if seed else 0
        coding = msgspec.structs.replace(plan().coding, tail_words=tail)
        layout = WordLayout(coding, FIELDS[sharing.field])
        segments = tuple(
            Segment(w, v, layout.words(v, w), 0.1 * (place + 1), bytes(32), 100, bytes(32))
            for place, (w, v) in enumerate(SHAPES)
        )
        points = {name: x for x, name in enumerate(names, 1)}
        checksum = commitment(seed) if seed else b""
        whole = plan(
            sharing=sharing, coding=coding, segments=segments, points=points, checksum=checksum, freeze_quorum=quorum
        )
        services = directory().aggregators
        parties = directory(aggregators={name: services.get(name, services["aggregator-1"]) for name in names})
        self.view: PlanView = check_plan(whole, digest(encode(whole)), parties)
        self.words, contributors = {}, []
        self.held: dict[int, list[tuple[Contribution, bytes]]] = {x: [] for x in range(1, sharing.n + 1)}
        for place, device in enumerate(DEVICES[:7]):
            contribution = self._upload(device, place)
            contributors.append(contribution)
        opened = (0, 1)
        self.freeze = Freeze(1, self.view.digest, names, tuple(contributors), opened)
        self.answers = {
            x: answer_freeze(self.view, x, opened, held, lambda _: Prg.AES_256_CTR) for x, held in self.held.items()
        }

    def _upload(self, device: str, place: int) -> Contribution:
        rung, draw = (0, 1, 1, 2, 1, 0, 0)[place], np.random.default_rng(place)
        words = np.concatenate([
            self.view.layout.pack(
                SegmentWords(place + 1, draw.integers(0, 65535, v, np.uint32), draw.integers(0, 15, w, np.uint32))
            )
            for w, v in SHAPES[: rung + 1]
        ])  # fmt: skip
        self._fill(device, words)
        upload = new_upload(self.view, rung, place + 1, words, Prg.AES_256_CTR)
        contribution = Contribution(device, upload.upload_id, rung)
        self.words[contribution] = words
        for x, share in split_upload(self.view, device, upload).items():
            check_share(self.view, x, share)
            self.held[x].append((contribution, share))
        return contribution

    def _fill(self, device: str, words: np.ndarray) -> None:
        if self.seed is None or device in self.unfilled:
            return
        start = 0
        for segment, size in enumerate(self.view.segment_words):
            if start < words.size:
                part = words[start : start + size]
                fill_checksum(part, self.seed, segment, self.view.plan.coding.tail_words, self.view.field)
            start += size

    def expected(self, segment: int, without: tuple[str, ...] = ()) -> list[int]:
        start, size = sum(self.view.segment_words[:segment]), self.view.segment_words[segment]
        rows = [
            words[start : start + size].astype(object)
            for c, words in self.words.items()
            if c.rung >= segment and c.device_id not in without
        ]
        return (np.sum(rows, axis=0) % self.view.field.p).tolist()  # type: ignore[no-any-return]

    def altered(self, x: int, place: int) -> bytes:
        changed = bytearray(self.answers[x])
        changed[place] ^= 1
        return bytes(changed)
