"""The hidden linear checksum of a segment (docs/protocol.md §5.11)."""

from __future__ import annotations

import numpy as np
import pytest

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing import checksum as module
from fedpruneshare.sharing.checksum import CHECKSUM_WORDS, checksum, commitment, fill_checksum, is_checksum_right
from fedpruneshare.sharing.field import FIELDS, Field, Words, modadd

each_field = pytest.mark.parametrize("name", list(FIELDS))
SEED = bytes(range(32))


def segment(name: str, size: int, number: int) -> Words:
    """A device's words of a segment, checksum included."""
    field = FIELDS[name]
    words = np.random.default_rng(number).integers(0, field.p, size, dtype=field.word_type)
    fill_checksum(words, SEED, 1, CHECKSUM_WORDS[name], field)
    return words


def total(name: str, size: int, devices: int = 5) -> Words:
    field = FIELDS[name]
    found = np.zeros(size, dtype=field.word_type)
    for device in range(devices):
        modadd(found, segment(name, size, device), found, field)
    return found


@each_field
@pytest.mark.parametrize("size", [4, 5, 1000])
def test_sums_keep_the_relation(name: str, size: int) -> None:
    assert is_checksum_right(total(name, size), SEED, 1, CHECKSUM_WORDS[name], FIELDS[name])


@each_field
def test_an_error_anywhere_breaks_it(name: str) -> None:
    field, rows = FIELDS[name], CHECKSUM_WORDS[name]
    for place in range(50):
        words = total(name, 50)
        words[place] = (int(words[place]) + 1 + place * 7) % field.p
        assert not is_checksum_right(words, SEED, 1, rows, field)


@each_field
def test_another_seed_or_segment_is_another_checksum(name: str) -> None:
    field, rows, words = FIELDS[name], CHECKSUM_WORDS[name], total(name, 50)
    assert not is_checksum_right(words, SEED, 0, rows, field)
    assert not is_checksum_right(words, bytes(32), 1, rows, field)
    swapped = words.copy()
    swapped[[0, 1]] = words[[1, 0]]
    assert not is_checksum_right(swapped, SEED, 1, rows, field)


@each_field
def test_it_is_what_plain_arithmetic_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field: Field = FIELDS[name]
    words = np.random.default_rng(3).integers(0, field.p, 400, dtype=field.word_type)
    whole = checksum(words, SEED, 2, 2, field)
    unit = np.eye(400, dtype=field.word_type)
    coefficients = [[int(checksum(unit[i], SEED, 2, 2, field)[row]) for i in range(400)] for row in range(2)]
    expected = [sum(r * int(w) for r, w in zip(row, words, strict=True)) % field.p for row in coefficients]
    assert whole.tolist() == expected
    monkeypatch.setattr(module, "_BLOCK", 64)  # in how many pieces it is computed makes no difference
    assert checksum(words, SEED, 2, 2, field).tolist() == expected


def test_the_commitment_tells_seeds_apart_and_nothing_else() -> None:
    assert len(commitment(SEED)) == 32
    assert commitment(SEED) != commitment(bytes(32))
    with pytest.raises(SharingError, match="seed of 3 bytes, expected 32"):
        checksum(np.zeros(4, dtype="<u4"), b"abc", 0, 3, FIELDS["F31"])
