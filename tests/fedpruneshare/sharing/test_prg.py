"""The keystream where it is rare, or asked for wrongly (docs/protocol.md §5.2)."""

from __future__ import annotations

import numpy as np
import pytest
from reference import sharing_reference as reference

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.prg import ElementStream, Prg, Seed, fill_elements

#: (algorithm, seed as a number, position): found by search, one word in 2^31 is p.
NATURAL_REJECTIONS = (("aes-256-ctr", 29_174, 8305), ("chacha20", 119_624, 8743))


@pytest.mark.parametrize(("algorithm", "number", "place"), NATURAL_REJECTIONS)
def test_a_rejection_that_really_happens(algorithm: str, number: int, place: int) -> None:
    """Nothing is scripted here: the cipher itself yields p, and the reference agrees on what follows."""
    seed, domain, count = number.to_bytes(32, "big"), b"rejection", place + 3
    candidates = reference.words_of(reference.keystream(algorithm, seed, domain, 0, 4 * count))
    assert [i for i, word in enumerate(candidates) if word == reference.P] == [place]
    expected = reference.elements(algorithm, seed, domain, count)
    assert expected[place] == reference.words_of(reference.keystream(algorithm, seed, domain, 1, 4))[0]
    assert fill_elements(Prg(algorithm), Seed(seed), domain, np.empty(count, dtype="<u4")).tolist() == expected
    stream = ElementStream(Prg(algorithm), Seed(seed), domain)
    pieces = [stream.fill(np.empty(size, dtype="<u4")) for size in (place, 1, 2)]
    assert np.concatenate(pieces).tolist() == expected


@pytest.mark.parametrize("prg", list(Prg))
def test_an_algorithm_is_known_by_its_id(prg: Prg) -> None:
    """As it stands in a plan: the same text must never give another cipher."""
    words = [fill_elements(given, Seed(bytes(32)), b"d", np.empty(5, dtype="<u4")) for given in (prg, prg.value)]
    assert words[0].tolist() == words[1].tolist()


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(SharingError, match="'rot13', expected one of chacha20, aes-256-ctr"):
        ElementStream("rot13", Seed(bytes(32)), b"")  # type: ignore[arg-type]


def test_an_output_with_gaps_is_refused() -> None:
    with pytest.raises(SharingError, match="expected a contiguous array"):
        fill_elements(Prg.CHACHA20, Seed(bytes(32)), b"", np.zeros(6, dtype="<u4")[::2])
