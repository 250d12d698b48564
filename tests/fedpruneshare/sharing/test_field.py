"""Arrays that numpy would stretch, cut or convert without a word (docs/protocol.md §5.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedpruneshare.errors import SharingError
from fedpruneshare.sharing.field import CHUNK, Words, from_bytes, modadd, modsub, sum_of_products, to_bytes


def ones(size: int, dtype: str = "<u4") -> np.ndarray:
    return np.ones(size, dtype=dtype)


def combined(a: Words, b: Words, out: Words) -> Words:
    return sum_of_products([1, 1], [a, b], out)


each_operation = pytest.mark.parametrize("operation", [modadd, modsub, combined])


@each_operation
@pytest.mark.parametrize(
    "sizes", [(2, 1, 2), (1, 2, 2), (2, 2, 1), (2, 2, 3), (0, 1, 1), (2 * CHUNK, CHUNK + 1, 2 * CHUNK)]
)
def test_unequal_lengths_are_refused(operation: Callable[..., Words], sizes: tuple[int, int, int]) -> None:
    """One word, also one word left in the last chunk, would be stretched over a whole chunk."""
    a, b, out = (ones(size) for size in sizes)
    with pytest.raises(SharingError, match="expected one length"):
        operation(a, b, out)
    assert out.all(), "nothing was written"


@each_operation
@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["u1", "<u8", "<i4", ">u4"])
def test_other_types_are_refused(operation: Callable[..., Words], wrong: int, dtype: str) -> None:
    """Words of 64 bits would lose their upper half."""
    arrays = [ones(3, dtype if index == wrong else "<u4") for index in range(3)]
    with pytest.raises(SharingError, match="expected one axis of <u4"):
        operation(*arrays)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bytes_of_no_word_and_of_words_with_gaps(count: int) -> None:
    words = np.arange(2 * count, dtype="<u4")[::2]
    assert from_bytes(to_bytes(words), count).tolist() == words.tolist()


def test_a_view_is_measured_in_bytes() -> None:
    """Four items of four bytes are not one word."""
    view = memoryview(ones(4))
    with pytest.raises(SharingError, match="16 bytes of words, expected 4"):
        from_bytes(view, 1)
    assert from_bytes(view, 4).tolist() == [1, 1, 1, 1]
