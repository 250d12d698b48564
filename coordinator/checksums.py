"""Which answers carry the right checksum (docs/protocol.md §5.11). No I/O.

With exactly k sums a wrong one shows in the opened words. With more, and not on one polynomial, those k are looked for
that open to a right checksum: as many liars may be among the rest as there are answers to spare. A device could deal so
that only some k do; so who disagrees with the others is a hint, and nobody is named where it is not the one
explanation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from fedpruneshare.errors import InconsistentSharesError, SharingError
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.checksum import checksum, is_checksum_right
from fedpruneshare.sharing.field import Words, modadd, modsub
from fedpruneshare.sharing.polynomial import interpolate

#: Different polynomials with right checksums that are looked at before it is called ambiguous.
_MOST_SETS: Final = 8


@dataclass(frozen=True)
class RightAnswers:
    """Points of one polynomial with the right checksum, the largest such set; and those in none."""

    points: tuple[int, ...]
    wrong: tuple[int, ...]


def check_checksums(view: PlanView, words: Mapping[int, Words], seed: bytes) -> None:
    """Raise `SharingError` unless every opened segment has the right checksum."""
    tail = view.plan.coding.tail_words
    for segment, opened in words.items():
        if not is_checksum_right(opened, seed, segment, tail, view.field):
            raise SharingError(
                f"the checksum of segment {segment} is wrong: an aggregator answered with another sum than that of its"
                " shares, or a device made its checksum wrong"
            )


def find_right_answers(view: PlanView, segments: Sequence[int], sums: Mapping[int, Words], seed: bytes) -> RightAnswers:
    """Of more than k sums that disagree: those that open to a right checksum.

    `sums`: elements [m] by point, the segments one after the other. Raises `InconsistentSharesError` if no k of them
    do, or if some do with different words.
    """
    points, k = tuple(sorted(sums)), view.scheme.k
    residuals = {x: _residuals(view, segments, sums[x], seed) for x in points}
    found: list[frozenset[int]] = []
    for chosen in combinations(points, k):
        if any(known.issuperset(chosen) for known in found) or not _is_right(view, chosen, residuals):
            continue
        found.append(_agreeing(view, chosen, sums))
        if len(found) > _MOST_SETS:
            break
    if not found:
        raise InconsistentSharesError(
            f"shares of points {list(points)} disagree and no {k} of them have the right checksum"
        )
    best = max(found, key=len)
    if len(found) > _MOST_SETS or not all(_open_alike(view, best, other, sums) for other in found):
        raise InconsistentSharesError(
            f"shares of points {list(points)} disagree and open to different words with right checksums: somebody who"
            " answers for an aggregator knows the seed"
        )
    return RightAnswers(tuple(sorted(best)), tuple(sorted(set(points) - frozenset().union(*found))))


def _residuals(view: PlanView, segments: Sequence[int], elements: Words, seed: bytes) -> list[Words]:
    """What the elements of one point add to checksum minus tail words, for each x = 0, −1, … that carries words.

    Both are linear in the words, and these in the elements; so any k residuals interpolate to that of the opened words.
    """
    tail, scheme, parts = view.plan.coding.tail_words, view.scheme, []
    for secret in range(scheme.secrets):
        rows, start = [], 0
        for segment in segments:
            size, count = view.segment_elements[segment], view.segment_words[segment]
            words = np.zeros(scheme.secrets * size, dtype=view.field.word_type)
            words[secret * size : (secret + 1) * size] = elements[start : start + size]
            words, start = words[:count], start + size
            expected = checksum(words[: count - tail], seed, segment, tail, view.field)
            rows.append(modsub(expected, np.ascontiguousarray(words[count - tail :]), expected, view.field))
        parts.append(np.concatenate(rows))
    return parts


def _is_right(view: PlanView, chosen: tuple[int, ...], residuals: Mapping[int, Sequence[Words]]) -> bool:
    total = np.zeros(residuals[chosen[0]][0].size, dtype=view.field.word_type)
    part = np.empty_like(total)
    for secret in range(view.scheme.secrets):
        interpolate(chosen, -secret, [residuals[x][secret] for x in chosen], part, view.field)
        modadd(total, part, total, view.field)
    return not total.any()


def _agreeing(view: PlanView, chosen: tuple[int, ...], sums: Mapping[int, Words]) -> frozenset[int]:
    """All points on the polynomials through those chosen."""
    rows = [sums[x] for x in chosen]
    expected = np.empty_like(rows[0])
    others = [x for x in sums if x not in chosen]
    return frozenset(chosen).union(
        x for x in others if np.array_equal(interpolate(chosen, x, rows, expected, view.field), sums[x])
    )


def _open_alike(view: PlanView, one: frozenset[int], other: frozenset[int], sums: Mapping[int, Words]) -> bool:
    """Whether two sets of points open to the same elements at every x = 0, −1, … that carries words."""
    for secret in range(view.scheme.secrets):
        opened = []
        for points in (one, other):
            chosen = tuple(sorted(points))[: view.scheme.k]
            target = np.empty_like(sums[chosen[0]])
            opened.append(interpolate(chosen, -secret, [sums[x] for x in chosen], target, view.field))
        if not np.array_equal(opened[0], opened[1]):
            return False
    return True
