"""Whether a dealer's shares lie on polynomials of degree < k: a masked combination tells (docs/protocol.md §5.7).

A device could deal shares that fit no polynomial: sums of different aggregators would then disagree and honest
aggregators look dishonest. So every share ends with a few *mask* elements, shared like the others and uniform. Once the
uploads are fixed, a public challenge draws coefficients r, and each aggregator shows, for each device,
z(x) = mask(x) + Σ r_i·y_i(x). These are shares of one more polynomial: over more than k points they must agree. What it
opens to is uniform by the mask. Shares that do not agree pass one such check with probability 1/p (Bellare, Garay and
Rabin, "Batch verification with applications to cryptography and checking", LATIN 1998).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpruneshare.errors import InconsistentSharesError
from fedpruneshare.sharing.field import Field, Words, inner_product
from fedpruneshare.sharing.prg import Prg, Seed, fill_elements
from fedpruneshare.sharing.shamir import SharingScheme


def challenge_rows(challenge: bytes, checks: int, elements: int, field: Field) -> list[Words]:
    """Coefficients of each check: `checks` rows of uniform elements from the public 32-byte challenge.

    Raises `SharingError` for a challenge of another length.
    """
    rows = [np.empty(elements, dtype=field.word_type) for _ in range(checks)]
    for check, row in enumerate(rows):
        fill_elements(Prg.CHACHA20, Seed(challenge), b"dealer check %d" % check, row, field)
    return rows


def combine(share: Words, rows: list[Words], field: Field) -> list[int]:
    """z(x) of each check from one full share: its elements, then as many masks as there are checks."""
    body, masks = share[: share.size - len(rows)], share[share.size - len(rows) :]
    return [
        (int(mask) + inner_product(row[: body.size], body, field)) % field.p
        for mask, row in zip(masks, rows, strict=True)
    ]


@dataclass(frozen=True)
class Judgement:
    """Who failed a check: dealers whose shares fit no polynomial, and points that answered wrongly for most dealers."""

    dealers: tuple[str, ...]
    points: tuple[int, ...]


def judge(scheme: SharingScheme, answers: Mapping[int, Mapping[str, Words]]) -> Judgement:
    """Judge all dealers by the answers of more than k points: by point and dealer, z of each check as words.

    A point that the disagreements of more than half of the dealers lead to is taken for a liar, and the dealers are
    judged without it. Raises `InconsistentSharesError` where more than half of the dealers disagree and it cannot be
    told why, and `SharingError` for k answers or fewer.
    """
    suspects = _suspects(scheme, answers)
    blamed = [points for points in suspects.values() if points]
    dealers = next(iter(answers.values())).keys()
    liars = sorted(x for x in answers if 2 * sum(x in points for points in blamed) > len(dealers))
    if liars and len(answers) - len(liars) > scheme.k:
        rest = judge(scheme, {x: given for x, given in answers.items() if x not in liars})
        return Judgement(rest.dealers, tuple(sorted({*liars, *rest.points})))
    if 2 * len(suspects) > len(dealers):
        raise InconsistentSharesError(
            f"dealer check: the shares of {len(suspects)} of {len(dealers)} devices disagree,"
            " expected few: an aggregator answers wrongly, or most devices do"
        )
    return Judgement(tuple(sorted(suspects)), ())


def _suspects(scheme: SharingScheme, answers: Mapping[int, Mapping[str, Words]]) -> dict[str, tuple[int, ...]]:
    """Dealers whose answers disagree, with the points that explain it; none where it cannot be told."""
    suspects: dict[str, tuple[int, ...]] = {}
    for dealer in next(iter(answers.values())):
        shares = {x: given[dealer] for x, given in answers.items()}
        try:
            wrong = scheme.locate(shares)
        except InconsistentSharesError:
            suspects[dealer] = ()
        else:
            if wrong:
                suspects[dealer] = wrong
    return suspects
