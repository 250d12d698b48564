"""What an aggregator computes from the shares it holds (docs/protocol.md §4.5, §5.7). What it adds tells it nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fedpruneshare.messages import Contribution
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dealer_check import challenge_rows, combine
from fedpruneshare.sharing.field import Words, check_canonical, from_bytes, to_bytes
from fedpruneshare.sharing.prg import Prg, Seed, fill_elements
from fedpruneshare.sharing.shamir import Accumulator

#: One share at a time, with the contributor it is of: memory holds the result and one share.
Shares = Iterable[tuple[Contribution, bytes]]
#: Keystream algorithm of a contributor's seed shares.
PrgOf = Callable[[Contribution], Prg]


def check_share(view: PlanView, x: int, data: bytes) -> None:
    """Check what is opened of a share before it is stored: whole, canonical words. Raises `SharingError`.

    Seeds and fragments can be anything; a fragment that is wrong is found when its blob is rebuilt.
    """
    if not view.is_each_revealed and not view.scheme.is_seed_point(x):
        check_canonical(from_bytes(data, len(data) // view.field.word_bytes, view.field), view.field)


def answer_freeze(view: PlanView, x: int, segments: tuple[int, ...], shares: Shares, prg_of: PrgOf) -> bytes:
    """What a Freeze is answered with: the sum, or with `reveal = "each"` the contributors' fragments in its order."""
    if view.is_each_revealed:
        return b"".join(fragment for _, fragment in shares)
    return sum_shares(view, x, segments, shares, prg_of)


def sum_shares(view: PlanView, x: int, segments: tuple[int, ...], shares: Shares, prg_of: PrgOf) -> bytes:
    """Sum of the frozen shares over the opened segments, one after the other, as little-endian words.

    A contributor adds to the opened segments its rung reaches.
    """
    sizes = view.segment_elements
    sums = {segment: Accumulator(sizes[segment], view.field) for segment in segments}
    for contributor, share in shares:
        elements = _elements(view, x, (contributor, share), prg_of)
        for segment, accumulator in sums.items():
            if segment <= contributor.rung:
                start = sum(sizes[:segment])
                accumulator.add(elements[start : start + sizes[segment]])
    return b"".join(bytes(to_bytes(sums[segment].export(), view.field)) for segment in segments)


def reply_to_check(view: PlanView, x: int, challenge: bytes, shares: Shares, prg_of: PrgOf) -> bytes:
    """This point's share of every contributor's masked combinations, as `CheckReply.values` holds them."""
    longest = view.share_elements(view.rungs - 1) - view.checks
    rows = challenge_rows(challenge, view.checks, longest, view.field)
    values = [combine(_elements(view, x, share, prg_of), rows, view.field) for share in shares]
    return bytes(to_bytes(np.array(values, dtype=view.field.word_type).ravel(), view.field))


def _elements(view: PlanView, x: int, share: tuple[Contribution, bytes], prg_of: PrgOf) -> Words:
    """All elements of a share, masks included; a seed share is expanded."""
    contributor, data = share
    count = view.share_elements(contributor.rung)
    if not view.scheme.is_seed_point(x):
        return from_bytes(data, count, view.field)
    elements = np.empty(count, dtype=view.field.word_type)
    domain = view.keystream_domain(contributor.device_id, contributor.upload_id)
    return fill_elements(prg_of(contributor), Seed(data), domain, elements, view.field)
