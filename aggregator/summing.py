"""Adding the shares of a Freeze (docs/protocol.md §4.5). The words an aggregator adds tell it nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedpruneshare.messages import Contribution
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.field import F31, check_canonical, from_bytes, to_bytes
from fedpruneshare.sharing.prg import Seed, fill_elements
from fedpruneshare.sharing.shamir import Accumulator
from fedpruneshare.words import total_words


def check_share(data: bytes) -> None:
    """Check that share bytes are whole, canonical words. Raises `SharingError`."""
    check_canonical(from_bytes(data, len(data) // 4), F31)


def sum_words(view: PlanView, x: int, segments: tuple[int, ...], shares: Iterable[tuple[Contribution, bytes]]) -> bytes:
    """Sum of the frozen shares over the opened segments, one after the other, as little-endian uint32.

    A contributor adds to the opened segments its rung reaches. `shares` yields one share at a time, so memory holds the
    sum and one share.
    """
    sums = {segment: Accumulator(view.segment_words[segment]) for segment in segments}
    for contributor, share in shares:
        words = _words(view, x, contributor, share)
        for segment, accumulator in sums.items():
            if segment <= contributor.rung:
                start = sum(view.segment_words[:segment])
                accumulator.add(words[start : start + view.segment_words[segment]])
    return b"".join(bytes(to_bytes(sums[segment].export())) for segment in segments)


def _words(view: PlanView, x: int, contributor: Contribution, share: bytes) -> NDArray[np.uint32]:
    count = total_words(view.segment_words, contributor.rung)
    if x > view.scheme.t:
        return from_bytes(share, count)
    words = np.empty(count, dtype="<u4")
    domain = view.keystream_domain(contributor.device_id, contributor.upload_id)
    fill_elements(view.prg, Seed(share), domain, words)
    return words
